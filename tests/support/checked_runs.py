# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What holds of every finished run of `support.runs.small_config`."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.config.schema import Config
from stepalign_jax.runs.checkpoint import finished_steps
from stepalign_jax.runs.directory import RunDirectory

SCORES = {"avg_at_k", "pass_at_k", "maj_at_k", "mean_tokens", "greedy", "truncated", "unparsed"}


def check_files(run: RunDirectory, config: Config) -> None:
    """Every file of a finished run is there, with a row per step."""
    steps = list(range(config.train.num_steps))
    saved = json.loads(json.dumps(dataclasses.asdict(config)))
    assert read_json(run.config_file) == saved
    prompts = read_json(run.prompts_file)
    found = prompts.pop("alignment", None)
    assert prompts.keys() == {"solver", "teacher", "critic"}
    if config.condition == "grpo":
        assert found is None
    else:  # one template for all roles, and no thoughts
        assert 0 <= found["same_prompt_kl"] <= 1e-6 and found["template_artefacts"] == []
    assert [row["step"] for row in read_jsonl(run.metrics_file)] == steps
    assert [row["step"] for row in read_jsonl(run.timings_file)] == steps
    written = events(run)
    wanted = ["config/text_summary", "prompts/solver/text_summary", "solver/correct_rollouts"]
    wanted += ["_hparams_/session_start_info", "_hparams_/session_end_info", "test/avg_at_k"]
    assert [tag for tag in wanted if tag.encode() not in written] == []
    rollouts = sorted(path.name for path in (run.path / "rollouts").iterdir())
    assert rollouts == [run.rollouts_file(step).name for step in steps]
    assert finished_steps(run.checkpoints)[-1] == config.train.num_steps


def events(run: RunDirectory) -> bytes:
    """What TensorBoard reads of a run."""
    return b"".join(path.read_bytes() for path in run.tensorboard.glob("events.*"))


def check_summary(summary: dict[str, Any], config: Config) -> None:
    """A summary has every score with an interval, and gains that are differences."""
    for side in ("before", "after", "gain"):
        assert summary[side].keys() == SCORES
        for interval in summary[side].values():
            assert interval.keys() == {"mean", "low", "high"}
            assert interval["low"] <= interval["mean"] <= interval["high"]
    for name in SCORES:
        gain = summary["after"][name]["mean"] - summary["before"][name]["mean"]
        assert summary["gain"][name]["mean"] == pytest.approx(gain)
    assert 0 < summary["step_seconds"] < summary["seconds"]
    assert (summary["condition"], summary["seed"]) == (config.condition, config.seed)
    assert (summary["k"], summary["num_problems"]) == (2, 4)


def check_metrics(run: RunDirectory) -> None:
    """Rows of metrics are finite, and count what the rollouts hold."""
    rows = read_jsonl(run.metrics_file)
    for row in rows:
        assert all(value is None or math.isfinite(value) for value in row.values())
        assert row["sampler_logprob_gap"] < 1e-4  # float32: sampler and scorer agree
        rollouts = read_jsonl(run.rollouts_file(row["step"]))
        used = [len(r["tokens"]) for r in rollouts if r["failure"] is None]
        assert row["tokens_in_loss"] == sum(used)
        assert row["contexts_failed"] == len(rollouts) - len(used)
        assert row["solver_tokens"] == sum(len(r["tokens"]) for r in rollouts)
        assert row["reward"] == np.mean([r["correct"] for r in rollouts])
    tokens = sum(row["solver_tokens"] for row in rows)
    assert read_json(run.summary_file)["solver_tokens"] == tokens
