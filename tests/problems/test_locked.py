# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A prepared test set is locked, and each evaluation on it is counted once."""

from contextlib import nullcontext

import pytest
from support.openmath import openmath_row, prepare_files, write_lines
from support.runs import small_config, write_config

from stepalign_jax import evaluate, train
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.base.stopping import Stopped
from stepalign_jax.config.schema import JsonlProblems
from stepalign_jax.preparing import prepared
from stepalign_jax.problems.locked import count_opening
from stepalign_jax.problems.sources import load_problems
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.sampling.kept import Completion

SUMS = [f"{a}+3*{b}-2" for a in range(10, 40) for b in (2, 4)]


@pytest.fixture
def directory(tmp_path):
    rows = [openmath_row(0, problem=s, expected_answer=str(eval(s))) for s in SUMS]
    write_lines(tmp_path / "a.jsonl", rows)
    prepare_files(tmp_path / "a.jsonl", tmp_path / "out")
    return tmp_path / "out"


def problems(directory):
    return JsonlProblems(
        path=str(directory), num_train=4, num_validation=2, num_test=3,
        base_avg_below=0.0, base_avg_samples=4,
    )  # fmt: skip


def openings(directory):
    path = directory / "test_openings.jsonl"
    return read_jsonl(path) if path.exists() else []


def count(directory, split="test", *, goes_on=False):
    return count_opening(
        problems(directory), split, command="evaluate", of="runs/mine", goes_on=goes_on
    )


def test_an_opening_is_a_line_that_says_when_by_what_and_of_what(directory):
    assert count(directory).startswith("this locked test set has been opened 1 times (")
    assert "opened 2 times" in count(directory)
    assert "opened 2 times" in count(directory, goes_on=True)
    assert count(directory, "validation") == ""
    first, _ = openings(directory)
    assert first.keys() == {"when", "command", "of", "test"}
    assert (first["command"], first["of"]) == ("evaluate", "runs/mine")


def test_what_nobody_prepared_is_not_locked(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"problem": "a", "answer": "1"}')
    assert load_problems(problems(tmp_path), "test")
    assert count(tmp_path) == "" and openings(tmp_path) == []


def test_a_changed_test_set_is_refused(directory):
    file = directory / "test.jsonl"
    file.write_bytes(file.read_bytes()[:-10] + b"\n")
    with pytest.raises(UserError, match=r"test\.jsonl is not the file that .*manifest\.json"):
        load_problems(problems(directory), "test")
    assert load_problems(problems(directory), "train")
    (directory / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not JSON"):
        load_problems(problems(directory), "test")


def test_preparing_again_keeps_the_count_of_the_same_test_set(directory, monkeypatch):
    count(directory)
    monkeypatch.setattr(prepared, "find_prepared", lambda *_: None)
    prepare = prepared.prepare
    monkeypatch.setattr(
        prepared, "prepare", lambda *a, **k: prepare(*a, **{**k, "overwrite": True})
    )
    prepare_files(directory.with_name("a.jsonl"), directory)
    assert "opened 2 times" in count(directory)
    rows = [openmath_row(0, problem=s, expected_answer="1") for s in SUMS]
    write_lines(directory.with_name("a.jsonl"), rows)
    prepare_files(directory.with_name("a.jsonl"), directory)
    assert len(openings(directory)) == 2
    assert "opened 1 times" in count(directory)  # another test set


def interrupted(*_, kept=None, **__):
    """In place of an evaluation: a signal comes after the first completion."""
    if kept is not None:
        kept.add("key", Completion([1], [0.0]))
    raise Stopped("stopped", 130)


def test_evaluate_and_train_count_an_evaluation_once(directory, tmp_path, monkeypatch):
    config = small_config(tmp_path / "runs", "no_context", problems=problems(directory))
    argv = ["--config", write_config(tmp_path / "c.py", config)]
    for command in (evaluate, train):
        monkeypatch.setattr(command, "evaluate", interrupted)
        monkeypatch.setattr(command, "make_grader", lambda _: nullcontext())
        monkeypatch.setattr(command, "check_problems", lambda *_, **__: None)

    def stop(call, *arguments):
        """Returns what the process has counted."""
        before = len(openings(directory))
        with pytest.raises(Stopped):
            call(*arguments)
        return [(row["command"], row["of"]) for row in openings(directory)[before:]]

    ours = ("evaluate", "packaged:tiny")
    assert stop(evaluate.main, [*argv, "--split", "validation"]) == []
    to = [*argv, "--to", str(tmp_path / "found.json")]
    assert [stop(evaluate.main, to) for _ in range(2)] == [[ours], []]  # the second goes on
    assert stop(evaluate.main, argv) == [ours]
    before = ("train", f"{RunDirectory.of(config).path} before")
    assert [stop(train.train, config) for _ in range(2)] == [[before], []]
