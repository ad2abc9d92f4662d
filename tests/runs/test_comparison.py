# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a comparison takes from its cells beside their gains."""

import pytest

from stepalign_jax.config.load import load_config
from stepalign_jax.runs.comparison import selection_effects, unsolved


def test_what_choosing_a_checkpoint_adds_is_taken_from_the_validation_behind_the_first_step():
    steps = [[0, [1.0] * 60], [10, [0.0] * 60], [20, [0.25] * 60], [30, [0.5] * 60]]
    (found,) = selection_effects([{"curve_by_problem": steps}])
    assert found == {"best_on_test": 0.5, "chosen_elsewhere": 0.5, "effect": 0.0}


@pytest.mark.parametrize(
    "curve", [[], [[0, [1.0] * 60], [10, [0.0] * 60]], [[10, [0.5] * 59], [20, [0.5] * 59]]]
)
def test_a_run_with_nothing_to_choose_from_says_nothing_of_the_choice(curve):
    whole = [[10, [0.0] * 60], [20, [0.25] * 60]]
    assert selection_effects([{"curve_by_problem": whole}, {"curve_by_problem": curve}]) == []
    assert selection_effects([{}]) == []  # of an older version


def scored(*, before: list[float], after: list[float]) -> dict[str, dict[str, list[float]]]:
    """A cell with these Avg@4 by problem."""
    sides = {"before": before, "after": after}
    return {
        side: {
            "avg_at_k": rates,
            "pass_at_k": [float(rate > 0) for rate in rates],
            "maj_at_k": [float(rate > 0.5) for rate in rates],
            "num_samples": [4.0] * len(rates),
        }
        for side, rates in sides.items()
    }


def test_problems_that_no_base_solved_are_looked_at_alone():
    how = load_config("tiny").evaluation
    cells = {
        "control": {0: scored(before=[0, 0, 0, 1.0], after=[0.25, 0, 0, 1.0])},
        "taught": {
            0: scored(before=[0, 0, 0, 0.5], after=[0.75, 0, 0, 1.0]),
            1: scored(before=[0, 0.25, 0, 0.5], after=[1.0, 1.0, 0.25, 1.0]),
        },
        "alone": {2: scored(before=[0, 0, 0, 0], after=[0, 0, 0, 0])},
    }
    found = unsolved(["control", "taught", "alone"], cells, how)
    # The first and the third: the second base of `taught` solved the second, once.
    assert (found["num_problems"], found["num_samples"]) == (2, 12)
    means = {label: scores["avg_at_k"]["mean"] for label, scores in found["after"].items()}
    assert means == {"control": 0.125, "taught": 0.5, "alone": 0.0}
    assert found["after"]["taught"]["pass_at_k"]["mean"] == 0.75
    assert found["differences"]["taught"]["mean"] == pytest.approx(
        0.125 - 0.375
    )  # seed 0 alone
    assert found["differences"]["alone"] is None


def test_a_base_that_solves_everything_leaves_nothing_unsolved():
    cell = scored(before=[0.5, 1.0], after=[1.0, 1.0])
    assert unsolved(["a"], {"a": {0: cell}}, load_config("tiny").evaluation) == {}
