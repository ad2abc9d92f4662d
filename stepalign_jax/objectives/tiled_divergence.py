# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The divergence of many tokens from hidden states, with a backward pass of its own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Float32, Int, Shaped

from stepalign_jax.config.learning import DivergenceConfig
from stepalign_jax.objectives.divergence import (
    LossScores,
    Reading,
    TokenScores,
    check_top_k,
    entropy,
    loss_and_gradient,
    read_logits,
    token_scores,
)
from stepalign_jax.objectives.tiles import (
    head_product,
    hidden_product,
    logits,
    times_weights,
    walk_tiles,
)
from stepalign_jax.objectives.vocabulary import (
    Vocabulary,
    Where,
    add_over_tokens,
    aligned,
    on_mesh,
    size_of_vocabulary,
)


def tiled_divergence(
    solver_hidden: Float[Array, "N D"],
    teacher_hidden: Float[Array, "N D"],
    solver_head: Float[Array, "V D"],
    teacher_head: Float[Array, "V D"] | None,
    tokens: Int[Array, " N"],
    *,
    token_weights: Shaped[Array, " N"],
    divergence: DivergenceConfig,
    mesh: Where,
) -> tuple[Float32[Array, ""], LossScores]:
    """Returns the weighted sum of N tokens' divergences, and their scores.

    The sum is the loss: `sum(token_weights * scores.loss)` is differentiable with respect to
    the solver's hidden states and head, through the first result alone. Scores are constants.

    Alignment: row n of both hidden states predicts tokens[n].

    Args:
      solver_hidden: after the final norm, N at least 1; differentiable.
      teacher_hidden: taken as constants.
      solver_head: differentiable, its gradient is summed over tiles in float32.
      teacher_head: taken as constants; None if it is the solver's own, which is then read
        once per tile.
      tokens: below V.
      token_weights: taken as constants: a mask, or shares.
      divergence: which one. `loss_temperature` divides both logits in the divergence, and
        there alone; `token_tile` is the most tokens whose logits exist at once (per device).
      mesh: the mesh that cuts tokens, head and vocabulary, or None for one device; a `Cut` of
        axes by their names, under pmap and shard_map too (docs/divergence.md).

    Returns:
      The sum, and LossScores of [N]. Where both rows of logits are equal, divergence and
      advantage are exactly 0 and so is the gradient.

    Raises:
      UserError: `top_k` is not below V.
    """
    check_top_k(divergence, size_of_vocabulary(mesh, solver_head))
    rows = (solver_hidden, teacher_hidden, tokens, token_weights.astype(jnp.float32))
    heads = (solver_head, None if teacher_head is solver_head else teacher_head)
    rows, heads = aligned(mesh, rows, heads)
    static: _Static = (divergence, mesh)
    total, scores = _divergence(static, rows, heads)  # pyright: ignore[reportGeneralTypeIssues]
    return total, jax.lax.stop_gradient(scores)


def tiled_scores(
    solver_hidden: Float[Array, "N D"],
    teacher_hidden: Float[Array, "N D"],
    solver_head: Float[Array, "V D"],
    teacher_head: Float[Array, "V D"] | None,
    tokens: Int[Array, " N"],
    *,
    divergence: DivergenceConfig,
    num_top: int,
    mesh: Where,
) -> TokenScores:
    """Returns all scores [N] of the tokens; forward only, for analysis.

    Arguments are those of `tiled_divergence`, and so is what it raises. `num_top`, at most V,
    is how many of each side's likeliest entries come with a token.
    """
    check_top_k(divergence, size_of_vocabulary(mesh, solver_head))

    def local(rows: Any, heads: Any, vocabulary: Vocabulary) -> Any:
        def score(tile: Any, _fresh: jax.Array, _sums: None) -> Any:
            solver, teacher, tokens = tile
            sides = _read_both(divergence, vocabulary, solver, teacher, *heads)
            scores = token_scores(*sides, tokens, divergence, vocabulary, num_top=num_top)
            return scores, None

        return walk_tiles(score, rows, None, divergence.token_tile)

    rows = (solver_hidden, teacher_hidden, tokens)
    heads = (solver_head, None if teacher_head is solver_head else teacher_head)
    return on_mesh(mesh, local, rows, _cast_heads(rows, heads))[0]


def tiled_entropies(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    *,
    token_tile: int,
    mesh: Where,
) -> Float32[Array, " N"]:
    """Returns the entropies in nats, at temperature 1, of what rows of hidden states predict.

    Forward only: one head product, and no gradient. Arguments as in `tiled_divergence`.
    """

    def local(rows: Any, head: jax.Array, vocabulary: Vocabulary) -> Any:
        def score(tile: Any, _fresh: jax.Array, _sums: None) -> Any:
            read = read_logits(logits(tile[0], head), 1.0, vocabulary)
            return entropy(read, vocabulary), None

        return walk_tiles(score, rows, None, token_tile)

    hidden, head = jax.lax.stop_gradient((hidden, head))
    return on_mesh(mesh, local, (hidden,), head.astype(hidden.dtype))[0]


_Static = tuple[DivergenceConfig, Where]  # what to compute, and where


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(static: _Static, rows: Any, heads: Any) -> tuple[jax.Array, LossScores]:
    (scores, _), _ = _walk(static, rows, heads, hidden_trains=False, head_trains=False)
    return _weigh(static, rows, scores), scores


def _divergence_forward(static: _Static, rows: Any, heads: Any) -> Any:
    head_trains = heads[0].perturbed
    rows, heads = jax.tree.map(lambda primal: primal.value, (rows, heads), is_leaf=_is_primal)
    (scores, hidden_gradient), head_gradient = _walk(
        static, rows, heads, hidden_trains=True, head_trains=head_trains
    )
    # An empty array carries the head's dtype into the backward pass.
    kept = (hidden_gradient, head_gradient, jnp.zeros(0, heads[0].dtype))
    return (_weigh(static, rows, scores), scores), kept


def _divergence_backward(_static: _Static, kept: Any, cotangents: Any) -> Any:
    hidden_gradient, head_gradient, like_head = kept
    scale = cotangents[0]
    if isinstance(scale, SymbolicZero):
        return (None, None, None, None), (None, None)
    # The sum's cotangent is one number, so the gradients formed on the way forward only scale.
    hidden = (scale * hidden_gradient.astype(jnp.float32)).astype(hidden_gradient.dtype)
    head = None if head_gradient is None else (scale * head_gradient).astype(like_head.dtype)
    return (hidden, None, None, None), (head, None)


_divergence.defvjp(_divergence_forward, _divergence_backward, symbolic_zeros=True)


def _weigh(static: _Static, rows: Any, scores: LossScores) -> jax.Array:
    return add_over_tokens(static[1], jnp.sum(times_weights(scores.loss, rows[3])))


def _walk(
    static: _Static, rows: Any, heads: Any, *, hidden_trains: bool, head_trains: bool
) -> Any:
    """Returns ((LossScores [N], gradient [N, D] or None), head gradient [V, D] or None).

    Gradients are those of the weighted sum; the head's is float32.
    """
    divergence, mesh = static

    def local(rows: Any, heads: Any, vocabulary: Vocabulary) -> Any:
        def score(tile: Any, fresh: jax.Array, head_gradient: Any) -> Any:
            solver, teacher, tokens, weights = tile
            sides = _read_both(divergence, vocabulary, solver, teacher, *heads)
            scores, gradient = loss_and_gradient(*sides, tokens, divergence, vocabulary)
            if not hidden_trains:
                return (scores, None), None
            gradient = times_weights(gradient, weights[:, None]).astype(solver.dtype)
            if head_trains:
                head_gradient = head_gradient + head_product(gradient, solver, fresh)
            return (scores, hidden_product(gradient, heads[0], vocabulary)), head_gradient

        return walk_tiles(score, rows, heads[0] if head_trains else None, divergence.token_tile)

    return on_mesh(mesh, local, rows, _cast_heads(rows, heads))


def _cast_heads(rows: Any, heads: Any) -> tuple[jax.Array, jax.Array | None]:
    """Each head in the dtype of its side's hidden states."""
    solver, teacher = heads
    cast = None if teacher is None else teacher.astype(rows[1].dtype)
    return solver.astype(rows[0].dtype), cast


def _read_both(
    divergence: DivergenceConfig,
    vocabulary: Vocabulary,
    solver: Float[Array, "n D"],
    teacher: Float[Array, "n D"],
    solver_head: Float[Array, "V D"],
    teacher_head: Float[Array, "V D"] | None,
) -> tuple[Reading, Reading]:
    """Solver's and teacher's readings, in one product if they share the head."""
    read: Callable[[jax.Array], Reading] = functools.partial(
        read_logits, temperature=divergence.loss_temperature, vocabulary=vocabulary
    )
    if teacher_head is not None:
        return read(logits(solver, solver_head)), read(logits(teacher, teacher_head))
    rows = jnp.concatenate([solver, teacher.astype(solver.dtype)])
    both = read(logits(rows, solver_head))
    n = len(solver)
    return jax.tree.map(lambda x: x[:n], both), jax.tree.map(lambda x: x[n:], both)


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")
