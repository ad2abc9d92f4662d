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
from stepalign_jax.objectives.vocabulary import AnyMesh, Vocabulary, on_mesh

_Static = tuple[int, AnyMesh | None]  # tokens per tile, mesh


def tiled_logprobs(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    tokens: Int[Array, " N"],
    *,
    token_tile: int,
    mesh: AnyMesh | None,
) -> Float32[Array, " N"]:
    """log pi(tokens[n]) at temperature 1 from row n of the hidden states; differentiable.

    Args:
      hidden: after the final norm, N at least 1; differentiable.
      head: differentiable, its gradient is summed over tiles in float32.
      tokens: below V.
      token_tile: the most tokens whose logits exist at once (per device).
      mesh: the mesh that cuts tokens, head and vocabulary, or None for one device.
    """
    return _logprobs((token_tile, mesh), hidden, head, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(
    static: _Static, hidden: jax.Array, head: jax.Array, tokens: jax.Array
) -> jax.Array:
    (logprobs, _), _ = _pick_rows(static, (hidden, tokens), head, trains=False)
    return logprobs


def _logprobs_forward(static: _Static, hidden: Any, head: Any, tokens: Any) -> Any:
    rows = (hidden.value, tokens.value)
    (logprobs, gradient), _ = _pick_rows(static, rows, head.value, trains=True)
    return logprobs, (gradient, (rows, head.value) if head.perturbed else None)


def _logprobs_backward(static: _Static, kept: Any, cotangent: Any) -> Any:
    gradient, inputs = kept
    if isinstance(cotangent, SymbolicZero):
        return None, None, None
    hidden = (cotangent[:, None] * gradient.astype(jnp.float32)).astype(gradient.dtype)
    if inputs is None:
        return hidden, None, None
    rows, head = inputs
    return hidden, _head_gradient(static, (*rows, cotangent), head), None


_logprobs.defvjp(_logprobs_forward, _logprobs_backward, symbolic_zeros=True)


def _pick_rows(static: _Static, rows: Any, head: jax.Array, *, trains: bool) -> Any:
    """Returns ((log-probabilities [N], their gradients [N, D] or None), None)."""
    token_tile, mesh = static

    def local(rows: Any, head: jax.Array, vocabulary: Vocabulary) -> Any:
        def score(tile: Any, _fresh: jax.Array, _sums: None) -> Any:
            hidden, tokens = tile
            logprobs, gradient = _all_logprobs(hidden, head, tokens, vocabulary)
            picked = vocabulary.pick(logprobs, tokens)
            if not trains:
                return (picked, None), None
            product = hidden_product(gradient.astype(hidden.dtype), head, vocabulary)
            return (picked, product), None

        return walk_tiles(score, rows, None, token_tile)

    return on_mesh(mesh, local, rows, head.astype(rows[0].dtype))


def _head_gradient(static: _Static, rows: Any, head: jax.Array) -> jax.Array:
    """[V, D]: the gradient by the head of the sum of log-probabilities times rows[2]."""
    token_tile, mesh = static

    def local(rows: Any, head: jax.Array, vocabulary: Vocabulary) -> Any:
        def add(tile: Any, fresh: jax.Array, sums: jax.Array) -> Any:
            hidden, tokens, cotangent = tile
            _, gradient = _all_logprobs(hidden, head, tokens, vocabulary)
            gradient = (gradient * cotangent[:, None]).astype(hidden.dtype)
            return None, sums + head_product(gradient, hidden, fresh)

        return walk_tiles(add, rows, head, token_tile)

    _, sums = on_mesh(mesh, local, rows, head.astype(rows[0].dtype))
    return sums.astype(head.dtype)


def _all_logprobs(
    hidden: Float[Array, "n D"],
    head: Float[Array, "V D"],
    tokens: Int[Array, " n"],
    vocabulary: Vocabulary,
) -> tuple[Float32[Array, "n V"], Float32[Array, "n V"]]:
    """Log-probabilities, and the gradient of each row's token by its logits."""
    logprobs = log_softmax(logits(hidden, head), vocabulary)
    return logprobs, vocabulary.holds(tokens, logprobs) - jnp.exp(logprobs)
