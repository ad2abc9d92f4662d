# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How much the best of several checkpoints flatters, when it is chosen on the test problems.

The paper (arXiv 2606.11173) is read to report, for each number, the best checkpoint on the same
30 problems that the number is of. Its noise is then chosen as well:

    checkpoint           step 10   step 20   step 30
    on the test             40        47        43     reported: 47
    on other problems       41        44        45     chosen: step 30, whose test value is 43
                                                       the effect: 47 - 43 = 4 points

Both sides are measured on the curve that a run has anyway: its validation problems are cut at
random, many times, into 30 that play the test and others that play the validation.
"""

from typing import NamedTuple

import numpy as np

TEST_PROBLEMS = 30  # as many as the paper is read to have
NUM_SPLITS = 2000
_SEED = 0


class SelectionEffect(NamedTuple):
    """Means over splits, of one run; shares in 0..1.

    Attributes:
      best_on_test: the highest value on the problems that play the test.
      chosen_elsewhere: their value at the checkpoint that is best on the other problems.
      effect: the first less the second.
    """

    best_on_test: float
    chosen_elsewhere: float
    effect: float


def selection_effect(
    curve: np.ndarray,
    *,
    num_test: int = TEST_PROBLEMS,
    num_splits: int = NUM_SPLITS,
    seed: int = _SEED,
) -> SelectionEffect:
    """Returns what choosing a checkpoint on the test problems adds to a run's number.

    Of checkpoints with equal means the earliest is chosen.

    Args:
      curve: [num_checkpoints, num_problems] a metric per checkpoint and problem.
      num_test: problems of each split that play the test.
      num_splits: random splits.
      seed: of the splits.

    Raises:
      ValueError: `curve` is no matrix with a checkpoint, or leaves no problem to choose on.
    """
    curve = np.asarray(curve, np.float64)
    if curve.ndim != 2 or not len(curve):
        raise ValueError(
            f"curve must be [num_checkpoints, num_problems] and not empty, not {curve.shape}"
        )
    num_problems = curve.shape[1]
    if not 0 < num_test < num_problems:
        raise ValueError(f"{num_test} test problems of {num_problems} leave none to choose on")
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(num_problems), (num_splits, 1)), axis=1)
    on_test = curve[:, order[:, :num_test]].mean(axis=2)  # [num_checkpoints, num_splits]
    elsewhere = curve[:, order[:, num_test:]].mean(axis=2)
    chosen = np.take_along_axis(on_test, elsewhere.argmax(axis=0)[None], axis=0)[0]
    best, honest = float(on_test.max(axis=0).mean()), float(chosen.mean())
    return SelectionEffect(best, honest, best - honest)
