# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks in their public schemas, from rows that are written here."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.problems.benchmarks import BENCHMARKS, load_benchmark, parse_on

# A row in each schema, with all the fields that the public one has, and its answer.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "aime2024": (
        {
            "id": 60,
            "problem": "Find $x$ with $x + 1 = 26$.",
            "solution": "It is 25.",
            "answer": "025",
            "url": "https://example.org/1",
            "year": "2024",
        },
        "025",
    ),
    "aime2025": (
        {"id": "0", "problem": "How many?", "answer": "70", "solution": "", "year": "2025"},
        "70",
    ),
    "math500": (
        {
            "problem": "Convert $(0,3)$ to polar coordinates.",
            "solution": r"So \boxed{\left(3, \frac{\pi}{2}\right)}.",
            "answer": r"\left( 3, \frac{\pi}{2} \right)",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        },
        r"\left( 3, \frac{\pi}{2} \right)",
    ),
    "amc23": ({"id": 0, "question": "When?", "answer": 27.0, "url": "https://x"}, "27.0"),
    "gsm8k": (
        {
            "question": "Ann has 3 boxes of 400 pens. How many?",
            # The last mark counts: a solution may hold one, too.
            "answer": "3 boxes, #### that is:\n3*400=<<3*400=1200>>1,200 pens.\n#### 1,200 ",
        },
        "1,200",
    ),
}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_there_is_a_row_in_each_schema():
    assert ROWS.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_rows_in_the_public_schema(tmp_path, name):
    row, answer = ROWS[name]
    (problem,) = load_benchmark(name, write_rows(tmp_path / "any.jsonl", row))
    assert problem.text == row.get("problem", row.get("question"))
    assert (problem.answer, problem.reference, problem.source) == (answer, None, name)


def test_parquet_gives_the_same_problems(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, (row, _) in ROWS.items():
        rows = [row, {**row, BENCHMARKS[name].problem: "another"}]
        file = tmp_path / name / "data" / f"{BENCHMARKS[name].split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        expected = load_benchmark(name, write_rows(tmp_path / "x.jsonl", *rows))
        assert load_benchmark(name, tmp_path / name) == expected and len(expected) == 2
    file.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"parquet cannot be read as Parquet \("):
        load_benchmark("gsm8k", file)


def test_a_clone_from_the_hub_gives_the_split_of_the_subset(tmp_path):
    """GSM8K has two subsets of two splits each."""
    for subset in ("main", "socratic"):
        for split in ("train", "test"):
            row = {"question": f"{subset} {split}", "answer": "#### 1"}
            write_rows(tmp_path / subset / f"{split}-00000-of-00001.jsonl", row)
    (problem,) = load_benchmark("gsm8k", tmp_path)
    assert problem.text == "main test"
    (problem,) = load_benchmark("gsm8k", tmp_path / "socratic")
    assert problem.text == "socratic test"


def test_shards_are_read_in_their_order_and_none_may_be_missing(tmp_path):
    row, _ = ROWS["math500"]
    shards = [tmp_path / f"test-0000{i}-of-00002.jsonl" for i in (1, 0)]
    for shard in shards:
        write_rows(shard, {**row, "problem": shard.name})
    found = [problem.text for problem in load_benchmark("math500", tmp_path)]
    assert found == sorted(found) and len(found) == 2
    shards[0].unlink()
    with pytest.raises(UserError, match=r"holds 1 .* files, and 1 of them called test"):
        load_benchmark("math500", tmp_path)


@pytest.mark.parametrize(
    "files", [("a.jsonl", "b.jsonl"), ("test.jsonl", "data/test.jsonl"), ("train.txt",)]
)
def test_a_directory_that_is_not_clear_is_refused(tmp_path, files):
    for file in files:
        write_rows(tmp_path / file, ROWS["math500"][0])
    with pytest.raises(UserError, match="is not clear: name one with --on math500=FILE"):
        load_benchmark("math500", tmp_path)


def test_the_only_file_of_a_directory_may_have_any_name(tmp_path):
    write_rows(tmp_path / "hard.jsonl", ROWS["aime2025"][0])
    assert len(load_benchmark("aime2025", tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        (
            "gsm8k",
            {"Question": "a", "answer": "#### 1"},
            "line 2 has no field 'question'; the nearest is 'Question': a row of gsm8k has "
            "'question' and 'answer'",
        ),
        ("aime2024", {"problem": "a"}, "line 2 has no field 'answer'; the nearest is"),
        ("math500", {}, "line 2 has no field 'problem': a row of math500"),
        ("gsm8k", {"question": "a", "answer": "7"}, "'answer' must end in '####' and the"),
        ("gsm8k", {"question": "a", "answer": "so ####\n"}, "'answer' must end in '####'"),
        ("amc23", {"question": "a", "answer": True}, "'answer' must be a string, not true"),
        ("amc23", {"question": "a", "answer": float("nan")}, "must be a string, not NaN"),
        ("amc23", {"question": " ", "answer": "1"}, "line 2: 'question' must not be blank"),
    ],
)
def test_a_row_of_another_schema_is_refused(tmp_path, name, row, sentence):
    file = write_rows(tmp_path / "rows.jsonl", ROWS[name][0], row)
    with pytest.raises(UserError) as refusal:
        load_benchmark(name, file)
    assert str(refusal.value).startswith(f"{file} line 2") and "\n" not in str(refusal.value)
    assert sentence in str(refusal.value)


def test_files_that_cannot_be_a_benchmark(tmp_path):
    with pytest.raises(UserError, match=r"=.*/none\.jsonl is no \.jsonl or \.parquet file"):
        load_benchmark("gsm8k", tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"empty\.jsonl holds no row of gsm8k"):
        load_benchmark("gsm8k", write_rows(tmp_path / "empty.jsonl"))


def test_what_on_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_on("aime2024, gsm8k=~/g=1") == {
        "aime2024": None,
        "gsm8k": Path("/home/me/g=1"),
    }
    for text, sentence in {
        "aime24": "no benchmark 'aime24', but aime2024, .*; did you mean 'aime2024'",
        "": "no benchmark ''",
        "gsm8k,gsm8k=x": "names gsm8k twice",
        "gsm8k=": "--on is empty",
    }.items():
        with pytest.raises(UserError, match=sentence):
            parse_on(text)


def test_the_hub_is_asked_for_the_public_data_set(monkeypatch):
    asked = []

    def load_dataset(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((*arguments, options["split"]))
        return [ROWS[name][0]]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    for name, (_, answer) in ROWS.items():
        (problem,) = load_benchmark(name, None)
        assert problem.answer == answer
    assert asked == [
        ("HuggingFaceH4/aime_2024", None, "train"),
        ("yentinglin/aime_2025", None, "train"),
        ("HuggingFaceH4/MATH-500", None, "test"),
        ("math-ai/amc23", None, "test"),
        ("openai/gsm8k", "main", "test"),
    ]


def test_the_hub_out_of_reach_and_its_package_missing(tmp_path, monkeypatch):
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError) as refusal:
        load_benchmark("amc23", None)
    assert str(refusal.value) == (
        "cannot fetch math-ai/amc23 from the Hub (ConnectionError): on a machine with network "
        "run `hf download math-ai/amc23 --repo-type dataset --local-dir DIRECTORY`, then give "
        "--on amc23=DIRECTORY"
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"needs the package datasets: pip install '\.\[data\]'"
    ):
        load_benchmark("amc23", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"needs the package pyarrow: pip install '\.\[data\]'"):
        load_benchmark("amc23", tmp_path / "a.parquet")
