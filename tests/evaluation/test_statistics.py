# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepalign_jax.evaluation.statistics import (
    Interval,
    avg_at_k,
    bootstrap_interval,
    maj_at_k,
    mixed_share,
    paired_interval,
    pass_at_k,
    two_level_interval,
)

SETTINGS = {"num_resamples": 1000, "confidence": 0.9, "seed": 0}


def matrix(*rows: str) -> np.ndarray:
    """[num_problems, n] bool of rows written as 0 and 1."""
    return np.array([[sample == "1" for sample in row] for row in rows])


def test_avg_at_k():
    np.testing.assert_array_equal(avg_at_k(matrix("0000", "0100", "1111")), [0, 0.25, 1])


def test_pass_at_k_by_hand():
    correct = matrix("0000", "0100", "1010", "1111")
    np.testing.assert_allclose(pass_at_k(correct, 1), avg_at_k(correct), atol=1e-15)
    # Two of four: of the 6 pairs, 3 hold the one correct sample, 5 one of the two.
    np.testing.assert_allclose(pass_at_k(correct, 2), [0, 3 / 6, 5 / 6, 1], atol=1e-15)
    np.testing.assert_array_equal(pass_at_k(correct, 4), [0, 1, 1, 1])


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(row, data):
    k = data.draw(st.integers(1, len(row)))
    subsets = [any(subset) for subset in itertools.combinations(row, k)]
    estimate = pass_at_k(np.array([row]), k)[0]
    assert estimate == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_pass_at_k_stays_exact_where_binomials_are_huge():
    correct = np.arange(2000)[None] < 1  # one of n: P = k / n
    assert pass_at_k(correct, 500)[0] == pytest.approx(0.25, rel=1e-9)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_an_impossible_k(k):
    with pytest.raises(ValueError, match="1 <= k <= n"):
        pass_at_k(matrix("0101"), k)


@pytest.mark.parametrize("correct", [np.ones((2, 3)), np.ones(3, bool), np.ones((2, 0), bool)])
def test_only_a_boolean_matrix_is_a_set_of_verdicts(correct):
    with pytest.raises(ValueError, match=r"\[num_problems, n\] bool"):
        avg_at_k(correct)


@pytest.mark.parametrize(
    ("classes", "correct", "value"),
    [
        ([0, 0, 1, 2], "0010", 0.0),  # a plain majority, wrong
        ([0, 1, 1, 2], "0110", 1.0),  # a plain majority, right
        ([0, 1, 0, 1], "0101", 1 / 2),  # two tied, one right
        ([0, 1, 2, 0, 1, 2], "100100", 1 / 3),  # three tied, one right
        ([0, 1, 2, 3], "1000", 1 / 4),  # all different
        ([0, 1, 1, 0, 2], "01100", 1 / 2),  # the third class is no winner
        ([-1, -1, -1, 0], "0001", 1.0),  # no answer has no vote
        ([-1, -1, -1, -1], "0000", 0.0),  # nothing to vote for
        ([0, 0, 1, 1], "1000", 1 / 4),  # a class judged in two ways counts by its share
    ],
)
def test_maj_at_k(classes, correct, value):
    assert maj_at_k(np.array([classes]), matrix(correct))[0] == pytest.approx(value)


@settings(deadline=None)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=8), st.integers(0, 3))
def test_maj_at_k_is_the_chance_that_a_random_top_class_is_right(classes, right_class):
    answered = [c for c in classes if c >= 0]
    top = max((answered.count(c) for c in answered), default=0)
    tied = {c for c in answered if answered.count(c) == top}
    expected = (right_class in tied) / len(tied) if tied else 0.0
    values = maj_at_k(np.array([classes]), np.array([classes]) == right_class)
    assert values[0] == pytest.approx(expected)


def test_maj_at_k_treats_problems_apart():
    classes = np.array([[0, 0, 1], [0, 1, 1]])
    np.testing.assert_array_equal(maj_at_k(classes, matrix("001", "011")), [0, 1])
    with pytest.raises(ValueError, match="differ in shape"):
        maj_at_k(classes, matrix("001"))


def test_bootstrap_interval_of_equal_values_is_a_point():
    interval = bootstrap_interval(np.full(30, 0.25), **SETTINGS)
    assert interval == Interval(0.25, 0.25, 0.25)
    assert interval.as_dict() == {"mean": 0.25, "low": 0.25, "high": 0.25}


def test_bootstrap_interval_is_seeded_and_widens_with_confidence():
    values = np.random.default_rng(0).random(30)
    narrow = bootstrap_interval(values, num_resamples=1000, confidence=0.5, seed=1)
    wide = bootstrap_interval(values, num_resamples=1000, confidence=0.99, seed=1)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert narrow == bootstrap_interval(values, num_resamples=1000, confidence=0.5, seed=1)
    assert narrow != bootstrap_interval(values, num_resamples=1000, confidence=0.5, seed=2)


def test_bootstrap_interval_matches_the_exact_distribution_of_two_values():
    # Resampled means of (0, 1) are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    interval = bootstrap_interval(
        np.array([0.0, 1.0]), num_resamples=4000, confidence=0.4, seed=0
    )
    assert interval == Interval(0.5, 0.5, 0.5)
    interval = bootstrap_interval(
        np.array([0.0, 1.0]), num_resamples=4000, confidence=0.6, seed=0
    )
    assert interval == Interval(0.5, 0.0, 1.0)


def test_bootstrap_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(400):
        values = rng.beta(2.0, 2.0, size=40)  # mean 1/2
        interval = bootstrap_interval(values, num_resamples=300, confidence=0.9, seed=trial)
        covered.append(interval.low <= 0.5 <= interval.high)
    # Four standard errors of 400 trials are 0.06; the percentile method loses about 0.01.
    assert 0.83 < np.mean(covered) < 0.96


def test_paired_interval_is_narrower_where_problems_share_their_difficulty():
    rng = np.random.default_rng(0)
    before = rng.random(30)
    after = before + 0.1 + 0.02 * rng.standard_normal(30)
    paired = paired_interval(before, after, **SETTINGS)
    apart = bootstrap_interval(after, **SETTINGS)
    assert paired.high - paired.low < 0.2 * (apart.high - apart.low)
    assert paired.mean == pytest.approx(after.mean() - before.mean())
    assert 0 < paired.low < 0.1 < paired.high  # after is higher: positive


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        (np.array([]), {}),
        (np.ones((2, 2)), {}),
        (np.ones(2), {"confidence": 1.0}),
        (np.ones(2), {"num_resamples": 0}),
    ],
)
def test_bootstrap_interval_refuses(values, changes):
    with pytest.raises(ValueError):
        bootstrap_interval(values, **{**SETTINGS, **changes})


def test_paired_interval_refuses_unlike_shapes():
    with pytest.raises(ValueError, match="differ in shape"):
        paired_interval(np.ones(1), np.ones(3), **SETTINGS)


# --- Runs as the second level --------------------------------------------------------------

MATRICES = st.integers(1, 4).flatmap(
    lambda num_problems: st.lists(
        st.lists(st.floats(-1, 1), min_size=num_problems, max_size=num_problems),
        min_size=1,
        max_size=4,
    )
)


def exact_means(values: np.ndarray) -> np.ndarray:
    """The mean of every resample there is, each as likely as any other."""
    num_runs, num_problems = values.shape
    return np.array(
        [
            np.mean([values[run, problem] for run in runs for problem in problems])
            for runs in itertools.product(range(num_runs), repeat=num_runs)
            for problems in itertools.product(range(num_problems), repeat=num_problems)
        ]
    )


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (1, 4), (4, 1)])
@pytest.mark.parametrize("confidence", [0.5, 0.9])
def test_two_level_interval_matches_all_resamples(shape, confidence):
    values = np.random.default_rng(3).random(shape)
    exact = np.sort(exact_means(values))
    found = two_level_interval(values, num_resamples=20_000, confidence=confidence, seed=0)
    # The empirical share below a bound has a standard error of at most 0.0036 at 20,000
    # resamples; four of them on both sides of each bound.
    tail, error = (1 - confidence) / 2, 4 * 0.0036
    for bound, share in ((found.low, tail), (found.high, 1 - tail)):
        low, high = np.quantile(exact, [max(share - error, 0), min(share + error, 1)])
        assert low - 1e-12 <= bound <= high + 1e-12
    assert found.mean == pytest.approx(values.mean())


def test_two_level_interval_by_hand():
    # Two runs that answer both problems alike: the mean of a resample is 0, 1/2 or 1, as
    # often as two runs are drawn with 0, 1 or 2 times the second: 1/4, 1/2, 1/4.
    values = np.array([[0.0, 0.0], [1.0, 1.0]])
    settings_of = {"num_resamples": 4000, "seed": 0}
    assert two_level_interval(values, confidence=0.4, **settings_of) == (0.5, 0.5, 0.5)
    assert two_level_interval(values, confidence=0.6, **settings_of) == (0.5, 0.0, 1.0)


def test_runs_that_agree_have_the_interval_of_their_problems():
    """All runs get the same problems: five alike say no more of the problems than one."""
    row = np.random.default_rng(0).random(40)
    five = two_level_interval(np.tile(row, (5, 1)), **SETTINGS)
    one = bootstrap_interval(row, **SETTINGS)
    assert five == pytest.approx(one, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_one_run_has_the_interval_of_its_problems(row):
    found = two_level_interval(np.array([row]), **SETTINGS)
    assert found == bootstrap_interval(np.array(row), **SETTINGS)


@settings(deadline=None)
@given(MATRICES)
def test_the_interval_holds_the_mean_and_lies_within_the_values(rows):
    values = np.array(rows)
    found = two_level_interval(values, num_resamples=1000, confidence=0.95, seed=0)
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    assert values.min() - 1e-9 <= found.low and found.high <= values.max() + 1e-9


@settings(deadline=None)
@given(MATRICES)
def test_equal_runs_differ_by_exactly_zero(rows):
    values = np.array(rows)
    assert two_level_interval(values - values, **SETTINGS) == (0.0, 0.0, 0.0)


def test_two_level_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(300):
        # Runs, problems, and both at once; eight runs, of which 7/8 of the variance is seen.
        values = 0.5 + 0.1 * rng.standard_normal((8, 1)) + 0.2 * rng.standard_normal(40)
        values = values + 0.1 * rng.standard_normal(values.shape)
        found = two_level_interval(values, num_resamples=300, confidence=0.9, seed=trial)
        covered.append(found.low <= 0.5 <= found.high)
    # Four standard errors of 300 trials are 0.07.
    assert 0.82 < np.mean(covered) < 0.97


@pytest.mark.parametrize("values", [np.ones(3), np.ones((0, 3)), np.ones((2, 0))])
def test_two_level_interval_refuses(values):
    with pytest.raises(ValueError, match="num_runs, num_problems"):
        two_level_interval(values, **SETTINGS)


def test_groups_with_both_outcomes_by_hand():
    averages = np.array([0.0, 0.25, 0.5, 1.0])
    # Pairs of four samples, of which 0, 1, 2 or 4 are right: 0, 3, 4 and 0 of 6 are mixed.
    np.testing.assert_allclose(mixed_share(averages, 4, 2), [0, 3 / 6, 4 / 6, 0])
    # Larger groups than samples: with the measured share.
    np.testing.assert_allclose(mixed_share(averages, 4, 5), [0, 195 / 256, 15 / 16, 0])


def test_the_share_of_mixed_groups_is_unbiased():
    n, group, p = 12, 8, 0.9
    counts = np.arange(n + 1)
    odds = np.array([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in counts])
    expected = 1 - p**group - (1 - p) ** group
    assert odds @ mixed_share(counts / n, n, group) == pytest.approx(expected)
