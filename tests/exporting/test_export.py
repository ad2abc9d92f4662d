# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports of a run of seconds: what is chosen, written, measured, and never overwritten."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import random_adapter
from support.run_files import rollout_row
from support.runs import refusal, small_config

from stepalign_jax import export, train
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl, write_json, write_jsonl
from stepalign_jax.config.schema import Config
from stepalign_jax.exporting import forms
from stepalign_jax.exporting.trained import choose_step, find_trained, probe_texts
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.peft_adapters import load_adapter
from stepalign_jax.huggingface.weights import load_model
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.runs.checkpoint import Checkpoints, restore_latest
from stepalign_jax.runs.directory import RunDirectory, open_run
from stepalign_jax.runs.setup import initial_state, open_solver
from stepalign_jax.training.optimizer import make_optimizer
from stepalign_jax.training.state import make_state

TINY_BASE = resolve_checkpoint("packaged:tiny")
TARGETS = ("q_proj", "down_proj")
LORA = {"kind": "lora", "rank": 2, "alpha": 4.0, "targets": TARGETS, "adapter": ""}
SPEC = LoraSpec(2, 4.0, TARGETS)


def make_run(config: Config, trees: list[Any]) -> RunDirectory:
    """A run's directory with a checkpoint per tree and one rollout, as if it had trained."""
    run = open_run(config)
    checkpoints = Checkpoints(run.checkpoints, num_to_keep=len(trees))
    for step, tree in enumerate(trees, start=1):
        state = make_state(
            jax.tree.map(jnp.asarray, tree),
            make_optimizer(config.optimizer, config.train.num_steps),
            config.teacher,
            starts_from_adapter=False,
        )
        checkpoints.save(step, state, data_state={})
    checkpoints.close()
    row = rollout_row()
    write_jsonl(run.rollouts_file(0), [row, row | {"tokens": []}])
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """Two checkpoints; the adapter is on two projections."""
    config = small_config(tmp_path_factory.mktemp("runs"), trainable=LORA)
    model = read_sizes(TINY_BASE)
    return make_run(config, [{"lora": random_adapter(model, SPEC, seed)} for seed in (1, 2)])


def do_export(run: RunDirectory, target: Path, *options: str) -> Path:
    export.main(["--run", str(run.path), "--to", str(target), *options])
    return target


def test_adapter_export_is_the_checkpoint_bit_for_bit(run, tmp_path):
    for step in (1, 2):
        target = do_export(run, tmp_path / f"{step}", "--form=adapter", f"--step={step}")
        spec, lora = load_adapter(target, read_sizes(TINY_BASE))
        assert (spec.rank, spec.alpha, set(spec.targets)) == (2, 4.0, set(SPEC.targets))
        expected = random_adapter(read_sizes(TINY_BASE), SPEC, step)
        for a, b in zip(jax.tree.leaves(lora), jax.tree.leaves(expected), strict=True):
            assert np.any(b) and a.tobytes() == b.tobytes()
    settings = read_json(tmp_path / "2" / "adapter_config.json")
    assert settings["base_model_name_or_path"] == str(TINY_BASE.resolve())


@pytest.mark.long
def test_a_run_end_to_end(tmp_path):
    """What was trained is what is exported: its solver says the same as the merged model."""
    config = small_config(
        tmp_path / "runs",
        "refsol",
        trainable=LORA,
        optimizer={"warmup_steps": 0, "learning_rate": 0.01},
        train={"num_steps": 1, "validate_every_steps": 0},
    )
    train.train(config)
    run, (model, roles) = RunDirectory.of(config), open_solver(config)
    model.load()
    restored = restore_latest(run.checkpoints, initial_state(config, model))
    assert restored is not None
    do_export(run, tmp_path / "adapter", "--form=adapter")
    _, lora = load_adapter(tmp_path / "adapter", model.sizes)
    for a, b in zip(
        jax.tree.leaves({"lora": lora}), jax.tree.leaves(restored.state.trainable), strict=True
    ):
        assert a.tobytes() == np.asarray(b).tobytes()
    do_export(run, tmp_path / "merged")
    record = read_json(tmp_path / "merged" / "export.json")
    assert record["num_texts"] == 4 and record["kl_of_training"] > 10 * record["kl_of_rounding"]
    texts = probe_texts(find_trained(run, (), step=None, metric=None), 4)
    for text, row in zip(texts, read_jsonl(run.rollouts_file(0)), strict=True):
        assert text.completion == row["tokens"]
        assert roles.tokenizer.decode(text.prompt).count(row["problem"]) == 1


def test_merged_export_is_base_plus_delta(run, tmp_path, capsys):
    target = do_export(run, tmp_path / "merged", "--max-shard-gb=0.001")
    config, params = load_model(str(target))
    base_config, base = load_model(str(TINY_BASE))
    assert config == base_config
    lora = random_adapter(base_config, SPEC, 2)["layers"]["mlp"]["down_proj"]
    exact = np.asarray(base["layers"]["mlp"]["down_proj"]["kernel"], np.float64)
    exact = exact + lora["a"].astype(np.float64) @ lora["b"] * 2.0
    merged = params["layers"]["mlp"]["down_proj"]["kernel"]
    np.testing.assert_allclose(merged, exact, atol=1e-6)
    for path in (("mlp", "up_proj"), ("attention", "k_proj")):  # no targets: the same bits
        ours, theirs = (p["layers"][path[0]][path[1]]["kernel"] for p in (params, base))
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    names = {path.name for path in target.iterdir()}
    assert "model.safetensors.index.json" in names  # sharded, as asked
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    assert read_json(target / "config.json") == read_json(TINY_BASE / "config.json")
    out, err = capsys.readouterr()
    size = sum(path.stat().st_size for path in target.iterdir())
    assert f"step 2, merged: {target} ({size / 1e6:.1f} MB)" in out and size > 1e6
    assert "rollouts" in out and "warning" not in err
    record = read_json(target / "export.json")
    # What float32 leaves of two forwards that are equal on paper is below 1e-6.
    assert record["kl_of_training"] > 1e-4 > 1e-6 > record["kl_of_rounding"]


def test_best_and_newest(run, tmp_path, capsys):
    copy = RunDirectory(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    for step, score in ((0, 0.5), (1, 0.75), (2, 0.25)):
        write_json(
            copy.evaluation_file(f"validation_{step:05d}"),
            {"avg_at_k": [score, score], "greedy": [0.0, score == 0.25]},
        )
    assert choose_step(copy, None, None) == 2
    assert choose_step(copy, None, "avg_at_k") == 1
    assert choose_step(copy, None, "greedy") == 2
    assert "warning" not in capsys.readouterr().err
    shutil.rmtree(copy.checkpoints / "1")
    assert choose_step(copy, None, "avg_at_k") == 2
    assert (
        "the best validation avg_at_k is 0.7500 at step 1, which has no checkpoint; step 2 "
        "with 0.2500 is the best that has one" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"step 1 has no checkpoint: .* has those of steps 2\."):
        choose_step(copy, 1, None)
    for path in copy.path.glob("evaluations/validation_*"):
        path.unlink()
    with pytest.raises(UserError, match="so there is no best one"):
        choose_step(copy, None, "avg_at_k")


def test_an_existing_target_is_never_overwritten_silently(run, tmp_path, monkeypatch, capsys):
    target = do_export(run, tmp_path / "adapter", "--form=adapter", "--step=1")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    again = ["--run", str(run.path), "--to", str(target), "--form=adapter"]
    error = refusal(export.main, again, monkeypatch, capsys)
    assert str(target) in error and "--overwrite" in error
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    export.main([*again, "--overwrite"])
    assert read_json(target / "export.json")["step"] == 2

    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.tex").write_text("years of work")
    taken = ["--run", str(run.path), "--overwrite", "--to"]
    for place, sentence in (
        (notes, "holds files that are no export"),
        (run.path, "would replace the run"),
        (run.path.parent, "would replace the run"),
        (TINY_BASE, "would replace the base model"),
    ):
        assert sentence in refusal(export.main, [*taken, str(place)], monkeypatch, capsys)
    assert (notes / "thesis.tex").exists() and run.config_file.exists()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_an_interrupted_export_leaves_the_old_target_or_nothing(
    run, tmp_path, monkeypatch, kind
):
    old = do_export(run, tmp_path / "old", "--form=adapter", "--step=1")
    before = {path.name: path.read_bytes() for path in old.iterdir()}

    def write_half(directory: Path, *_: Any, **__: Any) -> None:
        (directory / "adapter_model.safetensors").write_bytes(b"half")
        raise kind("stopped")

    monkeypatch.setattr(forms, "save_adapter", write_half)
    for target, options in ((tmp_path / "new", ()), (old, ("--overwrite",))):
        with pytest.raises(kind):
            do_export(run, target, "--form=adapter", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--step=7"], "step 7 has no checkpoint"),
        (["--step=1", "--best"], "--step and --best each name a checkpoint"),
        (["--best=loss"], "invalid choice: 'loss'"),
        (["--form=adapter", "--dtype=bfloat16"], "always written in float32"),
        (["--max-shard-gb=0"], "--max-shard-gb is 0.0"),
        (["--probe-texts=-1"], "--probe-texts is -1"),
        (["--config=configs/tiny.py"], "--config is not read here"),
        (["--model.path=/no/such/model"], "/no/such/model"),
        (["--trainable.rank=3"], "saved by another config"),
        (["--run=/no/such/run"], "/no/such/run is not a run"),
    ],
)
def test_refusals(run, tmp_path, monkeypatch, capsys, options, sentence):
    argv = ["--run", str(run.path), "--to", str(tmp_path / "to"), *options]
    assert sentence in refusal(export.main, argv, monkeypatch, capsys)
    assert not (tmp_path / "to").exists()


def test_a_full_fine_tune_is_rounded_and_has_no_adapter(tmp_path, monkeypatch, capsys):
    base = load_model(str(TINY_BASE))[1]
    trained = jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(1.01), base)
    run = make_run(small_config(tmp_path / "runs"), [{"params": trained}])
    argv = ["--run", str(run.path), "--to", str(tmp_path / "to")]
    error = refusal(export.main, [*argv, "--form=adapter"], monkeypatch, capsys)
    assert "trained all weights and no adapter: use --form merged" in error
    for options, dtype in (([], "float32"), (["--overwrite", "--dtype=bfloat16"], "bfloat16")):
        export.main([*argv, *options])
        exported = load_model(str(tmp_path / "to"))[1]
        for a, b in zip(jax.tree.leaves(exported), jax.tree.leaves(trained), strict=True):
            assert np.asarray(a).tobytes() == b.astype(jnp.dtype(dtype)).tobytes()
    record = read_json(tmp_path / "to" / "export.json")
    assert 0.1 < record["lost"] < 1 and record["kl_of_rounding"] > 0
