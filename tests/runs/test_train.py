# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole runs of seconds: every condition, a second start, and a run that is killed."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest
from support.checked_runs import check_files, check_metrics, check_summary, events
from support.report_runs import make_row
from support.run_files import finish, require_same_shape, rollout_row
from support.runs import ROOT, small_config, write_config

from stepalign_jax import evaluate, train
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.base.stopping import EXIT_CAN_GO_ON
from stepalign_jax.config.schema import Config, Projection
from stepalign_jax.critics.oracle import oracle_critique
from stepalign_jax.feedback.contexts import Attempt
from stepalign_jax.problems.arithmetic import arithmetic_problems
from stepalign_jax.runs.checkpoint import finished_steps, restore_latest
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.setup import initial_state, open_solver
from stepalign_jax.training.state import TrainState

ONE_STEP = {"num_steps": 1, "validate_every_steps": 0}
TWO_STEPS = {"num_steps": 2, "validate_every_steps": 0}
SHORT = {
    "refsol": {
        "train": TWO_STEPS,
        "trainable": {
            "kind": "lora",
            "rank": 2,
            "alpha": 16.0,
            "targets": get_args(Projection),
            "adapter": "",
        },
    },
    "grpo": {"train": TWO_STEPS | {"micro_batches": 2}},
    "no_context": {  # what is switched off is not needed
        "train": ONE_STEP | {"sample_texts_every_steps": 0},
        "optimizer": {"warmup_steps": 0},
        "problems": {"num_validation": 0},
    },
    "other_problem": {
        "train": ONE_STEP | {"problems_per_step": 4, "samples_per_problem": 1},
        "optimizer": {"warmup_steps": 0},
        "critic": {"kind": "oracle"},
        "teacher": {"kind": "live"},
    },
}


def stepalign_config(runs_dir: Path) -> Config:
    """Four steps, two checkpoints, and every tree of the state in use."""
    return small_config(
        runs_dir,
        "stepalign",
        teacher={"kind": "ema", "decay": 0.95},
        train={"preflight_problems": 4},
        evaluation={"num_validation_samples": 3},
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> RunDirectory:
    config = stepalign_config(tmp_path_factory.mktemp("unbroken"))
    train.train(config)
    return RunDirectory.of(config)


def contexts(run: RunDirectory) -> list[dict[str, Any]]:
    """The rows of all rollouts of a run."""
    files = sorted((run.path / "rollouts").iterdir())
    return [row for path in files for row in read_jsonl(path)]


def check_contexts(rows: list[dict[str, Any]], condition: str) -> None:
    """Each condition has the teacher read what it is named after."""
    problems = {p.text: p for p in arithmetic_problems("training", 16, 3, 3)}
    own = [oracle_critique(Attempt(problems[r["problem"]], r["rollout"])) for r in rows]
    if condition == "refsol":
        references = [problems[row["problem"]].reference for row in rows]
        assert [row["context"] for row in rows] == references
    elif condition == "other_problem":
        oracles = {text for text in own if text is not None}
        assert all(row["context"] in oracles for row in rows)
        assert all(row["context"] != o for row, o in zip(rows, own, strict=True))
    else:
        assert [(row["context"], row["failure"]) for row in rows] == [("", None)] * len(rows)


@pytest.mark.long
@pytest.mark.parametrize("condition", SHORT)
def test_a_run_of_each_condition(condition, tmp_path):
    config = small_config(tmp_path, condition, **SHORT[condition])
    summary = train.train(config)
    run = RunDirectory.of(config)
    check_files(run, config)
    check_summary(summary, config)
    check_metrics(run)
    check_contexts(contexts(run), condition)
    assert read_json(run.summary_file) == summary
    assert not list((run.path / "evaluations").glob("validation_*"))  # switched off
    if condition != "grpo":  # which learns nothing from rollouts that are all right or wrong
        assert all(row["gradient_norm"] > 0 for row in read_jsonl(run.metrics_file))


@pytest.mark.long
def test_a_run_with_its_own_critic(unbroken):
    config = stepalign_config(unbroken.path.parent)
    check_files(unbroken, config)
    assert (unbroken.report / "run.png").stat().st_size > 10_000
    assert b"figures/loss" in events(unbroken)
    check_summary(read_json(unbroken.summary_file), config)
    check_metrics(unbroken)
    rows = contexts(unbroken)
    usable = [row for row in rows if row["failure"] is None]
    assert usable  # the packaged model can mend its own traces
    for row in usable:
        assert row["context"].endswith(f"Answer: {row['answer']}")
    assert any(row["gradient_norm"] > 0 for row in read_jsonl(unbroken.metrics_file))
    names = sorted(path.name for path in (unbroken.path / "evaluations").iterdir())
    assert names == [
        "after.json",
        "before.json",
        "validation_00000.json",
        "validation_00002.json",
        "validation_00004.json",
    ]
    curve = [row.get("validation_avg_at_k") for row in read_jsonl(unbroken.metrics_file)]
    found = [
        np.mean(read_json(unbroken.evaluation_file(f"validation_{done:05d}"))["avg_at_k"])
        for done in (2, 4)
    ]
    assert curve == [None, found[0], None, found[1]]


def test_imitated_run_files_are_like_those_of_a_run(unbroken, tmp_path):
    """Tests of comparisons, reports and exports read imitations in place of this run."""
    imitation = RunDirectory(tmp_path)
    finish(imitation, step_seconds=[1.0, 1.0, 1.0], validation={2: 0.5}, critic_exact=0.5)
    assert unbroken.evaluation_file("validation_00002").exists()
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        read = read_json if path.suffix == ".json" else read_jsonl
        real = read(unbroken.path / path.relative_to(tmp_path))
        own = read(path)
        if path == imitation.timings_file:  # rows of steps with a validation
            own, real = own[2], next(row for row in real if "validate" in row)
        require_same_shape(own, real, path.name)
    rows = contexts(unbroken)
    require_same_shape(rollout_row(), rows[0], "rollouts")
    scored = next(row for row in rows if row["failure"] is None)
    made = make_row(np.random.default_rng(0), right=True)
    require_same_shape(made, scored, "rollouts")
    assert made.keys() == scored.keys()


def test_rows_of_rollouts_have_numbers_and_a_place_of_each_token(unbroken):
    for row in contexts(unbroken):
        ends, size = row["ends"], len(row["tokens"])
        assert len(ends) == len(row["logprobs"]) == size and ends == sorted(ends)
        assert ends[-1] == len(row["rollout"])
        if row["finished"]:  # the stop token writes nothing
            assert ends[-1] == ends[-2]
        scored = row["failure"] is None
        assert all((row[name] is not None) is scored for name in ("advantage", "loss"))
        assert not scored or len(row["advantage"]) == len(row["loss"]) == size
        assert all(value <= 0 for value in row["logprobs"])


@pytest.mark.long
def test_a_preflight_changes_nothing_that_is_trained_on(unbroken, tmp_path):
    found = read_json(unbroken.preflight_file)
    assert found["condition"] == "stepalign" and found["problems"] == 4
    assert sum(found["critic"]["outcomes"].values()) == 4
    assert found["run"]["tokens"].keys() == {"sample", "critique"}
    changes = {"preflight_problems": 0, "num_steps": 1, "validate_every_steps": 0}
    config = stepalign_config(tmp_path)
    without = RunDirectory.of(config)
    train.train(dataclasses.replace(config, train=dataclasses.replace(config.train, **changes)))
    assert not without.preflight_file.exists()
    for file in (without.rollouts_file(0), without.evaluation_file("before")):
        assert (
            file.read_bytes() == (unbroken.path / file.relative_to(without.path)).read_bytes()
        )


def test_starting_again_returns_the_summary_without_work(unbroken, monkeypatch, capsys):
    config = stepalign_config(unbroken.path.parent)
    monkeypatch.setattr(train, "open_solver", None)  # not even the model is opened
    assert train.train(config) == read_json(unbroken.summary_file)
    train.main(["--config", write_config(unbroken.path / "again.py", config)])
    printed, said = capsys.readouterr()
    assert "Avg@2" in printed and str(unbroken.path) in printed
    assert f"{unbroken.path} is finished: nothing was run\n" in said
    page = unbroken.report / "report.html"
    assert printed.splitlines()[-1] == f"report: {page}"
    rows = len(contexts(unbroken))
    assert f"All {rows} rollouts are in this file." in page.read_text("utf-8")


def test_another_config_in_the_same_directory_is_refused(unbroken):
    config = stepalign_config(unbroken.path.parent)
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(UserError, match="holds a run with seed=0, and this one has seed=1"):
        train.train(other)


def test_evaluating_the_run_gives_what_the_run_found(unbroken, tmp_path, capsys):
    """By its own config.json: nobody has to say again how it was made."""
    to = tmp_path / "found.json"
    evaluate.main(["--run", str(unbroken.path), "--to", str(to)])
    found, summary = read_json(to)["test"], read_json(unbroken.summary_file)
    trained, base = found["rows"]["trained"], found["rows"]["base"]
    assert trained["per_problem"] == read_json(unbroken.evaluation_file("after"))
    assert base["per_problem"] == read_json(unbroken.evaluation_file("before"))
    assert trained["intervals"] == summary["after"] and found["gain"] == summary["gain"]
    assert len(found["problems"]) == 4
    out, err = capsys.readouterr()
    assert "step 4: 4 test problems" in out and "warning" not in err
    # What the run found of its base is not measured again.
    assert f"evaluated before, in {unbroken.evaluation_file('before')}" in err
    # Without a run it is the base that is evaluated.
    config = write_config(tmp_path / "config.py", stepalign_config(unbroken.path.parent))
    evaluate.main(["--config", config, "--to", str(to)])
    again = read_json(to)["test"]["rows"]
    assert again == {"base": {**base, "weights": again["base"]["weights"]}}
    assert again["base"]["weights"] == base["weights"] != trained["weights"]


def test_what_differs_from_the_run_is_named(unbroken, tmp_path, capsys):
    prompt = "--prompts.solver=Sum: {problem}"
    evaluate.main(["--run", str(unbroken.path), prompt, "--evaluation.num_samples=1"])
    named = "warning: not as in the run: prompts.solver, evaluation.num_samples\n"
    assert named in capsys.readouterr().err


KILLED_AFTER_A_ROW = """
import os, signal
from stepalign_jax.config.learning import *
from stepalign_jax.config.schema import *
from stepalign_jax.runs.metrics import MetricsWriter
from stepalign_jax.train import train

write = MetricsWriter.write_timings

def write_and_die(self, step, timings):
    write(self, step, timings)
    if step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

MetricsWriter.write_timings = write_and_die
train({config!r})
"""


def final_state(run: RunDirectory, config: Config) -> TrainState:
    model, _ = open_solver(config)
    model.load()
    restored = restore_latest(run.checkpoints, initial_state(config, model))
    assert restored is not None and restored.step == config.train.num_steps
    return restored.state


def watched_evaluations(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """(problems, samples of each) of the evaluations of runs from now on, by label."""
    asked, run_evaluation = {}, train.evaluate

    def watch(*arguments: Any, label: str, **options: Any) -> Any:
        *_, problems, how = arguments
        asked[label] = (len(problems), how.num_samples)
        return run_evaluation(*arguments, label=label, **options)

    monkeypatch.setattr(train, "evaluate", watch)
    return asked


def test_a_killed_run_goes_on_to_the_same_bits(unbroken, tmp_path, monkeypatch, capsys):
    config = stepalign_config(tmp_path)
    run = RunDirectory.of(config)
    program = KILLED_AFTER_A_ROW.format(config=config)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    # One step further than its newest checkpoint, with a row cut short by the kill.
    assert finished_steps(run.checkpoints) == [2]
    assert run.rollouts_file(2).exists() and len(read_jsonl(run.metrics_file)) == 3
    with run.metrics_file.open("a") as file:
        file.write('{"loss": 0.1')
    before = run.evaluation_file("before").stat().st_mtime_ns
    flown = run.preflight_file.stat().st_mtime_ns
    asked = watched_evaluations(monkeypatch)

    summary = train.train(config)

    assert "goes on from step 2 of 4\n" in capsys.readouterr().err
    assert asked == {"validation_00004": (2, 3), "after": (4, 2)}
    assert run.preflight_file.stat().st_mtime_ns == flown  # nor this
    assert run.evaluation_file("before").stat().st_mtime_ns == before  # not done twice
    assert run.metrics_file.read_bytes() == unbroken.metrics_file.read_bytes()
    for folder in ("rollouts", "evaluations"):
        found = sorted((unbroken.path / folder).iterdir())
        # Another test may have evaluated that run: its base is kept in start_... then.
        paths = [path for path in found if not path.name.startswith("start_")]
        assert [p.name for p in paths] == sorted(p.name for p in (run.path / folder).iterdir())
        for path in paths:
            assert (run.path / folder / path.name).read_bytes() == path.read_bytes()
    actual, expected = final_state(run, config), final_state(unbroken, config)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    finished = read_json(unbroken.summary_file)
    timed = {"seconds", "step_seconds"}
    assert {k: summary[k] for k in summary.keys() - timed} == {
        k: finished[k] for k in finished.keys() - timed
    }
    assert len(read_jsonl(run.timings_file)) == 4


@pytest.mark.long
def test_a_stop_signal_leaves_a_checkpoint_and_the_same_command_goes_on(unbroken, tmp_path):
    """SIGTERM in the second step, as a preemption sends it."""
    config = stepalign_config(tmp_path)
    run = RunDirectory.of(config)
    spec = write_config(tmp_path / "config.py", config)
    command = [sys.executable, "-m", "stepalign_jax.train", "--config", spec]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        while not run.rollouts_file(0).exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == EXIT_CAN_GO_ON, errors
    assert "steps are saved; the same command goes on" in errors
    (saved,) = finished_steps(run.checkpoints)[-1:]
    assert 1 <= saved < 4
    train.train(config)
    assert run.metrics_file.read_bytes() == unbroken.metrics_file.read_bytes()


def test_before_is_measured_before_training_even_if_its_file_is_lost(
    unbroken, tmp_path, monkeypatch
):
    config = stepalign_config(tmp_path)
    shutil.copytree(unbroken.path, RunDirectory.of(config).path)
    run = RunDirectory.of(config)
    run.summary_file.unlink()
    run.evaluation_file("before").unlink()
    train.train(config)
    for label in ("before", "after"):
        expected = unbroken.evaluation_file(label).read_bytes()
        assert run.evaluation_file(label).read_bytes() == expected
