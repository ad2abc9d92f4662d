# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""configs/stepalign.py from a data set to a trained run, at the shape of Qwen3-0.6B.

Weights are random and lengths short; all else is as a user has it: `prepare` on a file with
OpenMathReasoning's columns, then `train`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support.checkpoint_files import write
from support.goldens import random_tensors
from support.openmath import openmath_row, write_parquet
from support.stub_server import MODEL, StubServer, serving
from support.toy_tokenizers import build

from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.config.load import load_config

ROOT = Path(__file__).parents[2]
QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
SHORT = {
    "model.compute_dtype": "float32",
    "problems.num_train": 4,
    "problems.num_validation": 2,
    "problems.num_test": 2,
    "problems.base_avg_below": 0,  # random weights solve nothing: the filter keeps all
    "sampling.max_new_tokens": 12,
    "sampling.batch_size": 4,
    # Random weights never end a critique, and one that was cut off is left out of the loss.
    "critic": "endpoint",
    "critic.model": MODEL,
    "critic.key_variable": "",
    "critic.sees": "reference",
    "critic.accepts": "any",
    "critic.temperature": 0,
    "critic.max_new_tokens": 12,
    "critic.concurrency": 4,
    "critic.requests_per_minute": 0,
    "critic.timeout_secs": 60,
    "critic.max_retries": 0,
    "critic.price_input": 0,
    "critic.price_output": 0,
    "train.num_steps": 2,
    "train.problems_per_step": 2,
    "train.preflight_problems": 2,
    "train.micro_batches": 2,
    "train.checkpoint_every_steps": 1,
    "train.validate_every_steps": 1,
    "evaluation.num_samples": 2,
    "evaluation.num_validation_samples": 1,
    "evaluation.max_new_tokens": 12,
    "evaluation.batch_size": 4,
    "parallel.data": 1,
}


def command(name: str, *arguments: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", f"stepalign_jax.{name}", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_steps_from_a_data_set(tmp_path):
    write_parquet(tmp_path / "cot.parquet", map(openmath_row, range(60)))
    source = ("--source", "openmath", "--from", "cot.parquet", "--to", "data/openmath")
    command("prepare", *source, cwd=tmp_path)

    model = build_model(tmp_path / "model")
    changes = [f"--{key}={value}" for key, value in SHORT.items()]
    with serving(StubServer(answer=lambda prompt: "Add the two numbers first.")) as server:
        changes.append(f"--critic.url={server.url}")
        arguments = ("--config", "stepalign", f"--model.path={model}", *changes)
        printed = command("train", *arguments, cwd=tmp_path)

    run = tmp_path / "runs" / "stepalign"
    assert "Avg@2" in printed and "runs/stepalign" in printed
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    for row in rows:
        assert row["contexts_failed"] == 0
        assert row["loss"] > 0 and np.isfinite(row["loss"]) and row["gradient_norm"] > 0
    prompts = read_json(run / "prompts.json")
    config = load_config("stepalign")
    for role in ("solver", "teacher", "critic"):
        print(f"--- {role} ---\n{prompts[role]}")
        told = getattr(config.prompts, role).split("{")[0].split("\n")[0]
        assert told in prompts[role] and "What follows" in prompts[role]
    rollouts = [row for file in sorted((run / "rollouts").iterdir()) for row in read_rows(file)]
    assert len(rollouts) == 4
    found = {entry.name for entry in run.iterdir()}
    assert found >= {
        *("config.json", "inputs.json", "prompts.json", "metrics.jsonl", "timings.jsonl"),
        *("memory.json", "summary.json", "rollouts", "evaluations", "checkpoints"),
        *("tensorboard", "report"),
    }
    evaluations = {entry.stem for entry in (run / "evaluations").glob("*.json")}
    assert evaluations >= {"before", "after", "validation_00000", "validation_00002"}


def build_model(directory: Path) -> str:
    """A random checkpoint of the shape, in bfloat16, with a small tokenizer."""
    directory.mkdir()
    build(directory, "bpe", "LlamaTokenizer")
    tensors = {
        name: tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in random_tensors(QWEN3_0_6B, seed=0).items()
    }
    write(directory, QWEN3_0_6B, tensors)
    return str(directory)


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
