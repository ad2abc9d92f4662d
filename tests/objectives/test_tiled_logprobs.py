# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities in tiles: float64's values and gradients, and few products."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.float64 as float64
from support.tiled import equations

from stepalign_jax.objectives.tiled_logprobs import tiled_logprobs

N, D, V = 7, 5, 13


def draw() -> tuple[jax.Array, jax.Array, jax.Array]:
    inputs = float64.draw_inputs(N, V, D)
    return tuple(jnp.asarray(inputs[k]) for k in ("solver_hidden", "solver_head", "tokens"))


def picked(
    hidden: Any, head: Any, tokens: Any, token_tile: int = 3, temperature: float = 0.7
) -> jax.Array:
    return tiled_logprobs(
        hidden, head, tokens, temperature=temperature, token_tile=token_tile, mesh=None
    )[0]


@pytest.mark.parametrize("temperature", [1.0, 1.3])
@pytest.mark.parametrize("token_tile", [1, 3, 100])
def test_values_and_gradients_of_any_function_of_them(token_tile, temperature):
    hidden, head, tokens = draw()

    def loss(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return jnp.sum(picked(hidden, head, tokens, token_tile, temperature) ** 2)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head)
    hidden, head, tokens = (np.asarray(x) for x in (hidden, head, tokens))
    logprobs = float64.logprobs(hidden, head, temperature)
    expected = logprobs[np.arange(N), tokens]
    by_logits = 2 * expected[:, None] * (np.eye(V)[tokens] - np.exp(logprobs)) / temperature
    np.testing.assert_allclose(value, (expected**2).sum(), rtol=1e-5)
    assert float64.relative_error(gradients[0], by_logits @ head) < 1e-5
    assert float64.relative_error(gradients[1], by_logits.T @ hidden) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_log_probabilities_at_temperature_1_are_given_beside_as_constants(temperature):
    hidden, head, tokens = draw()

    @jax.jit
    @jax.value_and_grad
    def at_one(hidden: jax.Array) -> jax.Array:
        return tiled_logprobs(
            hidden, head, tokens, temperature=temperature, token_tile=3, mesh=None
        )[1].sum()

    value, gradient = at_one(hidden)
    logprobs = float64.logprobs(np.asarray(hidden), np.asarray(head), 1.0)
    expected = logprobs[np.arange(N), np.asarray(tokens)].sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert not np.any(gradient)


@pytest.mark.parametrize(("trains", "num_products"), [((), 1), ((0,), 2), ((0, 1), 4)])
def test_head_products(trains, num_products):
    def loss(*arrays: jax.Array) -> jax.Array:
        return picked(*arrays).sum()

    step = jax.value_and_grad(loss, trains) if trains else loss
    found = equations(jax.make_jaxpr(step)(*draw()).jaxpr)
    assert sum(e.primitive.name == "dot_general" for e in found) == num_products


def test_no_array_of_all_tokens_by_vocabulary():
    step = jax.grad(lambda *arrays: picked(*arrays, token_tile=2).sum(), (0, 1))
    found = equations(jax.make_jaxpr(step)(*draw()).jaxpr)
    shapes = {getattr(out.aval, "shape", ()) for e in found for out in e.outvars}
    assert (2, V) in shapes and (N, V) not in shapes


def test_head_gradient_is_summed_over_tiles_in_float32():
    """A bfloat16 sum of 512 halves stops growing at 128."""
    hidden, tokens = jnp.ones((512, 1), jnp.bfloat16), jnp.zeros(512, jnp.int32)

    @jax.jit
    @jax.grad
    def gradient(head: jax.Array) -> jax.Array:
        return picked(hidden, head, tokens, 1, 1.0).sum()

    found = gradient(jnp.zeros((2, 1), jnp.bfloat16)).astype(jnp.float32)
    np.testing.assert_array_equal(np.ravel(found), [256.0, -256.0])
