# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from support.hand_scored import scored_texts
from support.runs import tiny_roles

from stepalign_jax.analysis.continuations import Continuations, find_prefixes
from stepalign_jax.analysis.ranks import auroc, spearman
from stepalign_jax.analysis.truth import (
    Resampling,
    changes,
    measure_truth,
    predictors,
)
from stepalign_jax.problems.problem import Problem

ROLES = tiny_roles()
HOW = Resampling(num_resamples=200, confidence=0.9, seed=0)
RIGHT = "Step 1: 3*8=24\nStep 2: 24+47=71\nAnswer: 71"
CONTEXTS = ("stepalign", "no_context")


def made(num_rollouts, right, **arrays):
    """`num_rollouts` rollouts of as many problems, and outcomes [3 * num_rollouts, n]."""
    problems = [Problem(f"What is 3*8+{n}?", "71", None, "test") for n in range(num_rollouts)]
    scored = scored_texts(ROLES, problems, [RIGHT] * num_rollouts, CONTEXTS, **arrays)
    prefixes, steps, before, after = find_prefixes(scored)
    where = np.array(prefixes)
    found = Continuations(
        "key", *steps.T, before, after, where[:, 0], where[:, 1], np.array(right, bool)
    )
    return scored, found


def outcomes(*counts, num=8):
    return [[sample < count for sample in range(num)] for count in counts]


def by_hand(scored, values, how):
    """One number per reasoning step, by a loop over tokens."""
    return [
        how([values[i] for i in range(*scored.of(r).indices(len(scored.tokens)))
             if scored.reasoning_step[i] == s])
        for r in range(len(scored.rows)) for s in range(2)
    ]  # fmt: skip


def test_the_change_is_the_difference_of_the_two_chances():
    scored, found = made(2, outcomes(6, 8, 2, 4, 4, 1))
    real = changes(scored, found)
    np.testing.assert_array_equal(real.change, [0.25, -0.75, 0, -0.375])
    np.testing.assert_array_equal(real.before, [0.75, 1, 0.5, 0.5])
    assert real.problem.tolist() == [0, 0, 1, 1]


def test_predictors_are_of_the_tokens_of_their_reasoning_step():
    scored, found = made(3, outcomes(*[4] * 9))
    advantage = scored.advantage.astype(np.float64)
    expected = {
        ("entropy mean", None): by_hand(scored, scored.solver_entropy, np.mean),
        ("entropy max", None): by_hand(scored, scored.solver_entropy, max),
        ("surprise mean", None): by_hand(scored, -scored.solver_logprobs, np.mean),
        ("position", None): [0, 1] * 3,
        **{
            (f"advantage {name}", context): by_hand(scored, advantage[index], how)
            for index, context in enumerate(CONTEXTS)
            for name, how in (("mean", np.mean), ("sum", sum), ("min", min))
        },
    }
    found = {(each.name, each.context): each.scores for each in predictors(scored, found)}
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        sign = -1 if key[0].startswith("advantage") else 1  # higher is to mean "lowered"
        np.testing.assert_allclose(found[key], sign * np.array(values), rtol=1e-6, err_msg=key)


def test_a_rollout_whose_context_failed_says_nothing_of_it():
    usable = np.array([[True, False, True], [True, True, True]])
    scored, found = made(3, outcomes(8, 8, 0, 8, 8, 0, 8, 8, 0), usable=usable)
    nans = {
        each.context: np.isnan(each.scores).tolist()
        for each in predictors(scored, found)
        if each.name == "advantage mean"
    }
    assert nans == {"stepalign": [False, False, True, True, False, False],
                    "no_context": [False] * 6}  # fmt: skip
    rows = measure_truth(scored, found, drop=0.25, how=HOW)["predictors"]
    counts = {(row["name"], row["context"]): row["reasoning_steps"] for row in rows}
    assert counts["advantage sum", "stepalign"] == 4
    assert counts["advantage sum", "no_context"] == counts["position", None] == 6


def row_of(truth, name, context=None):
    [row] = [
        row for row in truth["predictors"] if (row["name"], row["context"]) == (name, context)
    ]
    return row


def test_an_advantage_that_tells_the_truth_is_found_to():
    """The second reasoning step lowers the chance in half of the rollouts."""
    rng = np.random.default_rng(0)
    lowers = np.arange(20) % 2 == 0
    counts = [count for low in lowers for count in (8, 8, 1 if low else 8)]
    blank, _ = made(20, outcomes(*counts))
    true = np.zeros(len(blank.tokens), np.float32)
    for rollout in np.flatnonzero(lowers):
        inside = blank.reasoning_step[blank.of(rollout)] == 1
        true[blank.of(rollout)][inside] = -3.0  # a slice is a view
    noise = rng.standard_normal(len(true)).astype(np.float32)
    solver = np.zeros(len(true), np.float32)
    scored, found = made(
        20, outcomes(*counts), solver_logprobs=solver, teacher_logprobs=np.stack([true, noise])
    )
    truth = measure_truth(scored, found, drop=0.25, how=HOW)
    assert (truth["lowered"], truth["raised"], truth["could_fall"]) == (10, 0, 40)
    for name in ("advantage mean", "advantage sum", "advantage min"):
        row = row_of(truth, name, "stepalign")
        assert row["auroc"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
        assert row["spearman"]["high"] == pytest.approx(-1.0)
        assert row["auroc_over_entropy"]["low"] > 0
    other = row_of(truth, "advantage mean", "no_context")
    assert 0.15 < other["auroc"]["mean"] < 0.85  # noise: a standard deviation is 0.12
    # It is right that later reasoning steps lower more; 30 of 40 pairs of a row with a
    # lowering and one without are in order, the other 10 tie.
    assert row_of(truth, "position")["auroc"]["mean"] == pytest.approx((20 + 0.5 * 10) / 30)
    assert truth["halves"]["auroc"]["mean"] == 1.0


def test_reasoning_steps_behind_a_mistake_are_left_out_where_nothing_could_fall():
    # The first reasoning step loses all, the second has nothing left to lose; in other
    # rollouts nothing is lost at all, or in the second.
    scored, found = made(6, outcomes(8, 0, 0, 8, 8, 8, 8, 8, 0, 8, 1, 0, 8, 8, 8, 8, 8, 0))
    truth = measure_truth(scored, found, drop=0.25, how=HOW)
    assert truth["reasoning_steps"] == 12 and truth["could_fall"] == 10
    real = changes(scored, found)
    position, low = found.reasoning_step, real.change <= -0.25
    live = real.before >= 0.25
    row = row_of(truth, "position")
    assert row["auroc"]["mean"] == auroc(position, low)
    assert row["auroc_where_it_could_fall"]["mean"] == auroc(position[live], low[live])
    assert row["auroc"]["mean"] != row["auroc_where_it_could_fall"]["mean"]
    assert row["spearman"]["mean"] == spearman(position, real.change)


def test_halves_agree_only_as_far_as_the_outcomes_are_no_noise():
    rng = np.random.default_rng(0)
    scored, found = made(30, rng.random((90, 32)) < 0.5)  # nothing changes anything
    halves = measure_truth(scored, found, drop=0.25, how=HOW)["halves"]
    assert abs(halves["spearman"]["mean"]) < 0.4
    chances = np.where(np.arange(90) % 3 == 2, 0.1, 0.9)[:, None]
    scored, found = made(30, rng.random((90, 32)) < chances)
    halves = measure_truth(scored, found, drop=0.25, how=HOW)["halves"]
    # A label of 16 continuations is itself wrong now and then.
    assert halves["auroc"]["mean"] > 0.95 and halves["spearman"]["mean"] > 0.5


def test_where_nothing_was_lowered_there_is_no_auroc():
    scored, found = made(3, outcomes(*[8] * 9))
    truth = measure_truth(scored, found, drop=0.25, how=HOW)
    assert truth["lowered"] == 0
    row = row_of(truth, "advantage mean", "stepalign")
    assert row["auroc"] is None and row["auroc_over_entropy"] is None
    assert row["spearman"] is None  # all changes are alike


@pytest.mark.parametrize(
    ("before", "after"), [(8, 6), (8, 7), (6, 8), (7, 8), (2, 0), (0, 0), (0, 8), (8, 0)]
)
def test_a_drop_is_a_drop_at_its_very_threshold(before, after):
    scored, found = made(1, outcomes(before, after, after))
    truth = measure_truth(scored, found, drop=0.25, how=HOW._replace(num_resamples=1))
    assert truth["lowered"] == int(before - after >= 2)
    assert truth["raised"] == int(after - before >= 2)


@pytest.mark.parametrize("chance", [0.02, 0.1, 0.3, 0.5, 0.7, 0.98])
def test_of_reasoning_steps_that_change_nothing_few_seem_to_lower(chance):
    """What the module says of a drop of 0.25 at n = 32."""
    n = np.arange(33)
    odds = np.array([math.comb(32, k) * chance**k * (1 - chance) ** (32 - k) for k in n])
    seem_to_lower = (n[:, None] - n[None, :]) / 32 >= 0.25  # before - after
    assert (odds[:, None] * odds[None, :])[seem_to_lower].sum() < 0.031
