# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention over a cache, in both of its forms, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.model.attention import attention, can_stream, streamed_attention

BATCH, HEADS, KV_HEADS, SIZE, SLOTS = 3, 6, 2, 32, 40


def random_inputs(dtype: str, heads: int = HEADS) -> list[jax.Array]:
    """q, k, v of one decoded token per row, and a mask of rows that are 1, 17 and 40 long."""
    shapes = (
        (BATCH, 1, heads, SIZE),
        (BATCH, KV_HEADS, SIZE, SLOTS),
        (BATCH, KV_HEADS, SLOTS, SIZE),
    )
    generator = np.random.default_rng(0)
    arrays = [jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes]
    lengths = np.array([1, 17, SLOTS])
    return [*arrays, jnp.asarray(np.arange(SLOTS) < lengths[:, None, None])]


def expected(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> np.ndarray:
    """[B, 1, H, Dh] in float64, one head at a time."""
    q, k, v = (np.asarray(array, np.float64) for array in (q, k, v))
    out = np.empty_like(q)
    group = q.shape[2] // k.shape[1]
    for row in range(q.shape[0]):
        seen = np.asarray(mask)[row, 0]
        for head in range(q.shape[2]):
            scores = q[row, 0, head] @ k[row, head // group][:, seen] / np.sqrt(q.shape[3])
            weights = np.exp(scores - scores.max())
            out[row, 0, head] = weights / weights.sum() @ v[row, head // group][seen]
    return out


@pytest.mark.parametrize("form", [attention, streamed_attention])
@pytest.mark.parametrize("heads", [KV_HEADS, HEADS])
def test_both_forms_compute_attention(form, heads):
    inputs = random_inputs("float32", heads)
    found = jax.jit(form)(*inputs)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected(*inputs), atol=2e-6, rtol=0)


@pytest.mark.parametrize("form", [attention, streamed_attention])
def test_bfloat16_is_summed_in_float32(form):
    inputs = random_inputs("bfloat16")
    found = jax.jit(form)(*inputs)
    assert found.dtype == jnp.bfloat16
    # Of numbers below 4, whose neighbours are 1/64 apart; weights may be rounded as well.
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected(*inputs), atol=1 / 32, rtol=0
    )


@pytest.mark.parametrize("form", [attention, streamed_attention])
def test_slots_out_of_sight_change_no_bit(form):
    q, k, v, mask = random_inputs("float32")
    hidden = ~np.asarray(mask)[:, 0]
    stale_k = jnp.where(hidden[:, None, None, :], 1e30, k)
    stale_v = jnp.where(hidden[:, None, :, None], -1e30, v)
    assert jnp.array_equal(form(q, k, v, mask), form(q, stale_k, stale_v, mask))


@pytest.mark.parametrize(
    ("length", "size", "slots", "streams"),
    [
        (1, 128, 192, True),
        (1, 128, 512, True),
        (1, 128, 1024, False),  # slower there
        (1, 128, 190, False),
        (1, 24, 192, False),
        (2, 128, 192, False),
    ],
)
def test_which_caches_are_streamed(length, size, slots, streams):
    q, v = jnp.zeros((1, length, 2, size)), jnp.zeros((1, 1, slots, size))
    assert can_stream(q, v) is streams
