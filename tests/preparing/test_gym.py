# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks of reasoning_gym as problems: on a stub of the package, and (slow) on the package."""

import json
from pathlib import Path

import pytest
from support.gym import stub_gym  # noqa: F401

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json
from stepalign_jax.grading.grader import Grader
from stepalign_jax.prepare import main
from stepalign_jax.preparing.gym import Task, gym_source, parse_options
from stepalign_jax.preparing.rows import BadRow, Row
from stepalign_jax.preparing.write import SplitRule
from stepalign_jax.problems.jsonl import read_problems

RULE = SplitRule(0.1, 0.1)
needs_stub = pytest.mark.usefixtures("stub_gym")


def read(task: str, num_train: int = 20, seed: int = 0, skip: int = 0, **options) -> list:
    limits = {"train": num_train, "validation": None, "test": None}
    source = gym_source(Task(task, seed, options, 0), limits, RULE)
    return list(source.read(source.parts[0], skip))


def prepare(target: Path, *arguments: str) -> dict:
    main(["--source", "gym", "--to", str(target), *arguments])
    return read_json(target / "manifest.json")


@needs_stub
def test_word_problems_lose_their_instruction_and_bring_a_reference():
    first = read("gsm_symbolic", seed=7)[0]
    assert first == Row(
        "Template 2: Ann has 7 pears and buys 2. How many?",
        "9",
        "She has 7 pears.\n7+2=9",
        where="gsm_symbolic seed 7 index 0",
    )


@needs_stub
def test_a_task_with_a_scorer_of_its_own_brings_it_with_its_options():
    row = read("limited", limit=3)[1]
    entry = {"question": "Write h backwards.", "answer": "h", "metadata": {}}
    assert row.scorer == {"task": "limited", "entry": entry, "options": {"limit": 3}}
    assert row.reference is None


@needs_stub
def test_numbers_of_a_task_without_a_scorer_are_mathematics():
    assert {row.scorer for row in read("sums")} == {None}
    assert None not in [row.scorer for row in read("words")]  # text needs no mathematics


@needs_stub
def test_reading_goes_on_where_it_was_and_is_the_same_again():
    whole = read("words", seed=3)
    assert whole == read("words", seed=3) and read("words", seed=3, skip=5) == whole[5:]
    assert whole != read("words", seed=4)


@needs_stub
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("no_answer", "the task no_answer cannot be used.*answer: the task brings none"),
        ("any_answer", r"finds '\(no answer\)' right too"),
        ("tuples", "does not find it right once it was stored"),
        ("word", "no task 'word'; the nearest is 'words'"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_at_once(task, message):
    with pytest.raises(UserError, match=message):
        read(task)


@needs_stub
def test_one_bad_problem_is_a_bad_row(monkeypatch):
    import reasoning_gym

    good = reasoning_gym.GsmSymbolic.__getitem__

    def broken(self, i: int) -> dict:
        entry = good(self, i)
        if i == 3:
            entry["metadata"]["answer_cot"] = "It is so.\n#### 77"
        if i == 5:
            raise ZeroDivisionError
        return entry

    monkeypatch.setattr(reasoning_gym.GsmSymbolic, "__getitem__", broken)
    bad = [item for item in read("gsm_symbolic") if isinstance(item, BadRow)]
    assert [(item.row, item.field) for item in bad] == [(4, "answer_cot"), (6, "")]
    assert "ZeroDivisionError" in bad[1].reason


@needs_stub
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "words", "--set", "limt=3"], "--set limt: .*the nearest is 'limit'"),
        (["--task", "words", "--set", "limit"], "write key=value"),
        (["--task", "words", "--set", "seed=3"], "by --seed"),
        (["--task", "words", "--set", "limit=-1"], "refuses its settings .limit must be pos"),
        (["--task", "words", "--held-out-templates", "1"], "only gsm_symbolic has templates"),
        (["--held-out-templates", "5"], "give 0 to 4, of 5 templates"),
        (["--from", "x.jsonl"], "--from is not read with --source gym"),
        (["--sampling.top_k=3"], "--sampling.top_k=3 changes a config"),
    ],
)
def test_impossible_options_are_refused(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "made", "--num-train", "10", *arguments)
    assert not (tmp_path / "made").exists()


def test_options_of_other_sources_are_refused(tmp_path):
    with pytest.raises(UserError, match="--task is read with --source gym only"):
        main(["--source", "openmath", "--task", "words", "--to", str(tmp_path / "made")])


@needs_stub
def test_it_generates_as_many_as_are_asked_for(tmp_path):
    with pytest.raises(UserError, match="give --num-train"):
        prepare(tmp_path / "made")
    counts = ("--num-train", "40", "--num-validation", "6", "--num-test", "5")
    manifest = prepare(tmp_path / "made", "--task", "sums", *counts)
    assert manifest["problems"] == {"train": 40, "validation": 6, "test": 5}
    again = prepare(tmp_path / "again", "--task", "sums", *counts)
    assert again["content"] == manifest["content"]


@needs_stub
def test_no_problem_comes_twice(tmp_path):
    manifest = prepare(tmp_path, "--task", "words", "--num-train", "30")
    counts = {entry["what"]: entry["number"] for entry in manifest["counts"]}
    found = [
        p for split in manifest["problems"] for p in read_problems(tmp_path / f"{split}.jsonl")
    ]
    assert len({problem.text for problem in found}) == len(found)
    taken = counts["duplicate_problems"] + counts["over_the_limits"]
    assert taken + len(found) == counts["rows_read"]
    assert counts["duplicate_problems"] > 0


@needs_stub
def test_held_out_templates_are_in_the_test_set_alone(tmp_path):
    def templates(target: Path, split: str) -> set[str]:
        return {
            problem.text.split(":")[0] for problem in read_problems(target / f"{split}.jsonl")
        }

    counts = ("--num-train", "40", "--num-validation", "6", "--num-test", "10")
    manifest = prepare(tmp_path / "two", *counts, "--held-out-templates", "2")
    test = templates(tmp_path / "two", "test")
    seen = templates(tmp_path / "two", "train") | templates(tmp_path / "two", "validation")
    assert len(test) == 2 and len(seen) == 3 and not test & seen
    assert test == {f"Template {t}" for t in manifest["source"]["held_out_templates"]}
    assert manifest["problems"] == {"train": 40, "validation": 6, "test": 10}
    prepare(tmp_path / "one", *counts, "--held-out-templates", "1", "--seed", "5")
    assert templates(tmp_path / "one", "test") < test  # whatever the seed


@needs_stub
def test_prepared_scorers_judge(tmp_path):
    prepare(tmp_path, "--task", "words", "--num-train", "10")
    problems = read_problems(tmp_path / "train.jsonl")[:2]
    golds = [problem.expected for problem in problems]
    with Grader(deadline_secs=20.0, num_workers=1) as grader:
        grader.check_scorers(golds)
        right = [problem.answer for problem in problems]
        assert grader.grade([*right, "?"], [*golds, golds[0]]) == [True, True, False]


def test_settings_are_json_or_text():
    assert parse_options(["a=3", "b=[1, 2]", "c=x=y", "d=true"]) == {
        "a": 3,
        "b": [1, 2],
        "c": "x=y",
        "d": True,
    }


@pytest.mark.slow
def test_the_real_package(tmp_path):
    pytest.importorskip("reasoning_gym", reason="needs pip install '.[gym]'")
    counts = ("--num-train", "200", "--num-validation", "20", "--num-test", "20")
    manifest = prepare(tmp_path / "gsm", *counts, "--held-out-templates", "15")
    assert manifest["problems"] == {"train": 200, "validation": 20, "test": 20}
    assert dict((c["what"], c["number"]) for c in manifest["counts"])["bad"] == 0
    problems = read_problems(tmp_path / "gsm" / "train.jsonl")
    assert not any("Give the result" in p.text or "####" in p.reference for p in problems)
    for task in ("countdown", "knights_knaves", "word_sorting", "sudoku"):
        prepare(tmp_path / task, "--task", task, "--num-train", "3")
        lines = (tmp_path / task / "train.jsonl").read_text().splitlines()
        assert [json.loads(line)["scorer"]["task"] for line in lines] == [task] * 3
    for task in ("boxnet", "game_of_life_halting", "rearc"):
        with pytest.raises(UserError, match="cannot be used"):
            prepare(tmp_path / task, "--task", task, "--num-train", "3")
