# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A run that starts from an adapter: its solver, its teacher, its critic, and its next step."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import random_adapter
from support.runs import refusal, small_config, write_config

from stepalign_jax import evaluate, train
from stepalign_jax.base.files import read_json
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation import difficulty as selection
from stepalign_jax.huggingface.peft_adapters import save_adapter
from stepalign_jax.huggingface.weights import load_config, resolve_checkpoint
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.runs import setup as assembling
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.setup import Workbench, assemble, initial_state, make_state
from stepalign_jax.training.optimizer import make_optimizer
from stepalign_jax.training.scoring import Part
from stepalign_jax.training.step import TrainState, make_update, teacher_tree

TARGETS = ("q_proj", "down_proj")
SPEC = LoraSpec(rank=2, alpha=4.0, targets=TARGETS)
LORA = {"kind": "lora", "rank": 2, "alpha": 4.0, "targets": TARGETS}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("adapter")
    config = load_config(resolve_checkpoint("packaged:tiny"))
    save_adapter(path, SPEC, random_adapter(config, SPEC), base_name="packaged:tiny")
    return path


def make_config(runs_dir: Path, adapter: Path, **sections: Any) -> Config:
    return small_config(runs_dir, trainable=LORA | {"adapter": str(adapter)}, **sections)


@pytest.fixture(scope="module")
def bench(directory) -> Workbench:
    return assemble(make_config(directory / "runs", directory))


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    ("kind", "has_tree"), [("initial", True), ("ema", True), ("live", False)]
)
def test_solver_and_frozen_teacher_start_as_the_adapter(bench, directory, kind, has_tree):
    config = make_config(directory, directory, teacher={"kind": kind})
    state = initial_state(config, bench)
    expected = {"lora": random_adapter(bench.model_config, SPEC)}
    assert_same_bits(state.trainable, expected)
    assert_same_bits(state.teacher, expected if has_tree else {})
    teacher = teacher_tree(state, config.teacher, bench.base)
    assert_same_bits(teacher, bench.initial_solver())


def some_part(num_rows: int = 2, length: int = 24, num_tokens: int = 8) -> Part:
    """Rows of equal lengths; the teacher reads another prompt before the same completion."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 15, (num_rows, length), dtype=np.int32)
    completion = tokens[:, -num_tokens:]
    other = np.concatenate([tokens[:, :-num_tokens][:, ::-1], completion], axis=1)
    rows = np.arange(num_rows, dtype=np.int32)[:, None] * length
    at = (rows + np.arange(length - num_tokens - 1, length - 1, dtype=np.int32)).reshape(1, -1)
    zeros = np.zeros(at.shape, np.float32)
    arrays = (tokens, other, at, at, completion.reshape(1, -1), zeros == 0, zeros, zeros)
    return Part(*map(jnp.asarray, arrays))


def test_the_teacher_stays_what_the_run_started_from(bench, directory):
    """One update moves the solver; the frozen tree is the adapter's still, bit for bit."""
    config = make_config(directory, directory)
    new, metrics = one_step(config, bench, initial_state(config, bench))
    assert float(metrics["loss"]) > 0
    expected = {"lora": random_adapter(bench.model_config, SPEC)}
    assert_same_bits(new.teacher, expected)
    moved = jax.tree.map(lambda a, b: np.any(np.asarray(a) != b), new.trainable, expected)
    assert all(jax.tree.leaves(moved))


def one_step(config: Config, bench: Workbench, state: TrainState) -> tuple[TrainState, Any]:
    update = make_update(
        bench.model,
        make_optimizer(config.optimizer, config.train.num_steps),
        config.objective,
        config.teacher,
        distils=True,
        shardings=None,
    )
    parts = [some_part()]
    taught = update.score(state, bench.base, parts)
    return update.apply(state, bench.base, parts, taught)[:2]


def test_an_exported_adapter_trains_on_exactly(bench, directory, tmp_path):
    """A checkpoint's adapter and its export give the same state and the same next update."""
    config = make_config(directory, directory)
    trained = one_step(config, bench, initial_state(config, bench))[0].trainable
    save_adapter(tmp_path, SPEC, trained["lora"], base_name="packaged:tiny")

    again = make_config(directory, tmp_path)
    reloaded = initial_state(again, assemble(again))
    assert_same_bits(reloaded.trainable, trained)

    direct = make_state(again, jax.tree.map(jnp.copy, trained))
    assert_same_bits(reloaded, direct)
    assert_same_bits(one_step(again, bench, reloaded), one_step(again, bench, direct))


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
        ({"kind": "full"}, "only trainable.kind=lora starts from an adapter"),
        ({"adapter": "/no/such"}, "/no/such/adapter_config.json does not exist"),
    ],
)
def test_a_config_that_is_not_the_adapters_is_refused(
    directory, tmp_path, monkeypatch, capsys, change, sentence
):
    """Before the weights are loaded."""
    monkeypatch.setattr(assembling, "load_weights", None)
    config = make_config(tmp_path, directory)
    config = dataclasses.replace(
        config, trainable=dataclasses.replace(config.trainable, **change)
    )
    path = write_config(tmp_path / "config.py", config)
    error = refusal(train.main, ["--config", path], monkeypatch, capsys)
    assert sentence.format(directory) in error


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
    found = read_json(to)["per_problem"]
    assert {name: found[name] for name in before} == before
    assert f"packaged:tiny with {directory}: " in capsys.readouterr().out


def test_another_adapter_selects_anew(bench, directory, tmp_path):
    config = make_config(tmp_path, directory)
    fingerprints = set()
    for adapter in (directory, tmp_path / "none"):
        changed = make_config(tmp_path, adapter)
        fingerprints.add(selection._fingerprint(changed, bench.directory, []))
    weights = directory / "adapter_model.safetensors"
    weights.touch()  # as a copy of another adapter over it would
    fingerprints.add(selection._fingerprint(config, bench.directory, []))
    assert len(fingerprints) == 3
