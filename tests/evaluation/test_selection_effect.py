# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What the best checkpoint on the test problems adds, on curves whose answer is known."""

import itertools

import numpy as np
import pytest

from stepalign_jax.evaluation.selection_effect import selection_effect


def test_by_hand_over_all_splits():
    # Two checkpoints, three problems, one of which plays the test: three equally likely splits.
    curve = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.75]])
    best, chosen = [], []
    for test in range(3):
        others = [problem for problem in range(3) if problem != test]
        best.append(curve[:, test].max())
        chosen.append(curve[curve[:, others].mean(axis=1).argmax(), test])
    found = selection_effect(curve, num_test=1, num_splits=60_000)
    assert found.best_on_test == pytest.approx(np.mean(best), abs=0.01)
    assert found.chosen_elsewhere == pytest.approx(np.mean(chosen), abs=0.01)
    assert found.effect == pytest.approx(found.best_on_test - found.chosen_elsewhere)
    assert found.effect > 0.3


def test_one_checkpoint_or_equal_ones_leave_nothing_to_choose():
    row = np.linspace(0, 1, 50)
    assert selection_effect(row[None]).effect == 0.0
    assert selection_effect(np.stack([row, row, row])).effect == 0.0


def test_noise_alone_flatters_by_as_much_as_the_maximum_of_its_means():
    # Six checkpoints of equal worth: the effect is E[max of 6 normals] = 1.267 standard errors,
    # and the chosen value has no bias. Many curves, since one has a maximum of its own.
    rng = np.random.default_rng(0)
    found = [
        selection_effect(rng.normal(0.5, 1.0, (6, 2000)), num_splits=200) for _ in range(20)
    ]
    assert np.mean([f.effect for f in found]) == pytest.approx(1.267 / np.sqrt(30), rel=0.1)
    assert np.mean([f.chosen_elsewhere for f in found]) == pytest.approx(0.5, abs=0.03)


def test_it_is_never_negative_and_the_same_twice():
    rng = np.random.default_rng(1)
    for checkpoints, problems in itertools.product((1, 2, 6), (31, 100)):
        curve = rng.random((checkpoints, problems))
        assert selection_effect(curve).effect >= 0
        assert selection_effect(curve) == selection_effect(curve)


@pytest.mark.parametrize("shape", [(0, 40), (40,), (3, 30), (3, 0)])
def test_what_leaves_nothing_to_choose_on_is_refused(shape):
    with pytest.raises(ValueError, match=r"curve must be|leave none"):
        selection_effect(np.zeros(shape))
