# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import pytest

from stepalign_jax.base import files
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl, write_json, write_jsonl
from stepalign_jax.config.learning import Constant
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
    assert read_json(run.summary_file) == {"a": "é", "b": 1}
    write_json(run.evaluation_file("before"), {"avg_at_k": 0.5})
    write_json(run.prompts_file, {"solver": "x"})
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"summary.json", "prompts.json", "evaluations/before.json"}


def test_truncation_keeps_completed_steps_only(tmp_path):
    run = directory.open_run(make_config(runs_dir=str(tmp_path)))
    rows = [{"step": s, "loss": s / 7, "solver_tokens": 1.0, "total": 2.0} for s in range(5)]
    for path in (run.metrics_file, run.timings_file):
        write_jsonl(path, rows)
    for step in (0, 2, 3, 100_000):
        write_jsonl(run.rollouts_file(step), [{"text": "a\nb"}])
    (run.path / "rollouts" / "step_x.jsonl").write_text("a stranger's")
    run.tensorboard.mkdir()
    kept = run.metrics_file.read_bytes().splitlines(keepends=True)[:3]
    run.truncate_after(3)
    assert run.metrics_file.read_bytes() == b"".join(kept)  # and to the byte
    assert read_jsonl(run.timings_file) == rows[:3]
    left = sorted(p.name for p in (run.path / "rollouts").iterdir())
    assert left == ["step_00000.jsonl", "step_00002.jsonl", "step_x.jsonl"]
    assert read_jsonl(run.rollouts_file(2)) == [{"text": "a\nb"}]
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


def metrics_rows(num_rows):
    return [{"step": step, "solver_tokens": 8.0, "text": "é"} for step in range(num_rows)]


def test_row_cut_by_a_kill_at_any_byte(tmp_path):
    run = directory.RunDirectory(tmp_path)
    rows = metrics_rows(2)
    whole = "".join(map(files.jsonl_row, rows)).encode()
    first = len(files.jsonl_row(rows[0]).encode())
    for end in range(first, len(whole) + 1):
        run.metrics_file.write_bytes(whole[:end])
        run.truncate_after(2)
        # Without its newline the last row is whole as well.
        expected = rows if end >= len(whole) - 1 else rows[:1]
        written = "".join(map(files.jsonl_row, expected))
        assert run.metrics_file.read_text(encoding="utf-8") == written


DAMAGE = {
    "lost": lambda lines: [lines[0], lines[2]],
    "doubled": lambda lines: [lines[0], lines[0], *lines[1:]],
    "cut": lambda lines: [lines[0], lines[1][:9], lines[2]],
    "no object": lambda lines: [lines[0], "[1]", lines[2]],
    "empty": lambda lines: [lines[0], "{}", lines[2]],
    "without its number": lambda lines: [lines[0], '{"step": 1}', lines[2]],
    "of a step that is no number": lambda lines: [lines[0], '{"step": "1"}', lines[2]],
    "deep": lambda lines: [lines[0], "[" * 100_000, lines[2]],
}


@pytest.mark.parametrize("name", ["metrics_file", "timings_file"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_rows_that_would_be_counted_wrongly_are_refused_with_the_step_to_go_on_from(
    tmp_path, name, damage
):
    run = directory.RunDirectory(tmp_path)
    rows = [{**row, "total": 2.0} for row in metrics_rows(3)]
    for path in (run.metrics_file, run.timings_file):
        write_jsonl(path, rows)
    for step in (1, 2, 3):
        write_json(run.checkpoints / str(step) / "manifest.json", {})
    run.check_rows(3)
    path = getattr(run, name)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(DAMAGE[damage](lines)) + "\n", encoding="utf-8")
    run.check_rows(1)  # the first row is whole, and the others come again
    with pytest.raises(UserError) as refusal:
        run.check_rows(3)
    assert str(refusal.value) == (
        f"line 2 of {path} is not the whole row of step 1, so that sums over the run would "
        "be wrong: put a whole copy of the file in its place, or delete 2, 3 in "
        f"{run.checkpoints} to go on from step 1, which makes the rows again"
    )
    path.unlink()
    with pytest.raises(UserError, match=r"line 1 of .* delete 1, 2, 3 in .* from step 0"):
        run.check_rows(3)


def test_only_half_written_files_of_killed_processes_are_swept(tmp_path):
    run = directory.open_run(make_config(runs_dir=str(tmp_path)))
    theirs = ["notes.tmp", "a.b.tmp", "tensorboard/x.1.tmp", "evaluations/before.json.partial"]
    ours = [
        "prompts.json.12.tmp",
        "evaluations/before.json.7.tmp",
        "rollouts/step_1.jsonl.9.tmp",
    ]
    for name in (*theirs, *ours, "checkpoints/3.orbax-checkpoint-tmp-4/state/x"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("half")
    run.sweep()
    assert all((run.path / name).exists() for name in theirs)
    assert not any((run.path / name).exists() for name in ours)
    assert list(run.checkpoints.iterdir()) == []


@pytest.mark.parametrize("content", ["{}", '{"avg_at_k": 1}', '{"avg_at_k": ["x"]}', "[1]"])
def test_a_validation_file_that_is_no_evaluation_is_named(tmp_path, content):
    run = directory.RunDirectory(tmp_path)
    write_json(run.evaluation_file("validation_best"), {})  # not ours, whatever it holds
    assert run.validation_curve() == []
    run.evaluation_file("validation_00002").write_text(content)
    with pytest.raises(UserError, match=r"validation_00002\.json (is no evaluation|holds no)"):
        run.validation_curve()


def constant(config, num_steps, **changes):
    """The config with a constant learning rate and so many steps."""
    train = dataclasses.replace(config.train, num_steps=num_steps, **changes)
    optimizer = dataclasses.replace(config.optimizer, schedule=Constant())
    return dataclasses.replace(config, train=train, optimizer=optimizer)


def test_only_the_steps_of_a_run_with_a_constant_learning_rate_grow(tmp_path):
    config = constant(make_config(runs_dir=str(tmp_path)), 20)
    run = open_measured(config)
    write_json(run.summary_file, {})
    assert directory.is_finished(config)
    longer = constant(config, 30, allow_changed_inputs=True)
    content = run.config_file.read_bytes()
    directory.open_run(longer)
    assert directory.is_longer(run, longer) and not directory.is_finished(longer)
    # Whoever asks has not started anything yet: nothing of the shorter run is gone.
    assert run.config_file.read_bytes() == content and run.summary_file.exists()
    for other in (constant(config, 19), constant(config, 30, checkpoints_to_keep=9)):
        with pytest.raises(UserError, match="may only get more steps, and nothing else"):
            directory.open_run(other)
    cosine = dataclasses.replace(make_config(runs_dir=str(tmp_path)), name="second")
    open_measured(cosine)
    train = dataclasses.replace(cosine.train, num_steps=90)
    with pytest.raises(UserError, match=r"only with optimizer.schedule=constant: with another"):
        directory.open_run(dataclasses.replace(cosine, train=train))


def test_damage_before_the_last_row_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl is damaged at line 2"):
        read_jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        read_jsonl(tmp_path / "none.jsonl")
