# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of many tokens from hidden states, with a backward pass of its own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from stepalign_jax.objectives.divergence import check_temperature, log_softmax
from stepalign_jax.objectives.tiles import (
    check_tile,
    head_product,
    hidden_product,
    logits,
    walk_tiles,
)
from stepalign_jax.objectives.vocabulary import AnyMesh, Vocabulary, on_mesh

_Static = tuple[float, int, AnyMesh | None]  # temperature, tokens per tile, mesh


def tiled_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    temperature: float,
    token_tile: int,
    mesh: AnyMesh | None,
) -> jax.Array:
    """log pi(tokens[n]) from row n of the hidden states; tiled like tiled_divergence.

    Args:
      hidden: [N, D] after the final norm, N at least 1; differentiable.
      head: [V, D]; differentiable, its gradient is summed over tiles in float32.
      tokens: [N] integers below V.
      temperature: divides the logits.
      token_tile: the most tokens whose logits exist at once (per device).
      mesh: the mesh that cuts tokens, head and vocabulary, or None for one device.

    Returns:
      [N] float32, differentiable.

    Raises:
      UserError: temperature is not positive and finite, or token_tile is below 1.
    """
    check_temperature("temperature", temperature)
    check_tile(token_tile)
    static: _Static = (temperature, token_tile, mesh)
    return _logprobs(static, hidden, head, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(
    static: _Static, hidden: jax.Array, head: jax.Array, tokens: jax.Array
) -> jax.Array:
    (logprobs, _), _ = _pick_rows(static, (hidden, tokens), head, learns=False)
    return logprobs


def _logprobs_forward(static: _Static, hidden: Any, head: Any, tokens: Any) -> Any:
    rows = (hidden.value, tokens.value)
    (logprobs, slopes), _ = _pick_rows(static, rows, head.value, learns=True)
    return logprobs, (slopes, (rows, head.value) if head.perturbed else None)


def _logprobs_backward(static: _Static, kept: Any, cotangent: Any) -> Any:
    slopes, inputs = kept
    if isinstance(cotangent, SymbolicZero):
        return None, None, None
    hidden = (cotangent[:, None] * slopes.astype(jnp.float32)).astype(slopes.dtype)
    if inputs is None:
        return hidden, None, None
    rows, head = inputs
    return hidden, _head_slopes(static, (*rows, cotangent), head), None


_logprobs.defvjp(_logprobs_forward, _logprobs_backward, symbolic_zeros=True)


def _pick_rows(static: _Static, rows: Any, head: jax.Array, *, learns: bool) -> Any:
    """Returns ((log-probabilities [N], their slopes [N, D] or None), None)."""
    temperature, token_tile, mesh = static

    def local(rows: Any, head: jax.Array, vocabulary: Vocabulary) -> Any:
        def score(tile: Any, _fresh: jax.Array, _sums: None) -> Any:
            hidden, tokens = tile
            logprobs = log_softmax(logits(hidden, head) / temperature, vocabulary)
            picked = vocabulary.pick(logprobs, tokens)
            if not learns:
                return (picked, None), None
            slopes = _picked_slopes(logprobs, tokens, vocabulary) / temperature
            return (
                picked,
                hidden_product(slopes.astype(hidden.dtype), head, vocabulary),
            ), None

        return walk_tiles(score, rows, None, token_tile)

    return on_mesh(mesh, local, rows, head.astype(rows[0].dtype))


def _head_slopes(static: _Static, rows: Any, head: jax.Array) -> jax.Array:
    """[V, D]: the gradient by the head of the sum of log-probabilities times rows[2]."""
    temperature, token_tile, mesh = static

    def local(rows: Any, head: jax.Array, vocabulary: Vocabulary) -> Any:
        def add(tile: Any, fresh: jax.Array, sums: jax.Array) -> Any:
            hidden, tokens, weights = tile
            logprobs = log_softmax(logits(hidden, head) / temperature, vocabulary)
            slopes = _picked_slopes(logprobs, tokens, vocabulary) / temperature
            slopes = (slopes * weights[:, None]).astype(hidden.dtype)
            return None, sums + head_product(slopes, hidden, fresh)

        return walk_tiles(add, rows, head, token_tile)

    _, sums = on_mesh(mesh, local, rows, head.astype(rows[0].dtype))
    return sums.astype(head.dtype)


def _picked_slopes(logprobs: jax.Array, tokens: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    return vocabulary.holds(tokens, logprobs) - jnp.exp(logprobs)
