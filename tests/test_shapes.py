# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The tests check the shapes in signatures: one wrong dimension stops a call."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from support import float64
from support.shapes import CHECKED

from stepalign_jax.objectives.tiled_divergence import tiled_divergence
from stepalign_jax.sampling.draw import sample_token
from stepalign_jax.training.packing import Targets
from stepalign_jax.training.step import distillation_loss

N, D, V, B = 6, 4, 9, 3
FORWARD_KL = float64.make_divergence("forward_kl")


def tiled_arguments() -> dict[str, Any]:
    return {name: jnp.asarray(array) for name, array in float64.draw_inputs(N, V, D).items()}


def draw_arguments() -> dict[str, Any]:
    return {
        "logits": jnp.zeros((B, V)),
        "keys": jax.random.split(jax.random.key(0), B),
        "temperature": jnp.ones(B),
        "top_k": jnp.zeros(B, jnp.int32),
        "top_p": jnp.ones(B),
    }


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("solver_hidden", jnp.zeros((N, D, 1))),
        ("teacher_hidden", jnp.zeros((N + 1, D))),
        ("teacher_head", jnp.zeros((V - 1, D))),
        ("tokens", jnp.zeros((1, N), jnp.int32)),
        ("tokens", jnp.zeros(N)),
        ("token_weights", jnp.ones((N, 1))),
    ],
)
def test_tiled_divergence_refuses_a_wrong_shape(name: str, wrong: jax.Array, jit: bool) -> None:
    def call(**arrays: Any) -> Any:
        return tiled_divergence(**arrays, divergence=FORWARD_KL, mesh=None)

    call = jax.jit(call) if jit else call
    call(**tiled_arguments())
    with pytest.raises(jaxtyping.TypeCheckError, match=f"parameter '{name}'"):
        call(**tiled_arguments() | {name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("keys", jax.random.split(jax.random.key(0), B + 1)),
        ("temperature", jnp.ones((B, 1))),
        ("top_k", jnp.zeros(B)),
        ("top_p", jnp.ones(())),
    ],
)
def test_sample_token_refuses_a_wrong_shape(name: str, wrong: jax.Array) -> None:
    sample_token(**draw_arguments())
    with pytest.raises(jaxtyping.TypeCheckError, match=f"parameter '{name}'"):
        sample_token(**draw_arguments() | {name: wrong})


def test_an_update_s_loss_refuses_a_head_of_another_width() -> None:
    hidden, head = jnp.zeros((N, D)), jnp.zeros((V, D))
    line = jnp.zeros((1, N))
    targets = Targets(line.astype(jnp.int32), line > 0, line, line)
    distillation_loss(FORWARD_KL, hidden, hidden, head, head, targets)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'solver_head'"):
        distillation_loss(FORWARD_KL, hidden, hidden, head[:, 1:], head, targets)


def modules() -> Iterator[str]:
    """Each module that CHECKED names, and those of a package."""
    for name in CHECKED:
        module = importlib.import_module(name)
        yield name
        for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
            yield f"{name}.{found.name}"


@pytest.mark.parametrize("name", list(modules()))
def test_each_function_of_the_checked_modules_is_checked(name: str) -> None:
    module = importlib.import_module(name)
    assert type(module.__loader__).__module__ == "jaxtyping._import_hook"
