# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The KV cache: one pair of arrays per layer, and how tokens are written into it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stepalign_jax.model.config import Qwen3Config


class LayerCache(NamedTuple):
    """Keys [B, K, Dh, S] and values [B, K, S, Dh] of one layer; slot s holds position s."""

    k: jax.Array
    v: jax.Array

    @property
    def num_slots(self) -> int:
        """S."""
        return self.v.shape[2]


Cache = tuple[LayerCache, ...]


def init_cache(config: Qwen3Config, batch: int, slots: int, dtype: Any) -> Cache:
    """An empty cache: one LayerCache of zeros per layer."""
    heads = (batch, config.num_kv_heads)
    k_shape, v_shape = (*heads, config.head_dim, slots), (*heads, slots, config.head_dim)
    zeros = (
        LayerCache(jnp.zeros(k_shape, dtype), jnp.zeros(v_shape, dtype))
        for _ in range(config.num_layers)
    )
    return tuple(zeros)


def write(
    cache: jax.Array, new: jax.Array, first_slot: jax.Array | None, *, axis: int
) -> jax.Array:
    """`cache` with `new`, T long on `axis`, at slots first_slot[b] .. + T - 1 of row b.

    A `first_slot` of one element is that of all rows.
    """
    assert first_slot is not None
    new = new.astype(cache.dtype)
    if first_slot.shape[0] == 1:  # one contiguous copy, where the vmap below is a scatter
        return jax.lax.dynamic_update_slice_in_dim(cache, new, first_slot[0], axis)
    update = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda row, rows, slot: update(row, rows, slot, axis - 1))(
        cache, new, first_slot
    )
