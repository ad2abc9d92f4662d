# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A run that starts from an adapter: its solver, its teacher, its critic, and its next step."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.models import random_adapter
from support.runs import refusal, small_config, write_config

from stepalign_jax import evaluate, train
from stepalign_jax.base.files import read_json
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.identity import evaluation_inputs
from stepalign_jax.huggingface import language_model
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.peft_adapters import save_adapter
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.runs.directory import RunDirectory

TARGETS = ("q_proj", "down_proj")
SPEC = LoraSpec(rank=2, alpha=4.0, targets=TARGETS)
LORA = {"kind": "lora", "rank": 2, "alpha": 4.0, "targets": TARGETS}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("adapter")
    config = read_sizes(resolve_checkpoint("packaged:tiny"))
    save_adapter(path, SPEC, random_adapter(config, SPEC), base_name="packaged:tiny")
    return path


def make_config(runs_dir: Path, adapter: Path, **sections: Any) -> Config:
    return small_config(runs_dir, trainable=LORA | {"adapter": str(adapter)}, **sections)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rank": 3}, "trainable.rank is 3, but the adapter in {} has 2: set trainable.rank=2"),
        ({"alpha": 2.0}, "trainable.alpha is 2.0, but the adapter in {} has 4.0: set"),
        (
            {"targets": ("q_proj",)},
            "trainable.targets is q_proj, but the adapter in {} has down_proj,q_proj: set "
            "trainable.targets=down_proj,q_proj to start from it.",
        ),
        ({"adapter": "/no/such"}, "/no/such/adapter_config.json does not exist"),
    ],
)
def test_a_config_that_is_not_the_adapters_is_refused(
    directory, tmp_path, monkeypatch, capsys, change, sentence
):
    """Before the weights are loaded."""
    monkeypatch.setattr(language_model, "load_params", None)
    config = make_config(tmp_path, directory)
    config = dataclasses.replace(
        config, trainable=dataclasses.replace(config.trainable, **change)
    )
    path = write_config(tmp_path / "config.py", config)
    error = refusal(train.main, ["--config", path], monkeypatch, capsys)
    assert sentence.format(directory) in error


@pytest.mark.long
def test_a_run_from_an_adapter(directory, tmp_path, capsys):
    """It filters problems, starts its curve and compares with the adapter, not the base."""
    config = make_config(
        tmp_path,
        directory,
        train={"num_steps": 1, "validate_every_steps": 0},
        optimizer={"warmup_steps": 0},
        problems={"base_avg_below": 1.0, "base_avg_samples": 2},
        critic={"kind": "oracle"},
    )
    train.train(config)
    run = RunDirectory.of(config)
    before = read_json(run.evaluation_file("before"))
    path, to = write_config(tmp_path / "config.py", config), tmp_path / "found.json"
    evaluate.main(["--config", path, "--to", str(to)])
    assert read_json(to)["test"]["rows"]["base"]["per_problem"] == before
    assert f"packaged:tiny with {directory}: " in capsys.readouterr().out


def test_another_adapter_selects_anew(directory, tmp_path):
    def decides(adapter: Path) -> str:
        config = make_config(tmp_path, adapter)
        return str(evaluation_inputs(config, config.evaluation, {}, [], seed=0))

    found = [decides(directory), decides(tmp_path / "none")]
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")  # as a copy of another over it would
    found.append(decides(directory))
    assert len(set(found)) == 3
