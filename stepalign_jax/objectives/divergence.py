# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Divergences between teacher and solver per token, over the whole vocabulary, with gradients.

With s and t the log-probabilities of solver and teacher, p = exp(s), q = exp(t), and y the
sampled token, a divergence is a sum of one term per vocabulary entry v. Beside it stands the
term's derivative c'_v = d c_v / d s_v, from which the gradient follows:

    class          term c_v                                derivative c'_v
    ForwardKl      q (t - s)          KL(teacher||solver)  -q
    ReverseKl      p (s - t)          KL(solver||teacher)  p (s - t + 1)
    Jsd            b q (t - m) + (1 - b) p (s - m)         (1 - b) p (s - m)
                   m = log((1 - b) p + b q), b = beta
    SampledToken   -sg(t - s) s at y, 0 elsewhere          -(t - s) at y, 0 elsewhere

The value of SampledToken means nothing by itself; its gradient is that of a policy gradient
with the advantage t[y] - s[y], and averaged over y ~ solver it is ReverseKl's.

    element_clip > 0   each term becomes min(c_v, element_clip); a clipped one has derivative 0.
                       Terms below 0 stay, so a clipped divergence may be below 0.
    top_k > 0          the vocabulary becomes the teacher's k most probable entries (more if
                       they tie with the k-th) and one entry for all others together.

For logits z with s = log_softmax(z / T), T = loss_temperature, the gradient is
d/dz_v = (c'_v - p_v sum_w c'_w) / T. The teacher's side is a constant.

The self-distillation loss is Eq. (3) of arXiv 2606.11173, minimised per token along the
solver's own rollout. The paper is reported (by readers of its full text) to train with
"forward KL"; that the words mean KL(teacher || solver) is inferred from the public code
that the paper builds on, as is the clip (0.05 there), on which the paper is silent.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.learning import (
    DivergenceConfig,
    ForwardKl,
    Jsd,
    ReverseKl,
    SampledToken,
    VocabularyDivergence,
)
from stepalign_jax.objectives.vocabulary import Vocabulary

_NEVER = -1e30  # the log of a probability of 0 that may be subtracted from itself


class LossScores(NamedTuple):
    """What an update reports of its tokens; constants.

    Attributes:
      loss: the token's loss before its weight: a divergence, or GRPO's surrogate.
      advantage: log pi_teacher(y) - log pi_solver(y) at temperature 1; of GRPO the rollout's.
      solver_logprobs: log pi_solver(y) at temperature 1.
    """

    loss: Float32[Array, "*shape"]
    advantage: Float32[Array, "*shape"]
    solver_logprobs: Float32[Array, "*shape"]


class TokenScores(NamedTuple):
    """What a forward-only pass says of tokens.

    Attributes:
      divergence: the divergence at the loss temperature.
      advantage: log pi_teacher(y) - log pi_solver(y) at temperature 1.
      solver_logprobs: log pi_solver(y) at temperature 1.
      teacher_logprobs: log pi_teacher(y) at temperature 1.
      solver_entropy: -sum_v p_v log p_v in nats, at temperature 1.
      teacher_entropy: the teacher's.
      solver_top_ids: the solver's K likeliest entries, likeliest first, the lower id if equal.
      solver_top_logprobs: theirs, at temperature 1.
      teacher_top_ids: the teacher's.
      teacher_top_logprobs: theirs.
    """

    divergence: Float32[Array, "*shape"]
    advantage: Float32[Array, "*shape"]
    solver_logprobs: Float32[Array, "*shape"]
    teacher_logprobs: Float32[Array, "*shape"]
    solver_entropy: Float32[Array, "*shape"]
    teacher_entropy: Float32[Array, "*shape"]
    solver_top_ids: Int32[Array, "*shape K"]
    solver_top_logprobs: Float32[Array, "*shape K"]
    teacher_top_ids: Int32[Array, "*shape K"]
    teacher_top_logprobs: Float32[Array, "*shape K"]


class Reading(NamedTuple):
    """What a side says about n tokens, before it is known which tokens they are.

    Attributes:
      logits: of the vocabulary, or of a device's slice of it.
      logsumexp: at temperature 1.
      logs: log-probabilities at the loss temperature.
      probs: their exponentials.
    """

    logits: Float32[Array, "n V"]
    logsumexp: Float32[Array, " n"]
    logs: Float32[Array, "n V"]
    probs: Float32[Array, "n V"]


def check_top_k(divergence: DivergenceConfig, vocab_size: int) -> None:
    """Refuses a `top_k` that leaves no entry for the tail; only the model knows V.

    Raises:
      UserError: with the largest `top_k` of this vocabulary.
    """
    if isinstance(divergence, VocabularyDivergence) and divergence.top_k >= vocab_size:
        raise UserError(
            f"objective.top_k is {divergence.top_k}, but the vocabulary has {vocab_size} "
            f"entries: give at most {vocab_size - 1}, or 0 to take them all."
        )


def read_logits(
    logits: Float32[Array, "n V"], temperature: float, vocabulary: Vocabulary
) -> Reading:
    """The reading of logits, for a divergence at `temperature`."""
    largest = vocabulary.max(logits)
    shifted = logits - largest[:, None]
    weights, cooled = jnp.exp(shifted), jnp.exp(shifted / temperature)
    total, cooled_total = vocabulary.sum(weights), vocabulary.sum(cooled)
    return Reading(
        logits=logits,
        logsumexp=largest + jnp.log(total),
        logs=shifted / temperature - jnp.log(cooled_total)[:, None],
        probs=cooled * (1.0 / cooled_total)[:, None],
    )


def loss_and_gradient(
    solver: Reading,
    teacher: Reading,
    tokens: Int[Array, " n"],
    divergence: DivergenceConfig,
    vocabulary: Vocabulary,
) -> tuple[LossScores, Float32[Array, "n V"]]:
    """Returns the scores of n tokens and the divergence's gradient by the solver's logits.

    Where both rows of logits are equal, divergence, advantage and gradient are exactly 0.

    Args:
      solver: its reading at the divergence's temperature.
      teacher: likewise.
      tokens: counted over the whole vocabulary.
      divergence: which one.
      vocabulary: how V is cut.
    """
    solver_picked = vocabulary.pick(solver.logits, tokens) - solver.logsumexp
    teacher_picked = vocabulary.pick(teacher.logits, tokens) - teacher.logsumexp
    values, gradient = _value_and_gradient(
        _Distribution(solver.logs, solver.probs),
        _Distribution(teacher.logs, teacher.probs),
        teacher.logits,
        tokens,
        divergence,
        vocabulary,
    )
    # The compiler may sum the two softmaxes in different orders. Equal logits must give 0
    # on every backend, and a gradient of 0, not the last bit of that difference.
    differs = vocabulary.max((solver.logits != teacher.logits).astype(jnp.float32)) > 0
    scores = LossScores(
        loss=jnp.where(differs, values, 0.0),
        advantage=jnp.where(differs, teacher_picked - solver_picked, 0.0),
        solver_logprobs=solver_picked,
    )
    return scores, jnp.where(differs[:, None], gradient / divergence.loss_temperature, 0.0)


def token_scores(
    solver: Reading,
    teacher: Reading,
    tokens: Int[Array, " n"],
    divergence: DivergenceConfig,
    vocabulary: Vocabulary,
    *,
    num_top: int,
) -> TokenScores:
    """Returns all scores of n tokens; arguments are those of `loss_and_gradient`.

    The entropies cost one more pass over V per side, and the `num_top` likeliest entries a
    selection, which an update does not pay.
    """
    scores, _ = loss_and_gradient(solver, teacher, tokens, divergence, vocabulary)
    solver_top, teacher_top = (_top(side, vocabulary, num_top) for side in (solver, teacher))
    return TokenScores(
        *scores,
        teacher_logprobs=vocabulary.pick(teacher.logits, tokens) - teacher.logsumexp,
        solver_entropy=entropy(solver, vocabulary),
        teacher_entropy=entropy(teacher, vocabulary),
        solver_top_ids=solver_top[0],
        solver_top_logprobs=solver_top[1],
        teacher_top_ids=teacher_top[0],
        teacher_top_logprobs=teacher_top[1],
    )


def _top(
    side: Reading, vocabulary: Vocabulary, number: int
) -> tuple[Int32[Array, "n K"], Float32[Array, "n K"]]:
    """Ids and log-probabilities of the likeliest entries."""
    values, ids = vocabulary.largest(side.logits, number)
    return ids, values - side.logsumexp[:, None]


def log_softmax(logits: Float32[Array, "n V"], vocabulary: Vocabulary) -> Float32[Array, "n V"]:
    return logits - vocabulary.logsumexp(logits)[:, None]


def entropy(side: Reading, vocabulary: Vocabulary) -> Float32[Array, " n"]:
    """-sum_v p_v log p_v in nats, at temperature 1."""
    logs = side.logits - side.logsumexp[:, None]
    return -vocabulary.sum(jnp.exp(logs) * logs)


class _Distribution(NamedTuple):
    """Log-probabilities and the probabilities themselves: [n, V], or [n] of a tail."""

    logs: Float32[Array, "*shape"]
    probs: Float32[Array, "*shape"]


def _value_and_gradient(
    solver: _Distribution,
    teacher: _Distribution,
    teacher_logits: Float32[Array, "n V"],
    tokens: Int[Array, " n"],
    divergence: DivergenceConfig,
    vocabulary: Vocabulary,
) -> tuple[Float32[Array, " n"], Float32[Array, "n V"]]:
    """Values, and gradients by the logits that were normalised."""
    match divergence:
        case SampledToken():
            picked = vocabulary.pick(solver.logs, tokens)
            advantage = vocabulary.pick(teacher.logs, tokens) - picked
            away = solver.probs - vocabulary.holds(tokens, solver.probs)
            return -advantage * picked, advantage[:, None] * away
        case VocabularyDivergence():
            return _sum_terms(solver, teacher, teacher_logits, divergence, vocabulary)
        case _:
            raise TypeError(f"{type(divergence).__name__} has no formula here")


def _sum_terms(
    solver: _Distribution,
    teacher: _Distribution,
    teacher_logits: Float32[Array, "n V"],
    divergence: VocabularyDivergence,
    vocabulary: Vocabulary,
) -> tuple[Float32[Array, " n"], Float32[Array, "n V"]]:
    """`_value_and_gradient` of a divergence that sums over the vocabulary."""
    terms, derivatives = _terms(solver, teacher, divergence)
    if divergence.top_k == 0:
        values, total = vocabulary.sum(terms), vocabulary.sum(derivatives)
        return values, derivatives - solver.probs * total[:, None]
    #   teacher_logits  3.5   2.8   1.0  -0.1      top_k = 2
    #   kept            1     1     0     0
    #   entries         own   own   `--tail--'     the tail's log is a logsumexp of the rest
    # Logits are what a product wrote, once. A compiler may compute `logs` in two places, with
    # another last bit in each, and then the k-th entry is below itself.
    kept = teacher_logits >= vocabulary.kth_largest(teacher_logits, divergence.top_k)[:, None]
    solver_tail, teacher_tail = (_tail(side, kept, vocabulary) for side in (solver, teacher))
    tail_term, tail_derivative = _terms(solver_tail, teacher_tail, divergence)
    values = vocabulary.sum(jnp.where(kept, terms, 0.0)) + tail_term
    total = vocabulary.sum(jnp.where(kept, derivatives, 0.0)) + tail_derivative
    # log of a sum: an entry of the tail moves it by its share
    shares = jnp.exp(solver.logs - solver_tail.logs[:, None])
    derivatives = jnp.where(kept, derivatives, tail_derivative[:, None] * shares)
    return values, derivatives - solver.probs * total[:, None]


def _tail(
    side: _Distribution, kept: Bool[Array, "n V"], vocabulary: Vocabulary
) -> _Distribution:
    """[n] of all entries that are not kept, as one."""
    logs = vocabulary.logsumexp(jnp.where(kept, _NEVER, side.logs))
    return _Distribution(logs, jnp.exp(logs))


def _terms(
    solver: _Distribution, teacher: _Distribution, divergence: VocabularyDivergence
) -> tuple[Float32[Array, "*shape"], Float32[Array, "*shape"]]:
    """The module's table: terms and derivatives, elementwise."""
    gap = solver.logs - teacher.logs
    match divergence:
        case ForwardKl():
            terms, derivatives = teacher.probs * -gap, -teacher.probs
        case ReverseKl():
            terms, derivatives = solver.probs * gap, solver.probs * (gap + 1.0)
        case Jsd(beta=beta):
            mixture = _log_mixture(solver.logs, teacher.logs, beta)
            derivatives = (1.0 - beta) * solver.probs * (solver.logs - mixture)
            terms = beta * teacher.probs * (teacher.logs - mixture) + derivatives
        case _:
            raise TypeError(f"{type(divergence).__name__} has no formula here")
    if divergence.element_clip == 0:
        return terms, derivatives
    clip = divergence.element_clip
    return jnp.minimum(terms, clip), jnp.where(terms <= clip, derivatives, 0.0)


def _log_mixture(
    solver: Float32[Array, "*shape"], teacher: Float32[Array, "*shape"], beta: float
) -> Float32[Array, "*shape"]:
    # Written from the larger of the two, so that nothing overflows and equal arguments are
    # returned bit for bit (logaddexp of shifted arguments would round).
    gap = solver - teacher
    share_of_smaller = jnp.where(gap > 0, beta, 1.0 - beta)
    excess = jnp.log1p(share_of_smaller * jnp.expm1(-jnp.abs(gap)))
    return jnp.maximum(solver, teacher) + excess
