# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run came to, worked by hand from two metrics rows, three timings, two evaluations."""

import numpy as np
import pytest
from support.runs import small_config

from stepalign_jax.base.files import write_jsonl
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.summary import summarise


def test_a_summary_by_hand(tmp_path):
    config = small_config(tmp_path, "refsol", seed=3, evaluation={"num_validation_samples": 1})
    run = RunDirectory(tmp_path)
    write_jsonl(
        run.metrics_file, [{"step": s, "solver_tokens": n} for s, n in ((0, 40.0), (1, 25.0))]
    )
    timings = [{"total": 3.0}, {"total": 9.5, "validate": 5.0, "analyze": 0.5}, {"total": 2.0}]
    write_jsonl(run.timings_file, timings)
    # Every problem gains alike, so the interval of the gain is a point.
    before = Evaluation(
        {"avg_at_k": np.array([0.25, 0.25, 0.5]), "mean_tokens": np.full(3, 8.0)}
    )
    after = Evaluation(
        {"avg_at_k": np.array([0.75, 0.75, 1.0]), "mean_tokens": np.full(3, 6.0)}
    )
    found = summarise(config, run, before, after, seconds=77.0)
    assert found["gain"]["avg_at_k"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert found["gain"]["mean_tokens"] == {"mean": -2.0, "low": -2.0, "high": -2.0}
    assert found["before"]["avg_at_k"]["mean"] == pytest.approx(1 / 3)
    assert found["after"]["avg_at_k"]["mean"] == pytest.approx(5 / 6)
    assert found["after"]["mean_tokens"]["mean"] == 6.0
    numbers = {name: found[name] for name in found.keys() - {"before", "after", "gain"}}
    assert numbers == {
        "name": config.name,
        "condition": "refsol",
        "seed": 3,
        "k": 2,
        "num_problems": 3,
        "solver_tokens": 65,
        "step_seconds": 3.0 + 4.0 + 2.0,
        "seconds": 77.0,
    }
