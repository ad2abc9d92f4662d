# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Divergences between teacher and solver on the rollout's tokens, over the whole vocabulary.

With s and t the log-probabilities of solver and teacher, `[..., V]`, and y the sampled token:

    forward_kl     sum_v exp(t) (t - s)                    KL(teacher || solver)
    reverse_kl     sum_v exp(s) (s - t)                    KL(solver || teacher)
    jsd            beta KL(teacher || m) + (1 - beta) KL(solver || m)
                   m = (1 - beta) solver + beta teacher
    sampled_token  -sg(t[y] - s[y]) s[y]                   reverse_kl's gradient, on average

The self-distillation loss is Eq. (3) of arXiv 2606.11173, minimised per token along the
solver's own rollout. The paper is reported (by readers of its full text) to train with
"forward KL"; that the words mean KL(teacher || solver) is inferred from the public code
that the paper builds on. The other three are options of that line of work.

Each formula is a function of normalised log-probabilities [..., V] that returns one float32
value per token, [...], never a mean; it is exactly 0 where both sides are equal. The teacher's
side is always under stop_gradient. Take first derivatives only.
"""

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stepalign_jax.base.errors import UserError

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "sampled_token")


class TokenScores(NamedTuple):
    """Scores of N tokens, each [N] float32.

    Attributes:
      divergence: the named divergence at the loss temperature; differentiable with respect
        to the solver's hidden states and head.
      advantage: log pi_teacher(y) - log pi_solver(y) at temperature 1; not differentiable.
      solver_logprobs: log pi_solver(y) at temperature 1; differentiable like divergence.
      teacher_logprobs: log pi_teacher(y) at temperature 1; not differentiable.
    """

    divergence: jax.Array
    advantage: jax.Array
    solver_logprobs: jax.Array
    teacher_logprobs: jax.Array


def check_divergence(divergence: str, *, jsd_beta: float) -> None:
    """Refuses a divergence that does not exist, or a jsd weight outside (0, 1).

    Raises:
      UserError: naming the nearest valid divergence, or the valid range.
    """
    if divergence not in DIVERGENCES:
        nearest = difflib.get_close_matches(divergence, DIVERGENCES, n=1, cutoff=0.0)[0]
        raise UserError(
            f"objective.divergence is {divergence!r}, which is none of "
            f"{', '.join(DIVERGENCES)}; did you mean {nearest!r}?"
        )
    if divergence == "jsd" and not 0.0 < jsd_beta < 1.0:
        raise UserError(
            f"objective.jsd_beta is {jsd_beta}, but jsd needs 0 < beta < 1; "
            "name forward_kl or reverse_kl for a one-sided divergence."
        )


def forward_kl(solver_logprobs: jax.Array, teacher_logprobs: jax.Array) -> jax.Array:
    """KL(teacher || solver) per token: sum_v exp(t) (t - s)."""
    solver, teacher = _prepare(solver_logprobs, teacher_logprobs)
    return jnp.sum(jnp.exp(teacher) * (teacher - solver), axis=-1)


def reverse_kl(solver_logprobs: jax.Array, teacher_logprobs: jax.Array) -> jax.Array:
    """KL(solver || teacher) per token: sum_v exp(s) (s - t).

    Its gradient is -E_{y ~ solver}[A(y) grad log solver(y)] with A(y) = t[y] - s[y].
    """
    solver, teacher = _prepare(solver_logprobs, teacher_logprobs)
    return jnp.sum(jnp.exp(solver) * (solver - teacher), axis=-1)


def jsd(solver_logprobs: jax.Array, teacher_logprobs: jax.Array, *, beta: float) -> jax.Array:
    """Weighted Jensen-Shannon divergence; beta is the teacher's share.

    beta KL(teacher || m) + (1 - beta) KL(solver || m) with m = (1 - beta) solver + beta
    teacher. Divided by beta it tends to forward_kl as beta tends to 0.

    Raises:
      UserError: beta is not strictly between 0 and 1.
    """
    check_divergence("jsd", jsd_beta=beta)
    solver, teacher = _prepare(solver_logprobs, teacher_logprobs)
    # m minimises the weighted sum of the two divergences, so its own derivative drops out
    # (and the one of _log_mixture would be wrong where solver and teacher tie).
    mixture = jax.lax.stop_gradient(_log_mixture(solver, teacher, beta))
    from_teacher = jnp.sum(jnp.exp(teacher) * (teacher - mixture), axis=-1)
    return beta * from_teacher + (1.0 - beta) * reverse_kl(solver, mixture)


def sampled_token(
    solver_logprobs: jax.Array, teacher_logprobs: jax.Array, tokens: jax.Array
) -> jax.Array:
    """The one-sample form: -sg(t[y] - s[y]) s[y] per token.

    Its value means nothing by itself. Its gradient is that of a policy gradient whose
    advantage is the per-token A = t[y] - s[y]; averaged over y ~ solver it is reverse_kl's.
    `tokens` [...] are the sampled y.
    """
    solver, teacher = _prepare(solver_logprobs, teacher_logprobs)
    solver_picked = _pick(solver, tokens)
    advantage = jax.lax.stop_gradient(_pick(teacher, tokens) - solver_picked)
    return -advantage * solver_picked


def tiled_divergence(
    solver_hidden: jax.Array,
    teacher_hidden: jax.Array,
    solver_head: jax.Array,
    teacher_head: jax.Array,
    tokens: jax.Array,
    *,
    divergence: str,
    jsd_beta: float,
    loss_temperature: float,
    token_tile: int,
) -> TokenScores:
    """Scores of N tokens, with the logits of at most `token_tile` tokens in memory at once.

    Alignment: row n of both hidden states predicts tokens[n]. The forward pass takes two head
    products. The backward pass computes both again, and then one for the hidden states and one
    more if the head trains. Logits are products in the hidden state's own dtype (the head is
    cast to it) summed in float32; everything after them is float32.

    Args:
      solver_hidden: [N, D] after the final norm; differentiable.
      teacher_hidden: [N, D]; taken as constants.
      solver_head: [V, D]; differentiable, its gradient is summed over tiles in float32.
      teacher_head: [V, D]; taken as constants, also where it is the solver's own array.
      tokens: [N] integers below V.
      divergence: one of DIVERGENCES.
      jsd_beta: the teacher's share in jsd; other divergences do not read it.
      loss_temperature: divides both logits in the divergence, and there alone. The public
        code that the paper builds on uses the sampling temperature; what the paper does is
        not known.
      token_tile: number of tokens per tile; N is padded up to a multiple of it.

    Returns:
      TokenScores of [N] float32, which says what is differentiable. Where both rows of logits
      are equal, divergence and advantage are exactly 0 and so is divergence's gradient.

    Raises:
      UserError: an unknown divergence, or a number outside its range.
    """
    check_divergence(divergence, jsd_beta=jsd_beta)
    _check_temperature("objective.loss_temperature", loss_temperature)
    solver_head = solver_head.astype(jnp.float32)  # so that its gradient sums in float32
    teacher_head = jax.lax.stop_gradient(teacher_head)

    def score_tile(solver: jax.Array, teacher: jax.Array, picked: jax.Array) -> TokenScores:
        solver_logits = _head_logits(solver, solver_head)
        teacher_logits = _head_logits(teacher, teacher_head)
        solver_logprobs = _picked_logprobs(solver_logits, picked)
        teacher_logprobs = _picked_logprobs(teacher_logits, picked)
        advantage = jax.lax.stop_gradient(teacher_logprobs - solver_logprobs)
        values = _named_divergence(
            divergence,
            jax.nn.log_softmax(solver_logits / loss_temperature, axis=-1),
            jax.nn.log_softmax(teacher_logits / loss_temperature, axis=-1),
            picked,
            jsd_beta=jsd_beta,
        )
        # The compiler may sum the two softmaxes in different orders. Equal logits must give 0
        # on every backend, and a gradient of 0, not the last bit of that difference.
        same = jnp.all(solver_logits == teacher_logits, axis=-1)
        return TokenScores(
            divergence=jnp.where(same, 0.0, values),
            advantage=jnp.where(same, 0.0, advantage),
            solver_logprobs=solver_logprobs,
            teacher_logprobs=teacher_logprobs,
        )

    rows = (solver_hidden, jax.lax.stop_gradient(teacher_hidden), tokens)
    return _map_tiles(score_tile, rows, token_tile)


def tiled_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    temperature: float,
    token_tile: int,
) -> jax.Array:
    """log pi(tokens[n]) from row n of the hidden states; tiled like tiled_divergence.

    Args:
      hidden: [N, D] after the final norm; differentiable.
      head: [V, D]; differentiable, its gradient is summed over tiles in float32.
      tokens: [N] integers below V.
      temperature: divides the logits.
      token_tile: number of tokens whose logits exist at once.

    Returns:
      [N] float32.

    Raises:
      UserError: temperature is not positive and finite, or token_tile is below 1.
    """
    _check_temperature("temperature", temperature)
    head = head.astype(jnp.float32)

    def score_tile(rows: jax.Array, picked: jax.Array) -> jax.Array:
        return _picked_logprobs(_head_logits(rows, head) / temperature, picked)

    return _map_tiles(score_tile, (hidden, tokens), token_tile)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the values whose mask is True: one float32 sum over one integer count.

    Args:
      values: [...]; what a masked entry holds never reaches the result, not even a NaN.
      mask: [...] of the same shape; True (or nonzero) counts.

    Returns:
      float32 scalar; 0, with a gradient of 0, where nothing counts.
    """
    counts = mask.astype(bool)
    total = jnp.sum(jnp.where(counts, values.astype(jnp.float32), 0.0))
    return total / jnp.maximum(jnp.sum(counts, dtype=jnp.int32), 1)


def _named_divergence(
    name: str, solver: jax.Array, teacher: jax.Array, tokens: jax.Array, *, jsd_beta: float
) -> jax.Array:
    match name:
        case "forward_kl":
            return forward_kl(solver, teacher)
        case "reverse_kl":
            return reverse_kl(solver, teacher)
        case "jsd":
            return jsd(solver, teacher, beta=jsd_beta)
        case _:  # check_divergence has let nothing else through
            return sampled_token(solver, teacher, tokens)


def _prepare(solver: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both in float32, the teacher as a constant."""
    teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    return solver.astype(jnp.float32), teacher


def _log_mixture(solver: jax.Array, teacher: jax.Array, beta: float) -> jax.Array:
    # Written from the larger of the two, so that nothing overflows and equal arguments are
    # returned bit for bit (logaddexp of shifted arguments would round).
    gap = solver - teacher
    share_of_smaller = jnp.where(gap > 0, beta, 1.0 - beta)
    excess = jnp.log1p(share_of_smaller * jnp.expm1(-jnp.abs(gap)))
    return jnp.maximum(solver, teacher) + excess


def _head_logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return jnp.einsum(
        "nd,vd->nv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
    )


def _picked_logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return _pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def _pick(values: jax.Array, tokens: jax.Array) -> jax.Array:
    # A masked sum and not a gather: it stays local when the vocabulary is sharded.
    ids = jax.lax.broadcasted_iota(tokens.dtype, values.shape, values.ndim - 1)
    return jnp.sum(jnp.where(ids == tokens[..., None], values, 0.0), axis=-1)


def _map_tiles(score_tile: Callable, rows: tuple[jax.Array, ...], token_tile: int) -> Any:
    """Applies score_tile to tiles of the rows, one after the other; [N] out for [N, ...] in."""
    if token_tile < 1:
        raise UserError(
            f"objective.token_tile is {token_tile}; give at least 1 token per tile."
        )
    num_rows = rows[0].shape[0]
    tile = max(1, min(token_tile, num_rows))
    num_tiles = -(-num_rows // tile)

    # Row n goes to tile n mod num_tiles: a batch that is sharded over devices then has rows of
    # every device in every tile, and no row moves. Tiles of neighbours would lie on one device.
    def split(array: jax.Array) -> jax.Array:
        widths = [(0, num_tiles * tile - num_rows)] + [(0, 0)] * (array.ndim - 1)
        padded = jnp.pad(array, widths)
        return padded.reshape(tile, num_tiles, *array.shape[1:]).swapaxes(0, 1)

    def join(scores: jax.Array) -> jax.Array:
        return scores.swapaxes(0, 1).reshape(-1)[:num_rows]

    # Without the checkpoint the scan would keep every tile's logits for the backward pass. Its
    # barrier (prevent_cse) is not needed: the two passes of a scan are loops of their own.
    body = jax.checkpoint(score_tile, prevent_cse=False)
    _, scores = jax.lax.scan(
        lambda _, tiles: (None, body(*tiles)), None, tuple(map(split, rows))
    )
    return jax.tree.map(join, scores)


def _check_temperature(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise UserError(f"{name} is {value}, but it divides logits; give a positive number.")
