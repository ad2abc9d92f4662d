# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The divergence of many tokens from hidden states, with a backward pass of its own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from stepalign_jax.objectives.divergence import (
    Divergence,
    Reading,
    TokenScores,
    read_logits,
    score_tokens,
)
from stepalign_jax.objectives.tiles import (
    check_tile,
    head_product,
    hidden_product,
    logits,
    walk_tiles,
)
from stepalign_jax.objectives.vocabulary import AnyMesh, Vocabulary, on_mesh


def tiled_divergence(
    solver_hidden: jax.Array,
    teacher_hidden: jax.Array,
    solver_head: jax.Array,
    teacher_head: jax.Array | None,
    tokens: jax.Array,
    *,
    token_weights: jax.Array,
    divergence: str,
    jsd_beta: float,
    loss_temperature: float,
    element_clip: float,
    top_k: int,
    token_tile: int,
    mesh: AnyMesh | None,
) -> tuple[jax.Array, TokenScores]:
    """Returns the weighted sum of N tokens' divergences, and their scores.

    The sum is what learns: `sum(token_weights * scores.divergence)` is differentiable with
    respect to the solver's hidden states and head, through the first result alone. Scores are
    constants.

    Alignment: row n of both hidden states predicts tokens[n].

    Args:
      solver_hidden: [N, D] after the final norm, N at least 1; differentiable.
      teacher_hidden: [N, D]; taken as constants.
      solver_head: [V, D]; differentiable, its gradient is summed over tiles in float32.
      teacher_head: [V, D], taken as constants; None if it is the solver's own, which is then
        read once per tile.
      tokens: [N] integers below V.
      token_weights: [N], taken as constants: a mask, or shares.
      divergence: one of DIVERGENCES.
      jsd_beta: the teacher's share in jsd; other divergences do not read it.
      loss_temperature: divides both logits in the divergence, and there alone. The public
        code that the paper builds on uses the sampling temperature; what the paper does is
        not known.
      element_clip: the largest term of one vocabulary entry; 0 is off.
      top_k: entries of the teacher that stay apart, the others being one; 0 keeps all apart.
      token_tile: the most tokens per tile (per device).
      mesh: the mesh that cuts tokens, head and vocabulary, or None for one device.

    Returns:
      A float32 scalar, and TokenScores of [N] float32. Where both rows of logits are equal,
      divergence and advantage are exactly 0 and so is the gradient.

    Raises:
      UserError: an unknown divergence, or a number outside its range.
    """
    named = Divergence(
        name=divergence,
        jsd_beta=jsd_beta,
        temperature=loss_temperature,
        element_clip=element_clip,
        top_k=top_k,
    )
    named.check(solver_head.shape[0])
    check_tile(token_tile)
    rows = (solver_hidden, teacher_hidden, tokens, token_weights.astype(jnp.float32))
    heads = (solver_head, None if teacher_head is solver_head else teacher_head)
    static: _Static = (named, token_tile, mesh)
    total, scores = _divergence(static, rows, heads)  # pyright: ignore[reportGeneralTypeIssues]
    return total, jax.lax.stop_gradient(scores)


_Static = tuple[Divergence, int, AnyMesh | None]  # what to compute, tokens per tile, mesh


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(static: _Static, rows: Any, heads: Any) -> tuple[jax.Array, TokenScores]:
    (scores, _), _ = _score_rows(static, rows, heads, hidden_learns=False, head_learns=False)
    return _weigh(rows, scores), scores


def _divergence_forward(static: _Static, rows: Any, heads: Any) -> Any:
    head_learns = heads[0].perturbed
    rows, heads = jax.tree.map(lambda primal: primal.value, (rows, heads), is_leaf=_is_primal)
    (scores, hidden_slopes), head_slopes = _score_rows(
        static, rows, heads, hidden_learns=True, head_learns=head_learns
    )
    # An empty array carries the head's dtype into the backward pass.
    kept = (hidden_slopes, head_slopes, jnp.zeros(0, heads[0].dtype))
    return (_weigh(rows, scores), scores), kept


def _divergence_backward(_static: _Static, kept: Any, cotangents: Any) -> Any:
    hidden_slopes, head_slopes, like_head = kept
    scale = cotangents[0]
    if isinstance(scale, SymbolicZero):
        return (None, None, None, None), (None, None)
    hidden = (scale * hidden_slopes.astype(jnp.float32)).astype(hidden_slopes.dtype)
    head = None if head_slopes is None else (scale * head_slopes).astype(like_head.dtype)
    return (hidden, None, None, None), (head, None)


_divergence.defvjp(_divergence_forward, _divergence_backward, symbolic_zeros=True)


def _weigh(rows: Any, scores: TokenScores) -> jax.Array:
    return jnp.sum(_times_weights(scores.divergence, rows[3]))


def _times_weights(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The product, which is 0 where the weight is, whatever the value."""
    return jnp.where(weights == 0.0, 0.0, values * weights)


def _score_rows(
    static: _Static, rows: Any, heads: Any, *, hidden_learns: bool, head_learns: bool
) -> Any:
    """Returns ((TokenScores [N], slopes [N, D] or None), head slopes [V, D] float32 or None).

    Slopes are those of the weighted sum.
    """
    divergence, token_tile, mesh = static

    def local(rows: Any, heads: Any, vocabulary: Vocabulary) -> Any:
        def score(tile: Any, fresh: jax.Array, head_slopes: Any) -> Any:
            solver, teacher, tokens, weights = tile
            read = functools.partial(
                read_logits, temperature=divergence.temperature, vocabulary=vocabulary
            )
            sides = _read_both(read, solver, teacher, *heads)
            scores, slopes = score_tokens(*sides, tokens, divergence, vocabulary)
            if not hidden_learns:
                return (scores, None), None
            slopes = _times_weights(slopes, weights[:, None]).astype(solver.dtype)
            if head_learns:
                head_slopes = head_slopes + head_product(slopes, solver, fresh)
            return (scores, hidden_product(slopes, heads[0], vocabulary)), head_slopes

        return walk_tiles(score, rows, heads[0] if head_learns else None, token_tile)

    solver_head, teacher_head = heads
    if teacher_head is not None:
        teacher_head = teacher_head.astype(rows[1].dtype)
    return on_mesh(mesh, local, rows, (solver_head.astype(rows[0].dtype), teacher_head))


def _read_both(
    read: Callable[[jax.Array], Reading],
    solver: jax.Array,
    teacher: jax.Array,
    solver_head: jax.Array,
    teacher_head: jax.Array | None,
) -> tuple[Reading, Reading]:
    """Solver's and teacher's readings, in one product if they share the head."""
    if teacher_head is not None:
        return read(logits(solver, solver_head)), read(logits(teacher, teacher_head))
    rows = jnp.concatenate([solver, teacher.astype(solver.dtype)])
    both = read(logits(rows, solver_head))
    n = len(solver)
    return jax.tree.map(lambda x: x[:n], both), jax.tree.map(lambda x: x[n:], both)


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")
