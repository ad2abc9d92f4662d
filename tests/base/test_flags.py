# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Flags of JAX in the environment change no token."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from stepalign_jax import generate
from stepalign_jax.base.flags import PINNED, pin_flags

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["--model", "packaged:tiny", "--prompt", "47+3*8-12", "--temperature", "1.1"]
NOT_FOLLOWED = {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_RANDOM_SEED_OFFSET": "7",
    "JAX_HIGH_DYNAMIC_RANGE_GUMBEL": "1",
    "JAX_DEBUG_KEY_REUSE": "1",
}
HARMLESS = {
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_MATMUL_PRECISION": "float32",
    "JAX_DISABLE_JIT": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_CHECK_TRACER_LEAKS": "1",
    "JAX_DEFAULT_DTYPE_BITS": "64",
    "JAX_LEGACY_PRNG_KEY": "error",
    "JAX_ENABLE_CUSTOM_PRNG": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


def answer_with(**variables: str) -> tuple[str, list[str]]:
    """Returns what `generate` prints in a process of its own, and the lines on stderr."""
    kept = {k: v for k, v in os.environ.items() if "CACHE" in k or not k.startswith("JAX_")}
    ended = subprocess.run(
        [sys.executable, "-m", "stepalign_jax.generate", *ARGUMENTS],
        env={**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout, ended.stderr.splitlines()


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> str:
    generate.main(ARGUMENTS)
    return capsys.readouterr().out


@pytest.mark.long
def test_flags_that_decide_tokens_are_not_followed(answer: str) -> None:
    found, lines = answer_with(**NOT_FOLLOWED)
    assert found == answer
    assert [line.split()[1] for line in lines if "not followed" in line] == [
        name.upper() for name in PINNED
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NOT_FOLLOWED, *HARMLESS])
def test_a_flag_alone_changes_no_token(name: str, answer: str) -> None:
    found, lines = answer_with(**{name: (NOT_FOLLOWED | HARMLESS)[name]})
    assert found == answer
    assert any(f"note: {name} " in line for line in lines) == (name in NOT_FOLLOWED)


def test_flags_as_they_should_be_are_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    pin_flags()
    assert capsys.readouterr().err == ""
    jax.config.update("jax_random_seed_offset", 3)
    pin_flags()
    assert jax.config.jax_random_seed_offset == 0
    assert capsys.readouterr().err == (
        "note: JAX_RANDOM_SEED_OFFSET is 3, which is not followed: runs are defined with 0\n"
    )
