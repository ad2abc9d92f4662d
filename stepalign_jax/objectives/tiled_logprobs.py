# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of many tokens from hidden states, with a backward pass of its own.

It is not `tiled_divergence`'s: there the loss is a weighted sum whose weights are known on the
way forward; here it is any function of the log-probabilities, so a number per token comes back.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Float32, Int

from stepalign_jax.objectives.divergence import log_softmax
from stepalign_jax.objectives.tiles import head_product, hidden_product, logits, walk_tiles
from stepalign_jax.objectives.vocabulary import Vocabulary, Where, aligned, on_mesh

_Static = tuple[float, int, Where]  # temperature, tokens per tile, mesh


def tiled_logprobs(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    tokens: Int[Array, " N"],
    *,
    temperature: float,
    token_tile: int,
    mesh: Where,
) -> tuple[Float32[Array, " N"], Float32[Array, " N"]]:
    """log pi(tokens[n]) from row n of the hidden states, at a temperature and at 1.

    Args:
      hidden: after the final norm, N at least 1; differentiable.
      head: differentiable, its gradient is summed over tiles in float32.
      tokens: below V.
      temperature: positive, divides the logits.
      token_tile: the most tokens whose logits exist at once (per device).
      mesh: as in `tiled_divergence`.

    Returns:
      Log-probabilities at `temperature`, differentiable; and at 1, as constants.
    """
    (hidden, tokens), head = aligned(mesh, (hidden, tokens), head)
    return _logprobs((temperature, token_tile, mesh), hidden, head, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(
    static: _Static, hidden: jax.Array, head: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    (*logprobs, _), _ = _pick_rows(static, (hidden, tokens), head, trains=False)
    return tuple(logprobs)


def _logprobs_forward(static: _Static, hidden: Any, head: Any, tokens: Any) -> Any:
    rows = (hidden.value, tokens.value)
    (*logprobs, gradient), _ = _pick_rows(static, rows, head.value, trains=True)
    return tuple(logprobs), (gradient, (rows, head.value) if head.perturbed else None)


def _logprobs_backward(static: _Static, kept: Any, cotangents: Any) -> Any:
    (gradient, inputs), (cotangent, _) = kept, cotangents
    if isinstance(cotangent, SymbolicZero):
        return None, None, None
    hidden = (cotangent[:, None] * gradient.astype(jnp.float32)).astype(gradient.dtype)
    if inputs is None:
        return hidden, None, None
    rows, head = inputs
    return hidden, _head_gradient(static, (*rows, cotangent), head), None


_logprobs.defvjp(_logprobs_forward, _logprobs_backward, symbolic_zeros=True)


def _pick_rows(static: _Static, rows: Any, head: jax.Array, *, trains: bool) -> Any:
    """Returns ((the two log-probabilities [N], gradients [N, D] or None), None)."""
    temperature, token_tile, mesh = static

    def local(rows: Any, head: jax.Array, vocabulary: Vocabulary) -> Any:
        def score(tile: Any, _fresh: jax.Array, _sums: None) -> Any:
            hidden, tokens = tile
            plain = logits(hidden, head)
            scaled = plain if temperature == 1 else plain / temperature
            logprobs = log_softmax(scaled, vocabulary)
            picked = vocabulary.pick(logprobs, tokens)
            at_one = picked
            if temperature != 1:
                at_one = vocabulary.pick(plain, tokens) - vocabulary.logsumexp(plain)
            if not trains:
                return (picked, at_one, None), None
            gradient = _by_logits(logprobs, tokens, vocabulary) / temperature
            product = hidden_product(gradient.astype(hidden.dtype), head, vocabulary)
            return (picked, at_one, product), None

        return walk_tiles(score, rows, None, token_tile)

    return on_mesh(mesh, local, rows, head.astype(rows[0].dtype))


def _head_gradient(static: _Static, rows: Any, head: jax.Array) -> jax.Array:
    """[V, D]: the gradient by the head of the sum of log-probabilities times rows[2]."""
    temperature, token_tile, mesh = static

    def local(rows: Any, head: jax.Array, vocabulary: Vocabulary) -> Any:
        def add(tile: Any, fresh: jax.Array, sums: jax.Array) -> Any:
            hidden, tokens, cotangent = tile
            logprobs = log_softmax(logits(hidden, head) / temperature, vocabulary)
            gradient = _by_logits(logprobs, tokens, vocabulary) / temperature
            gradient = (gradient * cotangent[:, None]).astype(hidden.dtype)
            return None, sums + head_product(gradient, hidden, fresh)

        return walk_tiles(add, rows, head, token_tile)

    _, sums = on_mesh(mesh, local, rows, head.astype(rows[0].dtype))
    return sums.astype(head.dtype)


def _by_logits(
    logprobs: Float32[Array, "n V"], tokens: Int[Array, " n"], vocabulary: Vocabulary
) -> Float32[Array, "n V"]:
    """The gradient of each row's own log-probability by what the softmax was taken of."""
    return vocabulary.holds(tokens, logprobs) - jnp.exp(logprobs)
