# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A whole run on 8 simulated devices does what one device does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.runs import small_config, write_config

from stepalign_jax import train
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.runs.directory import RunDirectory

STEPS = {"num_steps": 3, "validate_every_steps": 0, "checkpoint_every_steps": 3}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_eight_devices_train_like_one(kind, tmp_path):
    sections: dict[str, Any] = {"train": STEPS, "trainable": {"kind": kind}}
    one = small_config(tmp_path / "one", **sections)
    train.train(one)
    sections["parallel"] = {"data": 2, "fsdp": 2, "tensor": 2}
    eight = small_config(tmp_path / "eight", **sections)
    spec = write_config(tmp_path / "eight.py", eight)
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "stepalign_jax.train", "--config", spec]
    finished = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    ours, theirs = RunDirectory.of(one), RunDirectory.of(eight)
    pairs = zip(read_jsonl(ours.metrics_file), read_jsonl(theirs.metrics_file), strict=True)
    for expected, found in pairs:
        for name in ("loss", "gradient_norm", "advantage_abs_mean", "solver_logprob_mean"):
            assert found[name] == pytest.approx(expected[name], rel=2e-3), name
        for name in ("solver_tokens", "tokens_in_loss", "reward"):
            assert found[name] == expected[name], name
    # What is first met in the first two steps is compiled then, and never again.
    last = read_jsonl(theirs.timings_file)[-1]
    assert last["compilations"] == 0
