# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import itertools
import time

import numpy as np
import pytest
import scipy.stats  # JAX brings it; an implementation that shares no line with ours
from hypothesis import assume, given
from hypothesis import strategies as st

from stepalign_jax.analysis.ranks import (
    auroc,
    average_ranks,
    clustered_interval,
    dense,
    spearman,
)
from stepalign_jax.evaluation.statistics import Interval, bootstrap_interval

SETTINGS = {"num_resamples": 500, "confidence": 0.9, "seed": 0}
# Few values, so that ties are common; -0.0 and 0.0 are equal.
VALUES = st.sampled_from([-np.inf, -2.5, -0.0, 0.0, 1e-300, 1.0, 3.0, np.inf])
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12)
SCORED = st.lists(st.tuples(VALUES, st.booleans()), min_size=1, max_size=12)


def test_average_ranks_by_hand():
    np.testing.assert_array_equal(average_ranks([3, 1, 3, 2]), [3.5, 1, 3.5, 2])
    np.testing.assert_array_equal(average_ranks([]), [])


@given(st.lists(VALUES, max_size=12))
def test_average_ranks_are_those_of_scipy(values):
    np.testing.assert_array_equal(average_ranks(values), scipy.stats.rankdata(values))


@given(st.lists(st.integers(-3, 400), min_size=1, max_size=12))
def test_whole_numbers_have_the_ranks_of_any_numbers(values):
    np.testing.assert_array_equal(average_ranks(values), scipy.stats.rankdata(values))


@given(st.lists(VALUES, max_size=12))
def test_dense_numbers_keep_order_and_ties(values):
    found = dense(values)
    np.testing.assert_array_equal(average_ranks(found), average_ranks(values))
    assert sorted(set(found.tolist())) == list(range(len(set(values))))


@pytest.mark.parametrize("values", [[1.0, np.nan], [[1.0]]])
def test_what_has_no_ranks_is_refused(values):
    with pytest.raises(ValueError, match="vector of numbers"):
        average_ranks(values)


@pytest.mark.parametrize(
    ("scores", "labels", "value"),
    [
        ([1, 2, 3, 4], "0011", 1.0),
        ([1, 2, 3, 4], "1100", 0.0),
        ([1, 1, 1, 1], "0110", 0.5),
        ([1, 2, 2, 3], "0101", 3.5 / 4),  # one tie among four pairs
    ],
)
def test_auroc_by_hand(scores, labels, value):
    assert auroc(scores, [label == "1" for label in labels]) == value


@given(SCORED)
def test_auroc_is_the_share_of_pairs_in_order(scored):
    positives = [score for score, label in scored if label]
    negatives = [score for score, label in scored if not label]
    won = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(positives, negatives)]
    scores, labels = zip(*scored, strict=True)
    if won:
        assert auroc(scores, labels) == pytest.approx(np.mean(won), abs=1e-12)
    else:
        assert np.isnan(auroc(scores, labels))


@given(SCORED)
def test_auroc_turns_with_the_scores_and_with_the_labels(scored):
    scores, labels = (np.array(column) for column in zip(*scored, strict=True))
    assume(0 < labels.sum() < labels.size)
    value = auroc(scores, labels)
    assert auroc(-scores, labels) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(scores, ~labels) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(np.arctan(scores) * 2, labels) == value  # only the order counts


def test_spearman_by_hand():
    assert spearman([1, 2, 3], [10, 100, 1000]) == 1
    assert spearman([1, 2, 3], [5, 4, 3]) == -1
    # Ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15).
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)


@given(PAIRS)
def test_spearman_is_that_of_scipy(pairs):
    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(spearman(x, y))
    else:
        # Of the ranks, since infinite values are no numbers to scipy's Spearman.
        ranks = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
        expected = scipy.stats.pearsonr(*ranks).statistic
        assert spearman(x, y) == pytest.approx(expected, abs=1e-12)
        assert spearman(y, x) == spearman(x, y)


def test_nothing_has_no_correlation():
    assert np.isnan(spearman([], []))
    assert np.isnan(auroc([], []))


@pytest.mark.parametrize("function", [auroc, spearman])
def test_unlike_shapes_are_refused(function):
    with pytest.raises(ValueError, match="differ in shape"):
        function([1.0, 2.0], [1.0])


# --- Clusters --------------------------------------------------------------------------------


def mean_of(values):
    values = np.asarray(values, np.float64)
    return lambda rows: values[rows].mean()


def test_one_row_per_cluster_is_the_plain_bootstrap():
    values = np.random.default_rng(0).random(40)
    found = clustered_interval(mean_of(values), np.arange(40), **SETTINGS)
    # Other draws than `bootstrap_interval`'s: ends agree within their own noise.
    plain = bootstrap_interval(values, num_resamples=20_000, confidence=0.9, seed=1)
    assert found == pytest.approx(plain, abs=0.02)
    assert found.mean == values.mean()


def test_clusters_are_drawn_whole_and_as_often_as_drawn():
    drawn = []

    def keep(rows):
        drawn.append(rows.tolist())
        return 0.0

    clustered_interval(keep, ["b", "a", "b"], num_resamples=200, confidence=0.9, seed=0)
    *resamples, whole = drawn
    assert whole == [0, 1, 2]
    assert {tuple(rows) for rows in resamples} == {
        (1, 1), (1, 0, 2), (0, 2, 1), (0, 2, 0, 2)
    }  # fmt: skip


def test_the_interval_matches_all_resamples():
    values, clusters = [0.0, 1.0, 4.0, 9.0, 2.0], np.array([0, 0, 1, 1, 2])
    rows = [np.flatnonzero(clusters == cluster) for cluster in range(3)]
    exact = np.sort(
        [
            np.mean([values[row] for cluster in drawn for row in rows[cluster]])
            for drawn in itertools.product(range(3), repeat=3)
        ]
    )
    found = clustered_interval(
        mean_of(values), clusters, num_resamples=20_000, confidence=0.8, seed=0
    )
    # Four standard errors of a share at 20,000 resamples.
    for bound, share in ((found.low, 0.1), (found.high, 0.9)):
        low, high = np.quantile(exact, [share - 4 * 0.0021, share + 4 * 0.0021])
        assert low - 1e-12 <= bound <= high + 1e-12


def test_rows_that_repeat_their_cluster_make_the_interval_no_narrower():
    values = np.random.default_rng(0).random(30)
    once = clustered_interval(mean_of(values), np.arange(30), **SETTINGS)
    rows = np.repeat(np.arange(30), 10)
    assert clustered_interval(mean_of(values[rows]), rows, **SETTINGS) == pytest.approx(once)
    as_if_independent = clustered_interval(mean_of(values[rows]), np.arange(300), **SETTINGS)
    assert as_if_independent.high - as_if_independent.low < 0.5 * (once.high - once.low)


def test_the_interval_covers_the_true_auroc_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(100):
        # Positives are one higher: P(N(1, 2) > 0). Half of the score's variance is shared
        # by a problem's rows.
        clusters = np.repeat(np.arange(40), 6)
        labels = rng.random(240) < 0.4
        shared, own = rng.standard_normal(40)[clusters], rng.standard_normal(240)
        scores = labels + np.sqrt(0.5) * (shared + own)
        interval = clustered_interval(
            lambda rows, scores=scores, labels=labels: auroc(scores[rows], labels[rows]),
            clusters,
            num_resamples=100,
            confidence=0.9,
            seed=trial,
        )
        covered.append(interval.low <= scipy.stats.norm.cdf(1 / np.sqrt(2)) <= interval.high)
    # Four standard errors of 100 trials are 0.12.
    assert 0.78 < np.mean(covered) < 0.99


def test_resamples_without_a_value_are_left_out_up_to_a_tenth():
    # Of n clusters of which one alone has positives, (1 - 1/n)^n of the resamples lack it.
    scores, clusters = np.arange(8.0), np.repeat(np.arange(4), 2)
    labels = clusters == 3

    def statistic(rows):
        return auroc(scores[rows], labels[rows])

    found = clustered_interval(statistic, clusters, **SETTINGS)
    assert found.mean == 1 and np.isnan(found.low) and np.isnan(found.high)
    labels = np.array([0, 1] * 4, bool)  # every cluster has both
    found = clustered_interval(statistic, clusters, **SETTINGS)
    assert 0 < found.low <= found.mean <= found.high < 1
    labels = np.array([0, 0, 1, 1, 0, 1, 0, 1], bool)  # a resample in 128 has one class only
    found = clustered_interval(statistic, clusters, **SETTINGS)
    assert 0 <= found.low <= found.mean <= found.high <= 1


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(30)

    def interval(seed):
        return clustered_interval(
            mean_of(values), np.arange(30) % 7, **{**SETTINGS, "seed": seed}
        )

    assert interval(1) == interval(1) != interval(2)
    assert isinstance(interval(1), Interval)


def test_two_thousand_rows_and_resamples_take_seconds():
    rng = np.random.default_rng(0)
    scores, labels, clusters = rng.random(2000), rng.random(2000) < 0.3, np.arange(2000) // 10
    start = time.process_time()
    clustered_interval(
        lambda rows: auroc(scores[rows], labels[rows]),
        clusters,
        num_resamples=2000,
        confidence=0.95,
        seed=0,
    )
    assert time.process_time() - start < 10  # measured: 0.6 of a slow core


@pytest.mark.parametrize(
    ("clusters", "changes"),
    [([], {}), ([0], {"num_resamples": 0}), ([0], {"confidence": 1.0})],
)
def test_what_cannot_be_resampled_is_refused(clusters, changes):
    with pytest.raises(ValueError, match="cannot resample"):
        clustered_interval(lambda rows: 0.0, clusters, **{**SETTINGS, **changes})
