# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Divergences between teacher and solver per token, over the whole vocabulary, with slopes.

With s and t the log-probabilities of solver and teacher, p = exp(s), q = exp(t), and y the
sampled token, a divergence is a sum of one term per vocabulary entry v. Beside it stands the
term's slope c'_v = d c_v / d s_v, all of which the gradient needs:

    name           term c_v                                slope c'_v
    forward_kl     q (t - s)          KL(teacher||solver)  -q
    reverse_kl     p (s - t)          KL(solver||teacher)  p (s - t + 1)
    jsd            b q (t - m) + (1 - b) p (s - m)         (1 - b) p (s - m)
                   m = log((1 - b) p + b q), b = jsd_beta
    sampled_token  -sg(t - s) s at y, 0 elsewhere          -(t - s) at y, 0 elsewhere

The value of sampled_token means nothing by itself; its gradient is that of a policy gradient
with the advantage t[y] - s[y], and averaged over y ~ solver it is reverse_kl's.

    element_clip > 0   each term becomes min(c_v, element_clip); a clipped term has slope 0.
                       Terms below 0 stay, so a clipped divergence may be below 0.
    top_k > 0          the vocabulary becomes the teacher's k most probable entries (more if
                       they tie with the k-th) and one entry for all others together.

For logits z with s = log_softmax(z / T), the gradient is
d/dz_v = (c'_v - p_v sum_w c'_w) / T. The teacher's side is a constant.

The self-distillation loss is Eq. (3) of arXiv 2606.11173, minimised per token along the
solver's own rollout. The paper is reported (by readers of its full text) to train with
"forward KL"; that the words mean KL(teacher || solver) is inferred from the public code
that the paper builds on, as is the clip (0.05 there), on which the paper is silent.
"""

import difflib
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stepalign_jax.base.errors import UserError
from stepalign_jax.objectives.vocabulary import Vocabulary

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "sampled_token")
_NEVER = -1e30  # the log of a probability of 0 that may be subtracted from itself


class TokenScores(NamedTuple):
    """Scores of tokens, each array float32 and of one shape. Constants: nothing learns here.

    Attributes:
      divergence: the named divergence at the loss temperature.
      advantage: log pi_teacher(y) - log pi_solver(y) at temperature 1.
      solver_logprobs: log pi_solver(y) at temperature 1.
      teacher_logprobs: log pi_teacher(y) at temperature 1.
      solver_entropy: -sum_v p_v log p_v in nats, at temperature 1.
      teacher_entropy: the teacher's.
    """

    divergence: jax.Array
    advantage: jax.Array
    solver_logprobs: jax.Array
    teacher_logprobs: jax.Array
    solver_entropy: jax.Array
    teacher_entropy: jax.Array


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Which divergence; see the module's table.

    Attributes:
      name: one of DIVERGENCES.
      jsd_beta: the teacher's share in jsd; the others do not read it.
      temperature: divides both logits in the divergence, and there alone.
      element_clip: the largest term; 0 is off.
      top_k: entries of the teacher that stay apart; 0 is the whole vocabulary.
    """

    name: str
    jsd_beta: float
    temperature: float
    element_clip: float
    top_k: int

    def check(self, vocab_size: int) -> None:
        """Refuses what cannot be computed.

        Raises:
          UserError: naming the nearest valid divergence, or the valid range.
        """
        if self.name not in DIVERGENCES:
            nearest = difflib.get_close_matches(self.name, DIVERGENCES, n=1, cutoff=0.0)[0]
            raise UserError(
                f"objective.divergence is {self.name!r}, which is none of "
                f"{', '.join(DIVERGENCES)}; did you mean {nearest!r}?"
            )
        if self.name == "jsd" and not 0.0 < self.jsd_beta < 1.0:
            raise UserError(
                f"objective.jsd_beta is {self.jsd_beta}, but jsd needs 0 < beta < 1; "
                "name forward_kl or reverse_kl for a one-sided divergence."
            )
        check_temperature("objective.loss_temperature", self.temperature)
        if not 0.0 <= self.element_clip < math.inf:
            raise UserError(
                f"objective.element_clip is {self.element_clip}; give a positive number, or 0 "
                "for no clip."
            )
        if not 0 <= self.top_k < vocab_size:
            raise UserError(
                f"objective.top_k is {self.top_k}, but it must be below the vocabulary's "
                f"{vocab_size} entries; 0 takes them all."
            )
        if self.name == "sampled_token" and (self.element_clip or self.top_k):
            raise UserError(
                "objective.divergence=sampled_token reads one vocabulary entry only; set "
                "objective.element_clip and objective.top_k to 0."
            )


class Reading(NamedTuple):
    """What a side says about n tokens, before it is known which tokens they are.

    Attributes:
      logits: [n, V] float32, or a device's slice of V.
      logsumexp: [n], at temperature 1.
      entropy: [n], at temperature 1.
      logs: [n, V] log-probabilities at the loss temperature.
      probs: [n, V] their exponentials.
    """

    logits: jax.Array
    logsumexp: jax.Array
    entropy: jax.Array
    logs: jax.Array
    probs: jax.Array


def read_logits(logits: jax.Array, temperature: float, vocabulary: Vocabulary) -> Reading:
    """The reading of logits [n, V], for the divergence at `temperature`."""
    largest = vocabulary.max(logits)
    shifted = logits - largest[:, None]
    weights, cooled = jnp.exp(shifted), jnp.exp(shifted / temperature)
    total, cooled_total = vocabulary.sum(weights), vocabulary.sum(cooled)
    mean = vocabulary.sum(weights * shifted) / total
    return Reading(
        logits=logits,
        logsumexp=largest + jnp.log(total),
        entropy=jnp.log(total) - mean,
        logs=shifted / temperature - jnp.log(cooled_total)[:, None],
        probs=cooled * (1.0 / cooled_total)[:, None],
    )


def score_tokens(
    solver: Reading,
    teacher: Reading,
    tokens: jax.Array,
    divergence: Divergence,
    vocabulary: Vocabulary,
) -> tuple[TokenScores, jax.Array]:
    """Returns the scores of n tokens and the divergence's gradient by the solver's logits.

    Where both rows of logits are equal, divergence, advantage and gradient are exactly 0.

    Args:
      solver: its reading at the divergence's temperature.
      teacher: likewise.
      tokens: [n] integers, counted over the whole vocabulary.
      divergence: which one.
      vocabulary: how V is cut.

    Returns:
      TokenScores of [n], and [n, V] float32.
    """
    solver_picked = vocabulary.pick(solver.logits, tokens) - solver.logsumexp
    teacher_picked = vocabulary.pick(teacher.logits, tokens) - teacher.logsumexp
    values, gradient = _value_and_gradient(
        _Distribution(solver.logs, solver.probs),
        _Distribution(teacher.logs, teacher.probs),
        tokens,
        divergence,
        vocabulary,
    )
    # The compiler may sum the two softmaxes in different orders. Equal logits must give 0
    # on every backend, and a gradient of 0, not the last bit of that difference.
    differs = vocabulary.max((solver.logits != teacher.logits).astype(jnp.float32)) > 0
    scores = TokenScores(
        divergence=jnp.where(differs, values, 0.0),
        advantage=jnp.where(differs, teacher_picked - solver_picked, 0.0),
        solver_logprobs=solver_picked,
        teacher_logprobs=teacher_picked,
        solver_entropy=solver.entropy,
        teacher_entropy=teacher.entropy,
    )
    return scores, jnp.where(differs[:, None], gradient / divergence.temperature, 0.0)


def log_softmax(logits: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """Log-probabilities [n, V]."""
    return logits - vocabulary.logsumexp(logits)[:, None]


def check_temperature(name: str, value: float) -> None:
    """Refuses what cannot divide logits.

    Raises:
      UserError: `value` is not positive and finite.
    """
    if not 0.0 < value < math.inf:
        raise UserError(f"{name} is {value}, but it divides logits; give a positive number.")


class _Distribution(NamedTuple):
    """Log-probabilities and the probabilities themselves, of one shape."""

    logs: jax.Array
    probs: jax.Array


def _value_and_gradient(
    solver: _Distribution,
    teacher: _Distribution,
    tokens: jax.Array,
    divergence: Divergence,
    vocabulary: Vocabulary,
) -> tuple[jax.Array, jax.Array]:
    """[n] values, and [n, V] gradients by the logits that were normalised."""
    if divergence.name == "sampled_token":
        picked = vocabulary.pick(solver.logs, tokens)
        advantage = vocabulary.pick(teacher.logs, tokens) - picked
        away = solver.probs - vocabulary.holds(tokens, solver.probs)
        return -advantage * picked, advantage[:, None] * away
    terms, slopes = _terms(solver, teacher, divergence)
    if divergence.top_k == 0:
        values, slope_sums = vocabulary.sum(terms), vocabulary.sum(slopes)
        return values, slopes - solver.probs * slope_sums[:, None]
    kept = teacher.logs >= vocabulary.kth_largest(teacher.logs, divergence.top_k)[:, None]
    solver_tail, teacher_tail = (_tail(side, kept, vocabulary) for side in (solver, teacher))
    tail_term, tail_slope = _terms(solver_tail, teacher_tail, divergence)
    values = vocabulary.sum(jnp.where(kept, terms, 0.0)) + tail_term
    slope_sums = vocabulary.sum(jnp.where(kept, slopes, 0.0)) + tail_slope
    # log of a sum: an entry of the tail moves it by its share
    shares = jnp.exp(solver.logs - solver_tail.logs[:, None])
    slopes = jnp.where(kept, slopes, tail_slope[:, None] * shares)
    return values, slopes - solver.probs * slope_sums[:, None]


def _tail(side: _Distribution, kept: jax.Array, vocabulary: Vocabulary) -> _Distribution:
    """[n] of all entries that are not kept, as one."""
    logs = vocabulary.logsumexp(jnp.where(kept, _NEVER, side.logs))
    return _Distribution(logs, jnp.exp(logs))


def _terms(
    solver: _Distribution, teacher: _Distribution, divergence: Divergence
) -> tuple[jax.Array, jax.Array]:
    """The module's table: terms and slopes, elementwise."""
    gap = solver.logs - teacher.logs
    match divergence.name:
        case "forward_kl":
            terms, slopes = teacher.probs * -gap, -teacher.probs
        case "reverse_kl":
            terms, slopes = solver.probs * gap, solver.probs * (gap + 1.0)
        case _:  # jsd: check has let nothing else through
            beta = divergence.jsd_beta
            mixture = _log_mixture(solver.logs, teacher.logs, beta)
            slopes = (1.0 - beta) * solver.probs * (solver.logs - mixture)
            terms = beta * teacher.probs * (teacher.logs - mixture) + slopes
    if divergence.element_clip == 0:
        return terms, slopes
    clip = divergence.element_clip
    return jnp.minimum(terms, clip), jnp.where(terms <= clip, slopes, 0.0)


def _log_mixture(solver: jax.Array, teacher: jax.Array, beta: float) -> jax.Array:
    # Written from the larger of the two, so that nothing overflows and equal arguments are
    # returned bit for bit (logaddexp of shifted arguments would round).
    gap = solver - teacher
    share_of_smaller = jnp.where(gap > 0, beta, 1.0 - beta)
    excess = jnp.log1p(share_of_smaller * jnp.expm1(-jnp.abs(gap)))
    return jnp.maximum(solver, teacher) + excess
