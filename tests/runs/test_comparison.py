# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a comparison takes from the validation curves of its cells."""

import pytest

from stepalign_jax.runs.comparison import selection_effects


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
