# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What n samples of each problem say, and how sure one may be of it.

Metrics are per problem, so that intervals can resample problems: the samples of one
problem are not independent of each other.
"""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean over problems and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return self._asdict()


def avg_at_k(correct: np.ndarray) -> np.ndarray:
    """Share of correct samples per problem.

    Args:
      correct: [num_problems, n] bool.

    Returns:
      [num_problems] float64.
    """
    return _as_matrix(correct).mean(axis=1)


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Unbiased estimate of P(at least one of k samples is correct), per problem.

    1 - C(n - c, k) / C(n, k) with c correct samples of n (https://arxiv.org/abs/2107.03374).
    For k = n it is 1 where any sample is correct, else 0.

    Args:
      correct: [num_problems, n] bool.
      k: samples drawn without replacement, 1 <= k <= n.

    Returns:
      [num_problems] float64.

    Raises:
      ValueError: k is not in 1..n.
    """
    correct = _as_matrix(correct)
    num_samples = correct.shape[1]
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= n, and n is {num_samples}")
    num_wrong = num_samples - correct.sum(axis=1, keepdims=True)
    drawn = np.arange(k)
    # The i-th draw is wrong with (wrong left) / (left); a product has no huge binomials. It
    # holds a 0 where k exceeds the wrong samples, so negative factors after it do no harm.
    all_wrong = (num_wrong - drawn) / (num_samples - drawn)
    return 1.0 - all_wrong.prod(axis=1)


def mixed_share(averages: np.ndarray, n: int, group: int) -> np.ndarray:
    """Estimate of P(`group` samples hold both right and wrong ones), per problem.

    Only such a group has an advantage that is not 0 (GRPO). Unbiased where `group` <= n: as
    `pass_at_k`, without replacement. For a larger group it is 1 - p^G - (1 - p)^G with the
    measured share p, which is too low, since a problem that n samples call hopeless may not be.

    Args:
      averages: [num_problems] `avg_at_k` of n samples.
      n: samples of each problem.
      group: samples of a group.

    Returns:
      [num_problems] float64.
    """
    averages = np.asarray(averages, np.float64)
    if group > n:
        return 1.0 - averages**group - (1.0 - averages) ** group
    correct = np.arange(n) < np.rint(averages * n)[:, None]
    return pass_at_k(correct, group) + pass_at_k(~correct, group) - 1.0


def maj_at_k(classes: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Whether the majority answer is correct, per problem; in expectation where classes tie.

    The classes with the most samples win, and a tie is broken at random: the value is
    the share of the tied classes that are correct. (Were the samples of one class judged
    unlike each other, the class counts as correct by the share of its samples that are.)
    Samples without an answer have no vote; a problem without any answer scores 0.

    Args:
      classes: [num_problems, n] int, the equivalence class of each answer within its
        problem; negative where there is no answer.
      correct: [num_problems, n] bool.

    Returns:
      [num_problems] float64.

    Raises:
      ValueError: the shapes differ.
    """
    classes, correct = np.asarray(classes), _as_matrix(correct)
    if classes.shape != correct.shape:
        raise ValueError(f"classes {classes.shape} and correct {correct.shape} differ in shape")
    answered = classes >= 0
    num_votes = (classes[:, :, None] == classes[:, None, :]).sum(axis=2) * answered
    # Tied classes are of one size, so the mean over their samples is the mean over classes.
    in_majority = answered & (num_votes == num_votes.max(axis=1, keepdims=True))
    num_winners = in_majority.sum(axis=1)
    return (in_majority & correct).sum(axis=1) / np.maximum(num_winners, 1)


def bootstrap_interval(
    values: np.ndarray, *, num_resamples: int, confidence: float, seed: int
) -> Interval:
    """Mean of `values` and its percentile bootstrap interval over problems.

    Args:
      values: [num_problems] a metric per problem.
      num_resamples: sets of num_problems problems, drawn with replacement.
      confidence: in (0, 1), for example 0.95.
      seed: of the resampling alone; the same arguments give the same interval.

    Raises:
      ValueError: no values, a matrix, no resamples, or a confidence outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"values must be [num_problems], not {values.shape}")
    return two_level_interval(
        values[None], num_resamples=num_resamples, confidence=confidence, seed=seed
    )


def two_level_interval(
    values: np.ndarray, *, num_resamples: int, confidence: float, seed: int
) -> Interval:
    """Mean of `values` and its percentile bootstrap interval over runs and problems.

    Every run answers the same problems, so a resample draws num_runs runs and num_problems
    problems, with replacement, and all drawn runs get the same drawn problems (Owen, The
    pigeonhole bootstrap, 2007). Problems drawn for each run apart would count the difficulty
    of a problem as if each run met another one, and the interval would be too narrow.

    One run gives `bootstrap_interval`'s interval over problems, which knows nothing of what
    another run would do. Of n runs it sees (n - 1) / n of the variance between runs: with two
    or three it is too narrow in that part.

    Args:
      values: [num_runs, num_problems] a metric per run and problem; the same problems in the
        same order in each row.
      num_resamples: how many resamples.
      confidence: see `bootstrap_interval`.
      seed: see `bootstrap_interval`.

    Raises:
      ValueError: no values, no matrix, no resamples, or a confidence outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"values must be [num_runs, num_problems] and not empty, not {values.shape}"
        )
    if num_resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(f"cannot resample {num_resamples} times at confidence {confidence}")
    num_runs, num_problems = values.shape
    rng = np.random.default_rng(seed)
    problems = rng.integers(num_problems, size=(num_resamples, num_problems))
    runs = rng.integers(num_runs, size=(num_resamples, num_runs))
    # Run by run: [num_resamples, num_problems] at a time is all that is held.
    by_run = np.stack([row[problems].mean(axis=1) for row in values], axis=1)
    means = np.take_along_axis(by_run, runs, axis=1).mean(axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def paired_interval(
    before: np.ndarray,
    after: np.ndarray,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Interval of `after - before` on the same problems; positive where `after` is higher.

    Resampling the difference of each problem keeps the problem's difficulty out of the
    interval, which two intervals side by side cannot do.

    Args:
      before: [num_problems] a metric per problem.
      after: [num_problems] the same metric, same problems, same order.
      num_resamples: see `bootstrap_interval`.
      confidence: see `bootstrap_interval`.
      seed: see `bootstrap_interval`.

    Raises:
      ValueError: the shapes differ, or as `bootstrap_interval`.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape:
        raise ValueError(f"before {before.shape} and after {after.shape} differ in shape")
    return bootstrap_interval(
        after - before, num_resamples=num_resamples, confidence=confidence, seed=seed
    )


def _as_matrix(correct: np.ndarray) -> np.ndarray:
    correct = np.asarray(correct)
    if correct.dtype != np.bool_ or correct.ndim != 2 or correct.shape[1] == 0:
        raise ValueError(
            f"correct must be [num_problems, n] bool with n > 0, not {correct.shape}"
            f" {correct.dtype}"
        )
    return correct
