# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A whole run on 8 simulated devices does what one device does."""

from typing import Any

import pytest
from support.runs import output_on_devices, small_config, write_config

from stepalign_jax import train
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.runs.directory import RunDirectory

LORA = {
    "kind": "lora",
    "rank": 2,
    "alpha": 4.0,
    "targets": ("q_proj", "down_proj"),
    "adapter": "",
}
STEPS = {"num_steps": 3, "validate_every_steps": 0, "checkpoint_every_steps": 3}


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [{"kind": "full"}, LORA], ids=["full", "lora"])
def test_eight_devices_train_like_one(trainable, tmp_path):
    sections: dict[str, Any] = {"train": STEPS, "trainable": trainable}
    one = small_config(tmp_path / "one", **sections)
    train.train(one)
    sections["parallel"] = {"data": 2, "fsdp": 2, "tensor": 2}
    eight = small_config(tmp_path / "eight", **sections)
    spec = write_config(tmp_path / "eight.py", eight)
    program = f"from stepalign_jax import train\ntrain.main(['--config', {spec!r}])"
    output_on_devices(program, num_devices=8, timeout_secs=600)
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
