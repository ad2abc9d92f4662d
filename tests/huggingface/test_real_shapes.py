# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A random Qwen3-0.6B at its real shape, written by transformers: tokens, bits and memory."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STAGES = Path(__file__).parents[1] / "support" / "real_shapes.py"
MIB = 1 << 20
# Above the params: two tensors of a layer (12 MiB each in fp32), the reading threads' rows,
# and what some twenty small compilations leave in the process.
LOAD_CONSTANT = 160 * MIB
SAVE_CONSTANT = 64 * MIB


def stage(*arguments: str) -> dict[str, Any]:
    """Runs one stage of real_shapes.py on one simulated device, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(STAGES), *arguments],
        cwd=STAGES.parents[2],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(STAGES.parents[2]), str(STAGES.parents[1])]),
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The directory with fp32 and bf16 in it, and what transformers generated."""
    pytest.importorskip("torch")
    directory = tmp_path_factory.mktemp("real")
    yield directory, stage("write", str(directory))
    shutil.rmtree(directory)  # gigabytes, which pytest would keep


def assert_same_files(left: Path, right: Path) -> None:
    """Compares all tensors bit for bit, one at a time."""
    found = {}
    for side in (left, right):
        for file in side.glob("*.safetensors"):
            with safe_open(file, framework="numpy") as tensors:
                found[side] = found.get(side, {}) | dict.fromkeys(tensors.keys(), file)
    assert found[left].keys() == found[right].keys()
    for name in found[left]:
        both = []
        for side in (left, right):
            with safe_open(found[side][name], framework="numpy") as tensors:
                both.append(tensors.get_tensor(name))
        assert both[0].dtype == both[1].dtype and both[0].shape == both[1].shape
        assert both[0].tobytes() == both[1].tobytes(), name


def test_greedy_tokens_are_those_of_transformers(made):
    directory, theirs = made
    assert theirs["margin"] > 1e-3  # else rounding would choose
    assert len({token for row in theirs["tokens"] for token in row}) > 16
    assert stage("generate", str(directory / "fp32"))["tokens"] == theirs["tokens"]


@pytest.mark.parametrize(
    ("source", "dtype"),
    [("fp32", "as-saved"), ("bf16", "as-saved"), ("bf16", "float32"), ("fp32", "bfloat16")],
)
def test_peak_memory_is_the_weights_and_a_constant(made, capsys, source, dtype):
    source, saved = made[0] / source, made[0] / "saved"
    measured = stage("load", str(source), str(saved), dtype)
    above = measured["load_peak"] - measured["final"]
    file_bytes = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    with capsys.disabled():
        print(
            f"\n  {source.name} -> {dtype}: weights {measured['final'] / MIB:.0f} MiB, peak "
            f"while loading {above / MIB:.0f} MiB above them (largest tensor "
            f"{measured['embedding'] / MIB:.0f} MiB), {measured['load_secs']:.1f} s = "
            f"{file_bytes / measured['load_secs'] / 1e9:.2f} GB/s with compilation; peak "
            f"while saving {measured['save_peak'] / MIB:.0f} MiB above",
            end=" ",
        )
    assert above < LOAD_CONSTANT < measured["embedding"]
    assert measured["save_peak"] < SAVE_CONSTANT
    if dtype == "as-saved":
        assert_same_files(source, saved)
