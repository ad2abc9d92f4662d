# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What test modules share: a run of seconds, a config file, an engine of fixed words."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.cli import EXIT_USER_ERROR, run_command
from stepalign_jax.config.load import load_config
from stepalign_jax.config.merge import apply_overrides
from stepalign_jax.config.schema import Config
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.tokenizer import load_tokenizer
from stepalign_jax.tiny.tokenizer import END, PAD, VOCABULARY, encode

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs" / "tiny.py")


def small_config(runs_dir: Path, condition: str = "stepalign", **sections: Any) -> Config:
    """The miniature's config cut down to seconds: 4 rollouts a step, 4 optimizer steps.

    Args:
      runs_dir: where the run goes.
      condition: a variant of configs/tiny.py.
      sections: changes by section (`train={"num_steps": 2}`), or new values by name; a
        `kind` chooses a section's class, which keeps the keys that it shares. A section may
        also be given whole, as its class.
    """
    config = load_config(f"{TINY}:{condition}")
    decode = {"max_new_tokens": 40, "batch_size": 4}  # three reasoning steps and an answer
    # One batch size and budget, so that training and evaluation share compilations.
    changes: dict[str, Any] = {
        "problems": {
            "num_train": 16,
            "num_validation": 2,
            "num_test": 4,
            "min_reasoning_steps": 3,
            "max_reasoning_steps": 3,
        },
        "sampling": decode,
        "critic": decode,
        "optimizer": {"warmup_steps": 1},
        "train": {
            "num_steps": 4,
            "problems_per_step": 2,
            "samples_per_problem": 2,
            "checkpoint_every_steps": 2,
            "preflight_problems": 0,
            "validate_every_steps": 2,
            "sample_texts_every_steps": 2,
        },
        "evaluation": {
            **decode,
            "num_samples": 2,
            "num_validation_samples": 2,
            "num_resamples": 50,
        },
    }
    whole = {name: v for name, v in sections.items() if dataclasses.is_dataclass(v)}
    parts = {name: value for name, value in sections.items() if name not in whole}
    config = apply_overrides(config, list(_overrides(changes)))
    config = apply_overrides(config, list(_overrides(parts)))
    return dataclasses.replace(config, runs_dir=str(runs_dir), **whole)


def _overrides(changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """{"critic": {"kind": "self", "top_k": 3}} -> --critic.kind=self --critic.top_k=3"""
    for name, value in changes.items():
        if isinstance(value, dict):
            yield from _overrides(value, f"{prefix}{name}.")
        else:
            text = ",".join(value) if isinstance(value, tuple) else value
            yield f"--{prefix}{name}={text}"


def write_config(path: Path, config: Config) -> str:
    """Writes a config file that returns `config`, and returns its path for --config."""
    path.write_text(
        "from stepalign_jax.config.critics import *\n"
        "from stepalign_jax.config.learning import *\n"
        "from stepalign_jax.config.schema import *\n\n\n"
        f"def get_config(variant=''):\n    return {config!r}\n"
    )
    return str(path)


def refusal(
    main: Callable[[list[str]], None],
    argv: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """Returns the sentence with which a command refuses its arguments: one line, status 2."""
    monkeypatch.setattr(sys, "argv", ["command", *argv])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    error = capsys.readouterr().err
    assert stop.value.code == EXIT_USER_ERROR
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1
    return error.removeprefix("error: ").rstrip()


def tiny_roles(**prompts: Any) -> Roles:
    """The miniature's tokenizer and prompts, `prompts` changed."""
    config = load_config(TINY).prompts
    tokenizer = load_tokenizer(resolve_checkpoint("packaged:tiny"))
    return Roles(tokenizer, dataclasses.replace(config, **prompts))


def output_on_devices(
    code: str, *, num_devices: int, timeout_secs: float = 280, **variables: str
) -> str:
    """Returns what `code` prints in a process that has so many simulated devices.

    It may import test modules by their room, as `from parallel.test_mesh import parallel`.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        **variables,
    }
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment, capture_output=True, text=True, timeout=timeout_secs, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout.strip()


def output_with_tpu_compiler(code: str) -> str:
    """Returns the last line that `code` prints in a process that may compile for TPUs."""
    chips = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    return output_on_devices(code, num_devices=1, **chips).splitlines()[-1]


class ScriptedEngine:
    """Answers each call of `sample` with the next script, and remembers what it was asked.

    A script is one text per request; a text that ends in `...` is cut there by the budget,
    any other text is followed by the stop token.
    """

    def __init__(self, *scripts: Sequence[str]):
        self._scripts = list(scripts)
        self.calls: list[dict[str, Any]] = []

    def sample(self, variables: Any, requests: Any, **options: Any) -> Rollouts:
        self.calls.append({"variables": variables, "requests": requests, **options})
        texts = self._scripts.pop(0)
        assert len(texts) == len(requests)
        finished = np.array([not text.endswith("...") for text in texts], bool)
        rows = [encode(text.removesuffix("...")) for text in texts]
        rows = [
            [*row, VOCABULARY[END]] if done else [*row]
            for row, done in zip(rows, finished, strict=True)
        ]
        tokens = np.full((len(rows), max(map(len, rows), default=0)), VOCABULARY[PAD], np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        zeros = np.zeros(tokens.shape, np.float32)
        lengths = np.array([len(row) for row in rows], np.int32)
        return Rollouts(tokens, zeros, lengths, finished)
