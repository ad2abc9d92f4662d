# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Rank statistics, and intervals that resample problems with all their rows.

Rows of one problem (its tokens, reasoning steps or rollouts) depend on each other, so the
bootstrap draws problems, never rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stepalign_jax.evaluation.statistics import Interval

MAX_UNDEFINED = 0.1  # share of resamples without a value, above which an interval has no ends


_MANY_TIMES = 16  # a table of counts may be this much longer than the values that are counted


def dense(values: Any) -> np.ndarray:
    """Returns whole numbers from 0 on in the same order, equal ones where values are equal."""
    return np.unique(values, return_inverse=True)[1]


def average_ranks(values: Any) -> np.ndarray:
    """Ranks from 1, smallest first; equal values share the mean of their ranks.

        values 3.0 1.0 3.0 2.0   ->   ranks 3.5 1.0 3.5 2.0

    Small whole numbers from 0 on need no sort, so that statistics of many resamples are fast
    on `dense` values.

    Args:
      values: [n] numbers; infinite ones are ordered as such.

    Returns:
      [n] float64.

    Raises:
      ValueError: no vector, or a value is not a number.
    """
    values = np.asarray(values)
    if _are_small(values):
        counts = np.bincount(values)
        return (np.cumsum(counts) - (counts - 1) / 2)[values]
    values = values.astype(np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        raise ValueError(f"ranks need a vector of numbers, not {values.shape} with nan")
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _are_small(values: np.ndarray) -> bool:
    """Whether a table of counts is not much longer than the values."""
    if values.dtype.kind != "i" or values.ndim != 1 or not values.size:
        return False
    return bool(values.min() >= 0 and values.max() < _MANY_TIMES * values.size)


def auroc(scores: Any, labels: Any) -> float:
    """Chance that a random positive scores higher than a random negative; ties count half.

    1 where every positive is above every negative, 0 where it is below, 1/2 for scores that
    say nothing (Mann-Whitney's U over the number of pairs).

    Args:
      scores: [n] higher is to mean "positive".
      labels: [n] bool.

    Returns:
      In [0, 1]; nan where all labels are alike.

    Raises:
      ValueError: the shapes differ, or as `average_ranks`.
    """
    labels = np.asarray(labels, bool)
    ranks = average_ranks(scores)
    if ranks.shape != labels.shape:
        raise ValueError(f"scores {ranks.shape} and labels {labels.shape} differ in shape")
    positives = int(labels.sum())
    pairs = positives * (labels.size - positives)
    if not pairs:
        return float("nan")
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / pairs)


def spearman(x: Any, y: Any) -> float:
    """Spearman's rank correlation: Pearson's, of the average ranks.

    Args:
      x: [n].
      y: [n].

    Returns:
      In [-1, 1]; nan where x or y is constant.

    Raises:
      ValueError: the shapes differ, or as `average_ranks`.
    """
    x, y = average_ranks(x), average_ranks(y)
    if x.shape != y.shape:
        raise ValueError(f"x {x.shape} and y {y.shape} differ in shape")
    if not x.size:
        return float("nan")
    # The mean of n ranks is (n + 1) / 2 exactly, so that a constant has a norm of exactly 0.
    x, y = x - (x.size + 1) / 2, y - (y.size + 1) / 2
    norm = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / norm, -1.0, 1.0)) if norm else float("nan")


def clustered_interval(
    statistic: Callable[[np.ndarray], float],
    clusters: Sequence[Any] | np.ndarray,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """A statistic of all rows, and its percentile bootstrap interval over clusters.

    A resample draws as many clusters as there are, with replacement, and takes all rows of
    each, as often as it is drawn.

        clusters  a a b c, drawn b a b   ->   rows 2 | 0 1 | 2

    Resamples in which the statistic is nan (all labels alike) are left out. What is left is
    then an interval given that both labels occur; where more than a tenth of the resamples
    are left out that condition decides too much, and both ends are nan.

    Args:
      statistic: of an index array of rows, which may hold a row more than once.
      clusters: [rows] the cluster of each row, such as its problem.
      num_resamples: how many resamples.
      confidence: in (0, 1), for example 0.95.
      seed: of the resampling alone; the same arguments give the same interval.

    Returns:
      The statistic, not a mean of it, as `mean`.

    Raises:
      ValueError: no rows, no resamples, or a confidence outside (0, 1).
    """
    if num_resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(f"cannot resample {num_resamples} times at confidence {confidence}")
    _, members, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    if not members.size:
        raise ValueError("cannot resample the clusters of no rows")
    rows = np.split(np.argsort(members, kind="stable"), np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(seed)
    found = np.empty(num_resamples)
    for index in range(num_resamples):
        drawn = rng.integers(len(rows), size=len(rows))
        found[index] = statistic(np.concatenate([rows[cluster] for cluster in drawn]))
    whole = float(statistic(np.arange(members.size)))
    defined = found[~np.isnan(found)]
    if defined.size < (1.0 - MAX_UNDEFINED) * num_resamples:
        return Interval(whole, float("nan"), float("nan"))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return Interval(whole, float(low), float(high))
