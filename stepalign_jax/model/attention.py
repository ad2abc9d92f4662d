# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention, its masks and rotary positions, as pure functions of arrays."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

# Finite, so that a row that may attend to nothing gives numbers instead of NaN.
_MASKED = -0.7 * float(np.finfo(np.float32).max)
# Terms of the first sums of `streamed_attention` (the fastest of 4 to 32 on two cores), and the
# widest cache for which it was faster than products.
_QUERY_TERMS, _SLOT_TERMS, _MOST_STREAMED_SLOTS = 16, 8, 512
_QUERY_BLOCKS = 4  # more skip more, but each is compiled by itself


def causal_mask(length: int, segment_ids: jax.Array | None) -> jax.Array:
    """True where query t may attend to key s: s <= t, and in the same segment.

    Args:
      length: number of tokens T.
      segment_ids: [B, T] integers of packed rows, or None.

    Returns:
      [1, T, T] bool without segments, [B, T, T] with them.
    """
    mask = jnp.tril(jnp.ones((1, length, length), dtype=bool))
    if segment_ids is None:
        return mask
    return mask & (segment_ids[:, :, None] == segment_ids[:, None, :])


def cache_mask(positions: jax.Array, num_slots: int) -> jax.Array:
    """True where a query at position p may attend to slot s: s <= p.

    Args:
      positions: [1 or B, T] int32 positions of the queries.
      num_slots: cache slots S.

    Returns:
      [1 or B, T, S] bool.
    """
    slots = jnp.arange(num_slots, dtype=positions.dtype)
    return slots[None, None, :] <= positions[:, :, None]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention; scores and softmax are fp32 whatever the inputs are.

    Both products are row-major, [n, Dh] @ [Dh, S] and [n, S] @ [S, Dh] per key head: on a CPU
    keys stored as [S, Dh] make a decode step's attention twice as slow.

        query heads   0 1 2 3 | 4 5 6 7      H = 8, K = 2: a group of 4 shares a key head,
        key heads        0    |    1         so its G x T queries are the rows of one product

    Args:
      q: [B, T, H, Dh] queries; head h reads key head h // (H / K).
      k: [B, K, Dh, S] keys.
      v: [B, K, S, Dh] values.
      mask: [1 or B, T, S] bool, True where attention is allowed.

    Returns:
      [B, T, H, Dh] in the dtype of `q`.
    """
    batch, length, num_heads, size = q.shape
    num_kv_heads, num_slots = v.shape[1:3]
    group = num_heads // num_kv_heads
    # [B, T, H, Dh] -> [B, K, G * T, Dh], without repeating a key head for its group.
    rows = q.reshape(batch, length, num_kv_heads, group, size).transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, num_kv_heads, group * length, size)
    scores = jnp.einsum("bknd,bkds->bkns", rows, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, num_kv_heads, group, length, num_slots)
    scores = jnp.where(mask[:, None, None], scores * size**-0.5, _MASKED)
    # A softmax whose division waits for the product with the values: [n, Dh] are fewer
    # numbers than [n, S]. The largest score cancels, so no gradient goes through it.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1).reshape(batch, num_kv_heads, group * length, 1)
    weights = weights.astype(v.dtype).reshape(batch, num_kv_heads, group * length, num_slots)
    out = jnp.einsum("bkns,bksd->bknd", weights, v, preferred_element_type=jnp.float32)
    out = (out / total).astype(q.dtype)
    out = out.reshape(batch, num_kv_heads, group, length, size).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, length, num_heads, size)


def can_stream(q: jax.Array, v: jax.Array) -> bool:
    """Whether `streamed_attention` takes these arrays, and is the faster way on a CPU."""
    length, size, num_slots = q.shape[1], q.shape[3], v.shape[2]
    whole = size % _QUERY_TERMS == 0 and num_slots % _SLOT_TERMS == 0
    return length == 1 and whole and num_slots <= _MOST_STREAMED_SLOTS


def streamed_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`attention` of one query per row, with the cache read by all cores of a CPU.

    XLA's CPU compiler runs a product of so few rows on one core. It divides loops that sum a
    few arrays among the cores: `benchmarks.sampling --part decode` times both.

    Args: as in `attention`, with T = 1.
    """
    batch, _, num_heads, size = q.shape
    num_kv_heads = v.shape[1]
    rows = q.astype(jnp.float32).reshape(batch, num_kv_heads, -1, size)
    scores = _weighted_sum(rows, k, _QUERY_TERMS) * size**-0.5
    # Added: XLA would fuse a `where` with all of the sums into one slow loop.
    scores = scores + jnp.where(mask, 0.0, _MASKED)[:, :, None]
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    out = _weighted_sum(weights, v, _SLOT_TERMS) / jnp.sum(weights, axis=-1, keepdims=True)
    return out.astype(q.dtype).reshape(batch, 1, num_heads, size)


def _weighted_sum(weights: jax.Array, rows: jax.Array, num_terms: int) -> jax.Array:
    """[B, K, G, N] times [B, K, N, M]: [B, K, G, M] in float32.

    N = 6 with 2 terms: the first sum adds rows 0 and 3, 1 and 4, 2 and 5, each term being one
    contiguous half of the rows; the second adds the 3 results.
    """
    *heads, group, _ = weights.shape
    weights = weights.reshape(*heads, group, num_terms, -1, 1)
    rows = rows.astype(jnp.float32).reshape(*heads, 1, num_terms, -1, rows.shape[-1])
    left = _sum(weights[:, :, :, i] * rows[:, :, :, i] for i in range(num_terms))
    return _sum(left[:, :, :, i] for i in range(left.shape[3]))


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`attention` of whole sequences, T = S, where no query sees a later key.

    A block of queries is multiplied with the keys up to its own end: (1 + 2 + 3 + 4) / 16 = 5/8
    of the products and memory of all pairs. `mask` is False for s > t.

        keys        0    1    2    3
        queries 0   x                     a diagonal block is computed whole,
                1   x    x                and the mask cuts its upper half
                2   x    x    x
                3   x    x    x    x
    """
    length = q.shape[1]
    block = -(-length // _QUERY_BLOCKS)
    outs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        outs.append(
            attention(q[:, start:end], k[..., :end], v[:, :, :end], mask[:, start:end, :end])
        )
    return jnp.concatenate(outs, axis=1)
