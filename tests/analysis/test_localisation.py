# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the advantage falls: numbers worked by hand, and what holds of any scores."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hand_scored import scored_texts
from support.runs import tiny_roles

from stepalign_jax.analysis.localisation import (
    AFTER,
    BEFORE,
    FIRST,
    MEASURES,
    NOWHERE,
    judged_steps,
    localisation,
    right_rollouts,
    step_means,
    token_parts,
)
from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.problems.problem import Problem

ROLES = tiny_roles()
HOW: dict[str, Any] = {"num_resamples": 60, "confidence": 0.9, "seed": 0}
RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71"
SHORT = "Step 1: 3*8=24\nAnswer: 24"
# Tokens: `Step 1: ` 3 * 8 = 2 4 \n | `Step 2: ` 4 7 + 2 4 = 7 1 \n | `Answer: ` 7 1 <end>
FIRST_STEP, SECOND_STEP, REST = slice(0, 8), slice(8, 18), slice(18, 22)


def scored(
    advantages: Any,
    *,
    first_error: list[int],
    correct: list[bool],
    texts: Any = None,
) -> ScoredRollouts:
    """Rollouts of problems of their own; `advantages` [C, N], as the texts give tokens."""
    texts = texts or [RIGHT] * len(correct)
    problems = [Problem(f"3*8+{n}", "71", None, "test") for n in range(len(texts))]
    advantages = np.asarray(advantages, np.float32)
    names = [f"context_{n}" for n in range(len(advantages))]
    made = scored_texts(
        ROLES, problems, texts, names,
        first_error=np.array(first_error, np.int32), correct=np.array(correct),
    )  # fmt: skip
    assert advantages.shape == (len(names), len(made.tokens))
    solver = np.zeros(len(made.tokens), np.float32)
    return dataclasses.replace(made, solver_logprobs=solver, teacher_logprobs=advantages)


def with_rows(made: ScoredRollouts, key: str, values: list[Any]) -> ScoredRollouts:
    rows = [{**row, key: value} for row, value in zip(made.rows, values, strict=True)]
    return dataclasses.replace(made, rows=rows)


def means(found: dict[str, Any], name: str = "context_0") -> dict[str, Any]:
    numbers = found["contexts"][name]
    return {m: None if numbers[m] is None else numbers[m]["mean"] for m in MEASURES}


def test_the_tokens_are_those_of_the_worked_example():
    made = scored(np.zeros((1, 22)), first_error=[1], correct=[False])
    steps = made.reasoning_step
    assert (steps[FIRST_STEP] == 0).all() and (steps[SECOND_STEP] == 1).all()
    assert (steps[REST] == -1).all()
    parts = token_parts(made)
    assert (parts[FIRST_STEP] == BEFORE).all() and (parts[SECOND_STEP] == FIRST).all()
    assert (parts[REST] == AFTER).all()


def test_a_missing_reasoning_step_has_a_prefix_and_no_tokens_of_its_own():
    made = scored(np.ones((1, 12)), first_error=[1], correct=[False], texts=[SHORT])
    assert token_parts(made).tolist() == [BEFORE] * 8 + [AFTER] * 4
    numbers = means(localisation(made, **HOW))
    assert numbers["abs_before"] is numbers["abs_first"] is numbers["abs_after"] is None
    assert numbers["false_blame_prefix"] == 0.0


def test_rollouts_without_a_known_error_have_no_parts():
    made = scored(np.ones((1, 44)), first_error=[-1, -2], correct=[True, False])
    assert (token_parts(made) == NOWHERE).all()
    assert right_rollouts(made).tolist() == [True, False]


def by_hand() -> ScoredRollouts:
    """One wrong rollout whose error is its second reasoning step, and one right one.

    |A| of the wrong one: 2 before, 6 in the error, 2 after. Of the right one: 4.
    """
    wrong, right = np.zeros(22), np.zeros(22)
    wrong[1], wrong[2] = 1.5, -0.5  # in `3*`: one token of eight is blamed a little
    wrong[15] = -6.0  # the 7 of 71
    wrong[18], wrong[19] = 1.0, -1.0  # `Answer: ` is markup
    right[3], right[16] = -1.0, 3.0
    return scored([[*wrong, *right]], first_error=[1, -1], correct=[False, True])


def test_every_measure_by_hand():
    made = with_rows(by_hand(), "contexts", [[SHORT], [""]])
    kl = np.zeros((1, 44), np.float32)
    kl[0, [0, 15]] = 1.0, 3.0
    numbers = means(localisation(dataclasses.replace(made, kl=kl), **HOW))
    words = 19  # Step 1 : 3 * 8 = 24 Step 2 : 47 + 24 = 71 Answer : 71
    expected = {
        "abs_before": 2.0 / 10,
        "abs_first": 6.0 / 10,
        "abs_after": 2.0 / 10,
        # The mean of the error, -0.6, is below those of three right reasoning steps.
        "auroc": 1.0,
        "false_blame_correct": 1.0 / 4,
        "false_blame_prefix": 0.5 / 2,
        "blamed_tokens_correct": 1 / 22,  # -1 is below -log 2
        "blamed_tokens_prefix": 0.0,  # -0.5 is not
        "abs_on_markup": 1.0 / 14,
        "kl_on_markup": 1.0 / 4,
        # `Step 1 : 3 * 8 = 24` and then `Answer :`; nothing of the other.
        "copied_head": (8 / words + 0) / 2,
        "copied": (10 / words + 0) / 2,
    }
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, abs=1e-9), name


def test_a_context_that_failed_does_not_count():
    made = by_hand()
    usable = np.array([[False, True]])
    found = localisation(dataclasses.replace(made, usable=usable), **HOW)
    numbers = means(found)
    assert found["contexts"]["context_0"]["usable"] == 1
    assert numbers["abs_first"] is numbers["auroc"] is numbers["false_blame_prefix"] is None
    assert numbers["false_blame_correct"] == pytest.approx(1 / 4)


def test_reasoning_steps_behind_the_error_are_not_judged():
    text = "Step 1: 3*8=25\nStep 2: 47+25=72\nAnswer: 72"
    texts = [text, RIGHT, RIGHT]
    made = scored(
        np.zeros((1, 66)), first_error=[0, -1, -2], correct=[False, True, True], texts=texts
    )
    known, wrong = judged_steps(made)
    rollout, step, _ = step_means(made, made.advantage[0])
    pairs = list(zip(rollout.tolist(), step.tolist(), strict=True))
    assert [pair for pair, is_known in zip(pairs, known, strict=True) if is_known] == [
        (0, 0), (1, 0), (1, 1),
    ]  # fmt: skip
    assert [pair for pair, is_wrong in zip(pairs, wrong, strict=True) if is_wrong] == [(0, 0)]


def test_means_of_reasoning_steps_are_over_their_own_tokens():
    made = by_hand()
    rollout, step, found = step_means(made, made.advantage[0])
    assert rollout.tolist() == [0, 0, 1, 1] and step.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(found, [1.0 / 8, -6.0 / 10, -1.0 / 8, 3.0 / 10], rtol=1e-6)


def test_counts_and_even_spread():
    found = localisation(by_hand(), **HOW)
    assert found["counts"] == {
        "rollouts": 2, "problems": 2, "tokens": 44, "right": 1, "wrong": 1, "unknown": 0,
    }  # fmt: skip
    assert found["tokens"]["before"] == pytest.approx(8 / 22)
    assert found["tokens"]["first"] == pytest.approx(10 / 22)
    assert found["tokens"]["after"] == pytest.approx(4 / 22)


def test_intervals_draw_problems_with_all_their_rollouts():
    """Ten rollouts of one problem and one of another: two values, whatever is drawn."""
    rng = np.random.default_rng(1)
    made = scored(rng.normal(size=(1, 22 * 11)), first_error=[1] * 11, correct=[False] * 11)
    made = with_rows(made, "problem", ["same"] * 10 + ["other"])
    interval = localisation(made, **HOW)["contexts"]["context_0"]
    size = np.abs(made.advantage[0].astype(np.float64)).reshape(11, 22)
    alone = [size[part][:, SECOND_STEP].sum() / size[part].sum() for part in ([10], range(10))]
    assert interval["abs_first"]["low"] == pytest.approx(min(alone))
    assert interval["abs_first"]["high"] == pytest.approx(max(alone))


ADVANTAGES = st.lists(st.floats(-8, 8, allow_nan=False, width=32), min_size=66, max_size=66)
ERRORS = st.lists(st.sampled_from([-2, -1, 0, 1]), min_size=3, max_size=3)


@given(ADVANTAGES, ERRORS, st.lists(st.booleans(), min_size=3, max_size=3))
@settings(max_examples=25)
def test_any_scores_give_shares(values, errors, correct):
    def measured(advantages: Any) -> dict[str, Any]:
        made = scored([advantages], first_error=errors, correct=correct)
        return means(localisation(made, **HOW | {"num_resamples": 5}))

    numbers = measured(values)
    shares = [value for value in numbers.values() if value is not None]
    assert all(0 <= value <= 1 + 1e-12 for value in shares)
    parts = [numbers[name] for name in ("abs_before", "abs_first", "abs_after")]
    if parts[0] is not None:
        assert sum(parts) == pytest.approx(1)
    # The size of all advantages changes no share, and their sign no share of |A|.
    doubled, turned = measured(np.multiply(2, values)), measured(np.negative(values))
    for name, value in numbers.items():
        same = value if value is None else pytest.approx(value)
        if not name.startswith("blamed"):
            assert doubled[name] == same
        if name.startswith("abs"):
            assert turned[name] == same
        if value is not None and name in ("auroc", "false_blame_correct", "false_blame_prefix"):
            assert turned[name] == pytest.approx(1 - value)


def test_no_advantage_at_all_gives_no_share():
    made = scored(np.zeros((1, 22)), first_error=[1], correct=[False])
    numbers = means(localisation(made, **HOW))
    assert numbers["abs_first"] is None and numbers["abs_on_markup"] is None
    assert numbers["auroc"] == 0.5 and not math.isnan(numbers["blamed_tokens_prefix"])
