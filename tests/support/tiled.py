# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The tiled divergence on arrays drawn in float64."""

from typing import Any

import jax
import jax.numpy as jnp
from support import float64

from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.objectives.tiled_divergence import tiled_divergence

N, D, V = 7, 5, 13  # N is no multiple of the tile, and V of no vector width
SETTINGS = float64.SETTINGS


ARRAYS = ("solver_hidden", "teacher_hidden", "solver_head", "teacher_head")


def draw(num_tokens: int = N, vocab: int = V, width: int = D) -> dict[str, Any]:
    return float64.draw_inputs(num_tokens, vocab, width)


def tiled(
    inputs: dict, name: str = "forward_kl", *, mesh: Any = None, **settings: Any
) -> tuple[jax.Array, LossScores]:
    divergence = float64.make_divergence(name, **settings)
    # One array for both sides stays one: the head is then read once.
    arrays = {id(array): jnp.asarray(array) for array in inputs.values() if array is not None}
    inputs = {name: arrays.get(id(array)) for name, array in inputs.items()}
    return tiled_divergence(**inputs, divergence=divergence, mesh=mesh)


def value_and_gradients(inputs: dict, trains: tuple[str, ...], name: str, **settings) -> Any:
    """Returns ((loss, scores), gradients by name), compiled."""

    def loss(arrays: dict) -> tuple[jax.Array, LossScores]:
        return tiled({**inputs, **arrays}, name, **settings)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return jax.device_get(step({key: inputs[key] for key in trains}))


def equations(jaxpr: jax.extend.core.Jaxpr) -> list[Any]:
    """Every equation of a jaxpr, and of those inside it."""
    found = list(jaxpr.eqns)
    for inner in jax.tree.leaves(
        [list(equation.params.values()) for equation in jaxpr.eqns],
        is_leaf=lambda leaf: hasattr(leaf, "eqns"),
    ):
        if hasattr(inner, "eqns"):
            found += equations(getattr(inner, "jaxpr", inner))
    return found
