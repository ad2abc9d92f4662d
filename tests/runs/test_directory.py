# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import pytest

from stepalign_jax.base import files
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import write_json, write_jsonl
from stepalign_jax.config.load import load_config
from stepalign_jax.config.schema import Config
from stepalign_jax.runs import directory


def make_config(**changes) -> Config:
    """Returns the miniature's config, changed."""
    return dataclasses.replace(load_config("tiny"), **{"name": "first", **changes})


def open_measured(config):
    """A run that has measured something, which ties it to its config."""
    run = directory.open_run(config)
    run.metrics_file.touch()
    return run


def test_new_run_then_the_same_run_again(tmp_path):
    config = make_config(runs_dir=str(tmp_path / "runs"))
    run = open_measured(config)
    assert run.path == tmp_path / "runs" / "first"
    saved = json.loads(run.config_file.read_text())
    assert saved["trainable"] == {"kind": "full"}
    before = run.config_file.stat().st_mtime_ns
    assert directory.open_run(config) == run
    assert run.config_file.stat().st_mtime_ns == before
    assert run.checkpoints.is_dir() and run.report.is_dir()


def test_another_config_is_refused_with_the_first_key_and_both_values(tmp_path):
    config = make_config(runs_dir=str(tmp_path))
    open_measured(config)
    train = dataclasses.replace(config.train, problems_per_step=16)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1e-4)
    other = dataclasses.replace(config, train=train, optimizer=optimizer)
    with pytest.raises(UserError) as refusal:
        directory.open_run(other)
    assert str(refusal.value) == (
        f"{tmp_path / 'first'} holds a run with optimizer.learning_rate=0.0003, and this one "
        "has optimizer.learning_rate=0.0001: choose another name with --name=..., or delete "
        f"{tmp_path / 'first'}"
    )


def test_a_run_that_measured_nothing_takes_on_another_config(tmp_path):
    config = make_config(runs_dir=str(tmp_path))
    directory.open_run(config)
    run = directory.open_run(dataclasses.replace(config, seed=config.seed + 1))
    assert json.loads(run.config_file.read_text())["seed"] == config.seed + 1


def test_keys_of_another_schema_are_differences(tmp_path):
    config = make_config(runs_dir=str(tmp_path))
    run = open_measured(config)
    saved = json.loads(run.config_file.read_text())
    del saved["train"]["num_steps"]
    run.config_file.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"train\.num_steps=\(absent\).*train\.num_steps=60"):
        directory.open_run(config)
    saved["train"]["num_steps"] = 60
    saved["old"] = {"key": 1}
    run.config_file.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r'old=\{"key": 1\}.*old=\(absent\)'):
        directory.open_run(config)


def test_a_moved_run_goes_on(tmp_path):
    open_measured(make_config(runs_dir=str(tmp_path / "a")))
    (tmp_path / "a").rename(tmp_path / "b")
    directory.open_run(make_config(runs_dir=str(tmp_path / "b")))


def test_damaged_config_file(tmp_path):
    config = make_config(runs_dir=str(tmp_path))
    open_measured(config).config_file.write_text('{"name": ')
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        directory.open_run(config)


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make the run directory .*--runs_dir="):
        directory.open_run(make_config(runs_dir=str(tmp_path / "file")))
    run = directory.RunDirectory(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot write .*summary\.json \(.*: .*file"):
        write_json(run.summary_file, {})


def test_json_is_written_whole_or_not_at_all(tmp_path):
    run = directory.RunDirectory(tmp_path)
    write_json(run.summary_file, {"b": 1, "a": "é"})
    assert run.summary_file.read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    with pytest.raises(ValueError):
        write_json(run.summary_file, {"a": float("nan")})
    assert directory.read_json(run.summary_file) == {"a": "é", "b": 1}
    write_json(run.evaluation_file("before"), {"avg_at_k": 0.5})
    write_json(run.prompts_file, {"solver": "x"})
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"summary.json", "prompts.json", "evaluations/before.json"}


def test_truncation_keeps_completed_steps_only(tmp_path):
    run = directory.open_run(make_config(runs_dir=str(tmp_path)))
    rows = [{"step": step, "loss": step / 7} for step in range(5)]
    for path in (run.metrics_file, run.timings_file):
        directory.write_jsonl(path, rows)
    for step in (0, 2, 3, 100_000):
        write_jsonl(run.rollouts_file(step), [{"text": "a\nb"}])
    run.tensorboard.mkdir()
    kept = run.metrics_file.read_bytes().splitlines(keepends=True)[:3]
    run.truncate_after(3)
    assert run.metrics_file.read_bytes() == b"".join(kept)  # and to the byte
    assert directory.read_jsonl(run.timings_file) == rows[:3]
    left = sorted(p.name for p in (run.path / "rollouts").iterdir())
    assert left == ["step_00000.jsonl", "step_00002.jsonl"]
    assert directory.read_jsonl(run.rollouts_file(2)) == [{"text": "a\nb"}]
    assert run.tensorboard.exists()
    run.truncate_after(0)
    assert run.metrics_file.read_bytes() == b""
    assert not run.tensorboard.exists()


def test_validation_scores_are_means_by_steps_done_oldest_first(tmp_path):
    run = directory.RunDirectory(tmp_path)
    for done, average in ((20, 0.75), (0, 0.25), (5, 0.5)):
        scores = {"avg_at_k": [average, average + 0.125], "greedy": [0.0, average]}
        write_json(run.evaluation_file(f"validation_{done:05d}"), scores)
    write_json(run.evaluation_file("before"), {"avg_at_k": [1.0]})
    write_json(run.evaluation_file("validation_best"), {"avg_at_k": [1.0]})
    assert run.validation_curve() == [[0, 0.3125], [5, 0.5625], [20, 0.8125]]
    greedy = run.validation_scores("greedy")
    assert list(greedy.items()) == [(0, 0.125), (5, 0.25), (20, 0.375)]


def test_row_cut_by_a_kill_at_any_byte(tmp_path):
    run = directory.RunDirectory(tmp_path)
    rows = [{"step": 0, "text": "é"}, {"step": 1, "text": "ü"}]
    whole = "".join(map(files.jsonl_row, rows)).encode()
    first = len(files.jsonl_row(rows[0]).encode())
    for end in range(first, len(whole) + 1):
        run.metrics_file.write_bytes(whole[:end])
        run.truncate_after(2)
        # Without its newline the last row is whole as well.
        expected = rows if end >= len(whole) - 1 else rows[:1]
        written = "".join(map(files.jsonl_row, expected))
        assert run.metrics_file.read_text(encoding="utf-8") == written


def test_damage_before_the_last_row_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl is damaged at line 2"):
        directory.read_jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        directory.read_jsonl(tmp_path / "none.jsonl")
