# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of many tokens from hidden states, the logits of one tile of tokens at a time.

A token's divergence depends on its own row of hidden states alone, so its gradient by that row
is formed while the row's logits exist: the backward pass multiplies by one number and computes
no logits again. Head products per tile, of [tile, D] with [V, D]:

                                no gradient   frozen head   head trains
    tiled_divergence                  2            3             4
    tiled_logprobs                    1            2             4
    the dense form of either        2, 1         3, 2          4, 3

The gradient of the head sums over tokens, so it can be formed in the same pass only where each
token's share of the loss is known there: `tiled_divergence` takes the weights. In
`tiled_logprobs` it isn't (the loss is any function of the log-probabilities), so if the head
trains the backward pass computes the logits once more.

Logits are products in the hidden states' own dtype (the head is cast to it) summed in float32;
what follows is float32, until the gradient by the logits is cast for its products, which are
again summed in float32. First derivatives only, in reverse mode.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from stepalign_jax.objectives.vocabulary import Vocabulary, vary, varying


def walk_tiles(
    score: Callable[[Any, jax.Array, Any], tuple[Any, Any]],
    rows: Any,
    head: Float[Array, "V D"] | None,
    token_tile: int,
) -> tuple[Any, Any]:
    """Walks tiles of neighbouring rows, of nearly equal size, the last one ending at row N.

    So nothing is padded or copied; the last tile may begin with rows of the one before.

    Args:
      score: (tile of rows, [tile] bool, sums) -> (results by row, sums); False marks a row
        that an earlier tile had, which must not enter the sums again.
      rows: arrays [N, ...].
      head: if there are sums of its shape, which begin as float32 zeros; or None.
      token_tile: the most rows of a tile.

    Returns:
      Results [N, ...] and sums.
    """
    num_rows = rows[0].shape[0]
    num_tiles = -(-num_rows // token_tile)
    tile = -(-num_rows // num_tiles)
    tile = min(tile + -tile % 8, token_tile, num_rows)  # accelerators work on 8 rows at once

    def scored(index: jax.Array | int, sums: Any) -> tuple[jax.Array, Any, Any]:
        start = jnp.minimum(index * tile, num_rows - tile)
        cut = [jax.lax.dynamic_slice_in_dim(array, start, tile) for array in rows]
        fresh = start + jnp.arange(tile) >= index * tile
        return start, *score(cut, fresh, sums)

    def step(index: jax.Array | int, carry: Any) -> Any:
        results, sums = carry
        start, more, sums = scored(index, sums)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, results, more), sums

    sums = None if head is None else jnp.zeros(head.shape, jnp.float32)
    _, shapes, added = jax.eval_shape(scored, 0, sums)
    # What the loop carries varies over the devices from the first tile on.
    results = jax.tree.map(
        lambda leaf: vary(jnp.zeros((num_rows, *leaf.shape[1:]), leaf.dtype), varying(leaf)),
        shapes,
    )
    sums = jax.tree.map(lambda leaf, after: vary(leaf, varying(after)), sums, added)
    return jax.lax.fori_loop(0, num_tiles, step, (results, sums))


def logits(hidden: Float[Array, "n D"], head: Float[Array, "V D"]) -> Float32[Array, "n V"]:
    return jnp.einsum("nd,vd->nv", hidden, head, preferred_element_type=jnp.float32)


def hidden_product(
    gradient: Float[Array, "n V"], head: Float[Array, "V D"], vocabulary: Vocabulary
) -> Float[Array, "n D"]:
    """In the dtype of `gradient`, summed over the whole vocabulary in float32."""
    product = jnp.einsum("nv,vd->nd", gradient, head, preferred_element_type=jnp.float32)
    if vocabulary.axis is not None:
        product = jax.lax.psum(product, vocabulary.axis)
    return product.astype(gradient.dtype)


def head_product(
    gradient: Float[Array, "n V"], hidden: Float[Array, "n D"], fresh: Bool[Array, " n"]
) -> Float32[Array, "V D"]:
    """Summed over the rows that are fresh."""
    hidden = jnp.where(fresh[:, None], hidden, 0.0)
    return jnp.einsum("nv,nd->vd", gradient, hidden, preferred_element_type=jnp.float32)


def times_weights(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The product, which is 0 where the weight is, whatever the value (NaN too)."""
    return jnp.where(weights == 0.0, 0.0, values * weights)
