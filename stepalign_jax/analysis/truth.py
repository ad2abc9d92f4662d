# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Is A_t true? What scores say of a reasoning step, against the change that it really made.

The change of a reasoning step is the solver's chance of success behind it minus that before it,
both estimated from n continuations (`continuations.py`). A reasoning step *lowered* the chance
if its estimated change is at most -`drop`. With n = 32 a change has a standard error of at most
sqrt(2 * 1/4 / 32) = 0.125, so a drop of 0.25 is two of them: of reasoning steps that change
nothing, at most 3 in 100 are taken for harmful.

Each predictor gives one number per reasoning step, turned so that higher is to mean "lowered":

    advantage mean, sum, min   of the tokens of the reasoning step, negated; one per context
    entropy mean, max          of the solver
    surprise mean              -log pi_solver of the sampled tokens
    position                   0 for the first reasoning step

AUROC is for "lowered"; Spearman's correlation is with the change itself, so that a predictor
that is right has a negative one. `AUROC where it could fall` leaves out reasoning steps before
which the estimated chance is below `drop`: behind a mistake nothing more can be lost, and a
predictor gains by telling what is behind a mistake from what is before it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from stepalign_jax.analysis.continuations import (
    Continuations,
    Sampler,
    sample_continuations,
)
from stepalign_jax.analysis.ranks import auroc, clustered_interval, dense, spearman
from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.base.files import write_json
from stepalign_jax.evaluation.statistics import Interval
from stepalign_jax.problems.problem import Problem

TRUTH_FILE, CONTINUATIONS_FILE = "truth.json", "continuations.npz"


class Resampling(NamedTuple):
    """How intervals are made; see `ranks.clustered_interval`."""

    num_resamples: int
    confidence: float
    seed: int


class Change(NamedTuple):
    """What M reasoning steps did to the chance of success.

    Attributes:
      before: [M] estimated chance where the reasoning step begins.
      after: [M] estimated chance behind it.
      problem: [M] its problem, the cluster of the bootstrap.
    """

    before: Float[np.ndarray, " M"]
    after: Float[np.ndarray, " M"]
    problem: Int[np.ndarray, " M"]

    @property
    def change(self) -> Float[np.ndarray, " M"]:
        """after - before."""
        return self.after - self.before


class Predictor(NamedTuple):
    """One number per reasoning step, higher for "lowered the chance".

    Attributes:
      name: what it is made of, such as `advantage mean`.
      context: of an advantage; None for others.
      scores: [M]; nan where the context of the rollout failed.
    """

    name: str
    context: str | None
    scores: Float[np.ndarray, " M"]


def changes(scored: ScoredRollouts, found: Continuations) -> Change:
    """What each reasoning step did, by all continuations."""
    rates = found.right.mean(axis=1)
    texts = [scored.rows[rollout]["problem"] for rollout in found.rollout]
    _, problem = np.unique(texts, return_inverse=True)
    return Change(rates[found.before], rates[found.after], problem)


def predictors(scored: ScoredRollouts, found: Continuations) -> list[Predictor]:
    """What may tell that a reasoning step lowered the chance of success."""
    tokens, members = _members(scored, found)
    num = len(found.rollout)

    def over(values: np.ndarray, how: Callable[..., np.ndarray]) -> np.ndarray:
        return how(np.asarray(values, np.float64)[tokens], members, num)

    entropy, surprise = scored.solver_entropy, -scored.solver_logprobs
    made = [
        Predictor("entropy mean", None, over(entropy, _means)),
        Predictor("entropy max", None, over(entropy, _maxima)),
        Predictor("surprise mean", None, over(surprise, _means)),
        Predictor("position", None, found.reasoning_step.astype(np.float64)),
    ]
    hows = {"mean": _means, "sum": _sums, "min": _maxima}  # of what is negated already
    for context, advantage, usable in zip(
        scored.contexts, scored.advantage, scored.usable, strict=True
    ):
        for name, how in hows.items():
            scores = np.where(usable[found.rollout], over(-advantage, how), np.nan)
            made.append(Predictor(f"advantage {name}", context, scores))
    return made


def _members(scored: ScoredRollouts, found: Continuations) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that stand in a reasoning step, and which of the M it is."""
    width = int(scored.reasoning_step.max(initial=0)) + 1
    numbers = np.full(len(scored.rows) * width, -1)
    numbers[found.rollout * width + found.reasoning_step] = np.arange(len(found.rollout))
    inside = np.flatnonzero(scored.reasoning_step >= 0)
    of_token = scored.rollout_of_token()[inside] * width + scored.reasoning_step[inside]
    return inside, numbers[of_token]


def _sums(values: np.ndarray, members: np.ndarray, num: int) -> np.ndarray:
    return np.bincount(members, values, minlength=num)


def _means(values: np.ndarray, members: np.ndarray, num: int) -> np.ndarray:
    return _sums(values, members, num) / np.bincount(members, minlength=num)


def _maxima(values: np.ndarray, members: np.ndarray, num: int) -> np.ndarray:
    largest = np.full(num, -np.inf)
    np.maximum.at(largest, members, values)
    return largest


def make_truth(
    directory: Path,
    sampler: Sampler,
    scored: ScoredRollouts,
    problems: Sequence[Problem],
    *,
    drop: float,
    how: Resampling,
) -> tuple[Continuations, dict[str, Any]]:
    """Samples continuations, unless the directory has them, and measures A against them.

    The outcomes are in continuations.npz then, so that the numbers can be made again, with
    another `drop` too, without sampling; the numbers are in truth.json.

    Args:
      directory: of the scores.
      sampler: the solver.
      scored: the rollouts.
      problems: that know how to be judged; a rollout of none of them is judged by its answer.
      drop: see `measure_truth`.
      how: see `measure_truth`.
    """
    known = {problem.text: problem for problem in problems}
    asked = [
        known.get(row["problem"], Problem(row["problem"], row["answer"], None, "rollout"))
        for row in scored.rows
    ]
    path = directory / CONTINUATIONS_FILE
    found = sample_continuations(sampler, scored, asked, path)
    facts = {"sampling": sampler.params._asdict(), "seed": sampler.seed}
    truth = {**facts, **measure_truth(scored, found, drop=drop, how=how)}
    write_json(directory / TRUTH_FILE, truth)
    return found, truth


def measure_truth(
    scored: ScoredRollouts, found: Continuations, *, drop: float, how: Resampling
) -> dict[str, Any]:
    """Returns the JSON of truth.json: each predictor against the real change, with intervals.

    Args:
      scored: the rollouts.
      found: of the same rollouts.
      drop: in (0, 1]; see above.
      how: the intervals are over problems.
    """
    real = changes(scored, found)
    made = predictors(scored, found)
    entropy = made[0].scores
    lowered = real.change <= -drop
    return {
        "rollouts": len(scored.rows),
        "problems": len(set(real.problem.tolist())),
        "reasoning_steps": len(real.change),
        "prefixes": len(found.prefix_rollout),
        "continuations": int(found.right.shape[1]),
        "drop": drop,
        "lowered": int(lowered.sum()),
        "raised": int((real.change >= drop).sum()),
        "could_fall": int((real.before >= drop).sum()),
        "confidence": how.confidence,
        "first_errors": _first_errors(scored, found, real, drop, how),
        "halves": _agreement_of_halves(found, real, drop, how),
        "predictors": [_judge(each, real, lowered, drop, entropy, how) for each in made],
    }


def _judge(
    each: Predictor,
    real: Change,
    lowered: Bool[np.ndarray, " M"],
    drop: float,
    entropy: Float[np.ndarray, " M"],
    how: Resampling,
) -> dict[str, Any]:
    """A predictor's row of truth.json."""
    usable = ~np.isnan(each.scores)
    could_fall = usable & (real.before >= drop)
    # Only their order counts; scores of failed contexts are in no row that is used.
    scores, change, entropy = dense(each.scores), dense(real.change), dense(entropy)

    def gain(rows: np.ndarray) -> float:
        return auroc(scores[rows], lowered[rows]) - auroc(entropy[rows], lowered[rows])

    areas = lambda rows: auroc(scores[rows], lowered[rows])  # noqa: E731
    ranks = lambda rows: spearman(scores[rows], change[rows])  # noqa: E731
    intervals = {
        "auroc": (areas, usable),
        "auroc_where_it_could_fall": (areas, could_fall),
        "auroc_over_entropy": (gain, usable),
        "spearman": (ranks, usable),
    }
    return {
        "name": each.name,
        "context": each.context,
        "reasoning_steps": int(usable.sum()),
        **{
            name: _interval(statistic, np.flatnonzero(chosen), real.problem, how)
            for name, (statistic, chosen) in intervals.items()
        },
    }


def _first_errors(
    scored: ScoredRollouts, found: Continuations, real: Change, drop: float, how: Resampling
) -> dict[str, Any]:
    """What the first wrong reasoning steps did: one that was sure to come loses nothing."""
    wrong = scored.first_error[found.rollout] == found.reasoning_step
    rows = np.flatnonzero(wrong)
    return {
        "reasoning_steps": len(rows),
        "lowered": int((real.change[rows] <= -drop).sum()),
        "before": _interval(lambda r: float(real.before[r].mean()), rows, real.problem, how),
        "change": _interval(lambda r: float(real.change[r].mean()), rows, real.problem, how),
    }


def _agreement_of_halves(
    found: Continuations, real: Change, drop: float, how: Resampling
) -> dict[str, Any]:
    """How well one half of the continuations tells the change that the other half gives.

    What no predictor can be expected to beat by much: the noise of the change itself. The
    label is made of half as many continuations, so it is noisier than the other rows' label.
    """
    halves = [found.right[:, start::2].mean(axis=1) for start in (0, 1)]
    first, second = (rates[found.after] - rates[found.before] for rates in halves)
    lowered, rows = second <= -drop, np.arange(len(first))
    first, second = dense(first), dense(second)
    return {
        "auroc": _interval(
            lambda r: 1.0 - auroc(first[r], lowered[r]), rows, real.problem, how
        ),
        "spearman": _interval(lambda r: spearman(first[r], second[r]), rows, real.problem, how),
    }


def _interval(
    statistic: Callable[[np.ndarray], float],
    rows: Int[np.ndarray, " n"],
    clusters: Int[np.ndarray, " M"],
    how: Resampling,
) -> dict[str, float | None] | None:
    """An interval as JSON; None without a value, and without ends where they are not known."""
    if not rows.size:
        return None
    found: Interval = clustered_interval(
        lambda drawn: statistic(rows[drawn]), clusters[rows], **how._asdict()
    )
    if np.isnan(found.mean):
        return None
    return {name: None if np.isnan(v) else v for name, v in found.as_dict().items()}
