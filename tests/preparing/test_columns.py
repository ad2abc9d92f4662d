# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One's own data by the names of its columns, and what the command refuses."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.openmath import write_lines

from stepalign_jax import prepare
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.preparing.rows import Dropped, Stages
from stepalign_jax.problems.jsonl import read_problems
from stepalign_jax.problems.problem import Problem

GSM8K = [
    {"question": "3 apples and 4?", "answer": "He has 3+4=<<3+4=7>>7.\n#### 7"},
    {"question": "Twice 600?", "answer": "#### no, 2*600\n#### 1,200"},
    {"question": "What now?", "answer": "I do not know"},
    {"question": "And now?", "answer": "Nothing ####"},
]
OPENMATH = ["--source", "openmath"]
NAMES = ["--problem-column", "question", "--answer-column", "answer"]


def run(source: Path | str, target: Path, *options: str) -> None:
    paths = ["--source", "columns", "--from", str(source), "--to", str(target)]
    prepare.main([*paths, *NAMES, "--test-share", "0", "--validation-share", "0", *options])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_answer_behind_a_mark(kind, tmp_path, capsys):
    file = tmp_path / f"train.{kind}"
    if kind == "jsonl":
        write_lines(file, GSM8K)
    else:
        pq.write_table(pa.Table.from_pylist(GSM8K), file)
    marked = ["--answer-after", "####", "--reference-column", "answer", "--licence", "MIT"]
    run(file, tmp_path / "out", *marked)
    found = {p.text: p for p in read_problems(tmp_path / "out" / "train.jsonl")}
    assert found["3 apples and 4?"] == Problem(
        "3 apples and 4?", "7", "He has 3+4=<<3+4=7>>7.\n#### 7", "jsonl"
    )
    assert found["Twice 600?"].answer == "1,200"
    assert len(found) == 2
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["licence"] == "MIT"
    counts = {entry["what"]: entry["number"] for entry in manifest["counts"]}
    assert counts["bad"] == 1 and counts["answerless"] == 1
    (bad,) = read_jsonl(tmp_path / "out" / "bad_rows.jsonl")
    assert (bad["row"], bad["field"], bad["reason"]) == (3, "answer", "does not hold '####'")
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"warning: no {split} problem: raise its share" for split in
                      ("validation", "test")]  # fmt: skip


def test_answers_may_be_numbers(tmp_path):
    answers = [204, 0.5, True, None, [1], float("nan")]
    rows = [{"question": f"q{i}", "answer": answer} for i, answer in enumerate(answers)]
    write_lines(tmp_path / "a.jsonl", rows)
    run(tmp_path / "a.jsonl", tmp_path / "out")
    found = {p.text: p.answer for p in read_problems(tmp_path / "out" / "train.jsonl")}
    assert found == {"q0": "204", "q1": "0.5"}
    bad = read_jsonl(tmp_path / "out" / "bad_rows.jsonl")
    assert [row["row"] for row in bad] == [3, 4, 5, 6]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_that_is_absent_is_refused_with_the_nearest(kind, tmp_path):
    rows = [{"questions": "a", "answer": "1"}] * 3
    file = tmp_path / f"mine.{kind}"
    if kind == "jsonl":
        write_lines(file, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    says = (
        rf"mine\.{kind} row 1 has no column 'question'; the nearest is 'questions': "
        "name the right one with --problem-column"
    )
    with pytest.raises(UserError, match=says):
        run(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_later_row_without_the_column_is_listed(tmp_path):
    write_lines(tmp_path / "a.jsonl", [GSM8K[0], {"answer": "1", "quest": "a"}])
    run(tmp_path / "a.jsonl", tmp_path / "out")
    (bad,) = read_jsonl(tmp_path / "out" / "bad_rows.jsonl")
    assert bad == {
        "file": "a.jsonl", "row": 2, "field": "question",
        "reason": "missing; the nearest is 'quest'",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--source", "columns"], "--source columns needs --from"),
        (["--source", "columns", "--from", "x"], "needs --problem-column"),
        ([*OPENMATH, "--answer-column", "a"], "--answer-column is read with"),
        (["--source", "openmath", "--test-share", "1.5"], "--test-share is 1.5: give 0 to 1"),
        (
            ["--source", "openmath", "--test-share", "0.6", "--validation-share", "0.6"],
            "above 1",
        ),
        (["--source", "openmath", "--num-test", "-1"], "--num-test is -1: give 0 or more"),
        (["--source", "openmath", "--pass-rate-above", "nan"], "--pass-rate-above is nan"),
        (
            ["--source", "openmath", "--from", "no/where/at/all"],
            "there is no file or directory",
        ),
        (["--source", "openmath", "--from", "."], "holds no .jsonl or .parquet file"),
        (["--source", "gsm"], "invalid choice"),
    ],
)
def test_impossible_options_are_refused(options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        prepare.main([*options, "--to", "out"])
    assert not list(tmp_path.iterdir())


def test_a_hub_that_cannot_be_reached_is_said_in_a_sentence(tmp_path):
    # The tests are offline.
    with pytest.raises(UserError, match="cannot reach nvidia/OpenMathReasoning on the Hub"):
        prepare.main(["--source", "openmath", "--to", str(tmp_path / "out")])


def test_the_same_command_again_reads_nothing_and_another_is_refused(tmp_path, capsys):
    write_lines(tmp_path / "a.jsonl", GSM8K)
    run(tmp_path / "a.jsonl", tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    run(tmp_path / "a.jsonl", tmp_path / "out")
    assert "is prepared: nothing was read" in capsys.readouterr().out
    with pytest.raises(UserError, match="was prepared with another from, licence"):
        run(tmp_path / "b.jsonl", tmp_path / "out", "--licence", "mine")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.jsonl").write_text("mine")
    with pytest.raises(UserError, match="holds files that this command did not make"):
        run(tmp_path / "b.jsonl", tmp_path / "own")
    run(tmp_path / "b.jsonl", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "manifest.json").read_bytes() != before


def test_the_manifest_is_the_same_wherever_and_whenever_it_is_made(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_lines(Path("a.jsonl"), GSM8K)
        run("a.jsonl", Path("out"))
    found = [
        (tmp_path / name / "out" / "manifest.json").read_bytes() for name in ("one", "two")
    ]
    assert found[0] == found[1]


def test_nothing_left_says_what_became_of_the_rows(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["{broken", '{"question": "a", "answer": " "}'])
    with pytest.raises(
        UserError,
        match=r"no problem is left \(rows read 2, bad 1, answerless 1\); the first bad row: "
        r"a\.jsonl row 1 : not JSON",
    ):
        run(tmp_path / "a.jsonl", tmp_path / "out")


def test_limits_and_filters_that_ask_a_model(tmp_path, monkeypatch):
    rows = [{"question": f"q{i}", "answer": str(i)} for i in range(200)]
    write_lines(tmp_path / "a.jsonl", rows)
    asked = []

    def apply(rows, directory):
        assert directory.is_dir()
        for row in rows:
            asked.append(row.problem)
            yield Dropped("too_easy") if int(row.answer) % 2 else row

    stages = Stages(("too_easy", "unformatted"), apply, {"solver": "weights"})
    monkeypatch.setattr(prepare, "make_stages", lambda arguments: stages)
    limits = ["--num-train", "20", "--num-validation", "5", "--num-test", "5"]
    shares = ["--validation-share", "0.2", "--test-share", "0.2"]
    run(tmp_path / "a.jsonl", tmp_path / "out", *shares, *limits)
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["problems"] == {"train": 20, "validation": 5, "test": 5}
    counts = {entry["what"]: entry["number"] for entry in manifest["counts"]}
    assert counts["unformatted"] == 0
    assert counts["too_easy"] == sum(int(name[1:]) % 2 for name in asked)
    assert len(asked) < 200  # once every split is full, no model is asked
    assert counts["too_easy"] + counts["over_the_limits"] + 30 == 200
    assert manifest["stages"] == {"solver": "weights"}
    asked.clear()
    run(tmp_path / "a.jsonl", tmp_path / "out", *shares, *limits)
    assert not asked
