# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A prepared test set is locked, and each evaluation on it is counted once."""

from types import SimpleNamespace

import pytest
from support.openmath import openmath_row, prepare_files, write_lines
from support.runs import small_config, write_config

from stepalign_jax import evaluate
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.base.stopping import Stopped
from stepalign_jax.config.schema import ArithmeticProblems, JsonlProblems
from stepalign_jax.preparing import prepared
from stepalign_jax.problems.locked import count_opening
from stepalign_jax.problems.sources import load_problems
from stepalign_jax.sampling.kept import Kept
from stepalign_jax.train import train

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
    config = SimpleNamespace(spec=ArithmeticProblems)
    assert count_opening(config, "test", command="c", of="r", goes_on=False) == ""  # type: ignore


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
    find = prepared.find_prepared
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
    assert find is not prepared.find_prepared


def test_evaluate_and_train_count_each_evaluation_once(
    directory, tmp_path, monkeypatch, capsys
):
    config = small_config(tmp_path / "runs", problems=problems(directory))
    argv = ["--config", write_config(tmp_path / "c.py", config)]
    evaluate.main(argv)
    assert "this locked test set has been opened 1 times" in capsys.readouterr().out
    evaluate.main([*argv, "--split", "validation"])
    assert "locked" not in capsys.readouterr().out
    assert len(openings(directory)) == 1

    def stops(kept, key, completion):
        add(kept, key, completion)
        raise Stopped("stopped", 130)

    add = Kept.add
    with monkeypatch.context() as patch:
        patch.setattr(Kept, "add", stops)
        with pytest.raises(Stopped):
            evaluate.main([*argv, "--to", str(tmp_path / "found.json")])
        with pytest.raises(Stopped):
            train(config)
    assert len(openings(directory)) == 3
    evaluate.main([*argv, "--to", str(tmp_path / "found.json")])  # goes on
    assert "opened 3 times" in capsys.readouterr().out
    train(config)  # goes on
    found = [(row["command"], row["of"].rpartition(" ")[2]) for row in openings(directory)]
    assert found == [
        *[("evaluate", "packaged:tiny")] * 2,
        *[("train", "before"), ("train", "after")],
    ]
