# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""OpenMathReasoning's columns: what each filter takes, by file and by stream."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.openmath import openmath_row, planted_rows, write_lines, write_parquet

from stepalign_jax import prepare
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.preparing import columns, hub_records

SPLITS = ("train", "validation", "test")


def prepared(source: Path | str, target: Path, *options: str) -> dict[str, Any]:
    """Prepares, and returns the manifest."""
    argv = ["--source", "openmath", "--from", str(source), "--to", str(target), *options]
    prepare.main(argv)
    return read_json(target / "manifest.json")


def counts(manifest: dict[str, Any]) -> dict[str, int]:
    return {entry["what"]: entry["number"] for entry in manifest["counts"]}


def all_rows(target: Path) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in read_jsonl(target / f"{split}.jsonl")]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_count_at_each_filter_is_exact(kind, tmp_path, capsys):
    rows, expected = planted_rows()
    file = tmp_path / f"planted.{kind}"
    (write_parquet if kind == "parquet" else write_lines)(file, rows)
    manifest = prepared(file, tmp_path / "out")
    assert counts(manifest) == {**expected, "over_the_limits": 0}
    assert [entry["what"] for entry in manifest["counts"]] == [
        *("rows_read", "bad", "proofs", "voted_answers", "answerless", "pass_rate_unknown"),
        *("pass_rate", "duplicate_problems", "gold_conflicts", "over_the_limits"),
    ]
    # Every row that was read is kept, or counted once.
    taken = [number for what, number in counts(manifest).items() if what != "rows_read"]
    assert expected["rows_read"] == sum(taken) + sum(manifest["problems"].values())
    assert sum(manifest["problems"].values()) == 58
    assert manifest["licence"] == "CC-BY-4.0"
    found = {row["problem"]: row for row in all_rows(tmp_path / "out")}
    kept = {f"What follows {number}?" for number in range(60) if number not in (2, 3)}
    assert found.keys() == kept
    assert found["What follows 4?"]["answer"] == "5"
    assert found["What follows 0?"]["reference"] == "After 0 comes another."
    assert found["What follows 0?"]["where"] == f"planted.{kind} row 1"
    printed = capsys.readouterr().out
    assert f"rows read              {expected['rows_read']}\n" in printed
    assert "gold conflicts          2\n" in printed


def test_what_is_bad_or_contradicts_itself_is_listed_with_its_place(tmp_path):
    rows, _ = planted_rows()
    write_parquet(tmp_path / "planted.parquet", rows)
    prepared(tmp_path / "planted.parquet", tmp_path / "out")
    bad = read_jsonl(tmp_path / "out" / "bad_rows.jsonl")
    assert {row["file"] for row in bad} == {"planted.parquet"}
    assert [row["row"] for row in bad] == [61, 62, 63, 64, 65, 66, 67]
    assert [(row["field"], row["reason"]) for row in bad[:5]] == [
        ("problem", "must be text, not null"),
        ("problem", "must not be blank"),
        ("problem_type", "must be text, not null"),
        ("problem_type", "unknown: 'made up'"),
        ("pass_rate_72b_tir", "'often' is no share, nor 'n/a'"),
    ]
    conflicts = read_jsonl(tmp_path / "out" / "gold_conflicts.jsonl")
    assert {row["problem"]: row["answers"] for row in conflicts} == {
        "What follows 2?": ["3", "4"],
        "What follows 3?": ["4", "five"],
    }
    first = next(row["where"] for row in conflicts if row["problem"] == "What follows 3?")
    assert first[0] == "planted.parquet row 4"


def test_json_lines_may_hold_anything_and_stop_nothing(tmp_path):
    write_lines(
        tmp_path / "a.jsonl",
        [
            openmath_row(1),
            "{not json",
            "[1]",
            "",  # a blank line is no row
            "[" * 100_000,
            '{"problem": "\\ud835"}',
            openmath_row(2, pass_rate_72b_tir=0.9),
            openmath_row(3, expected_answer=4),
            openmath_row(4, generated_solution=["a"]),
            openmath_row(5, generated_solution=None),
            {"problem": "only this"},
        ],
    )
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"problem": "\xff"}\n')
    manifest = prepared(tmp_path / "a.jsonl", tmp_path / "out")
    bad = read_jsonl(tmp_path / "out" / "bad_rows.jsonl")
    assert [(row["row"], row["field"]) for row in bad] == [
        *((2, ""), (3, ""), (5, ""), (6, "problem"), (7, "pass_rate_72b_tir")),
        *((8, "expected_answer"), (9, "generated_solution"), (11, "problem_type"), (12, "")),
    ]
    assert counts(manifest)["rows_read"] == 11
    assert "must be text, not float" in bad[4]["reason"]
    assert [row.get("reference") for row in all_rows(tmp_path / "out")].count(None) == 1


def test_a_broken_file_costs_no_other(tmp_path):
    files = tmp_path / "files"
    for number in range(5):
        rows = [openmath_row(100 * number + i) for i in range(30)]
        write_parquet(files / f"{number}.parquet", rows, row_group_size=10)
    whole = (files / "1.parquet").read_bytes()
    (files / "1.parquet").write_bytes(whole[: len(whole) // 2])  # the download was cut
    second_group = pq.ParquetFile(files / "2.parquet").metadata.row_group(1).column(0)
    damaged = bytearray((files / "2.parquet").read_bytes())
    start = second_group.dictionary_page_offset or second_group.data_page_offset
    damaged[start : start + 20] = b"\xff" * 20
    (files / "2.parquet").write_bytes(damaged)
    table = pq.read_table(files / "3.parquet")
    rates = pa.array([0.9] * 30)
    pq.write_table(table.set_column(4, "pass_rate_72b_tir", rates), files / "3.parquet")
    pq.write_table(table.drop_columns(["problem"]), files / "4.parquet")
    manifest = prepared(files, tmp_path / "out")
    bad = read_jsonl(tmp_path / "out" / "bad_rows.jsonl")
    places = [(row["file"], row["row"], row["field"]) for row in bad]
    assert places == [
        ("1.parquet", 0, ""),
        ("2.parquet", 11, ""),
        *(("3.parquet", row, "pass_rate_72b_tir") for row in range(1, 31)),
        ("4.parquet", 0, "problem"),
    ]
    assert "the nearest is 'problem_" in bad[-1]["reason"]
    assert sum(manifest["problems"].values()) == 30 + 20


def test_thinking_is_kept_by_a_switch(tmp_path):
    cut = openmath_row(2, generated_solution="<think>and then the budget was")
    write_parquet(tmp_path / "a.parquet", [openmath_row(1), cut])
    prepared(tmp_path / "a.parquet", tmp_path / "out", "--think", "keep")
    references = {row["answer"]: row["reference"] for row in all_rows(tmp_path / "out")}
    assert references["2"].startswith("<think>\nhm, 1\n</think>")
    assert references["3"] == "<think>and then the budget was"
    prepared(tmp_path / "a.parquet", tmp_path / "removed")
    references = {row["answer"]: row.get("reference") for row in all_rows(tmp_path / "removed")}
    assert references == {"2": "After 1 comes another.", "3": None}


def test_a_later_row_lends_the_reference_that_the_first_lacks(tmp_path):
    rows = [openmath_row(1, generated_solution=None), openmath_row(1)]
    write_parquet(tmp_path / "a.parquet", rows)
    prepared(tmp_path / "a.parquet", tmp_path / "out")
    (row,) = all_rows(tmp_path / "out")
    assert row["reference"] == "After 1 comes another."


def test_the_bound_of_the_pass_rate_is_an_option(tmp_path):
    rates = ["0.1", "0.5", "0.7"]
    rows = [openmath_row(i, pass_rate_72b_tir=rate) for i, rate in enumerate(rates)]
    write_parquet(tmp_path / "a.parquet", rows)
    manifest = prepared(tmp_path / "a.parquet", tmp_path / "out", "--pass-rate-above", "0.4")
    assert counts(manifest)["pass_rate"] == 1


def test_of_files_named_as_on_the_hub_one_split_is_read(tmp_path):
    for split in ("cot", "tir"):
        for index in range(2):
            number = 10 * index + (split == "tir")
            name = f"data/{split}-{index:05d}-of-00002.parquet"
            write_parquet(tmp_path / "hub" / name, [openmath_row(number)])
    manifest = prepared(tmp_path / "hub", tmp_path / "out")
    assert sorted(row["answer"] for row in all_rows(tmp_path / "out")) == ["1", "11"]
    names = [file["name"] for file in manifest["source"]["files"]]
    assert names == [f"data/cot-0000{index}-of-00002.parquet" for index in range(2)]
    assert prepared(tmp_path / "hub", tmp_path / "tir", "--hub-split", "tir")["counts"]


def test_the_stream_of_datasets_gives_the_same_problems(tmp_path, monkeypatch):
    # A directory with the layout of the Hub's is opened by the same call as one on the Hub.
    rows, expected = planted_rows()
    hub = tmp_path / "hub"
    for index in range(3):
        write_parquet(hub / f"data/cot-{index:05d}-of-00003.parquet", rows[index::3])
    monkeypatch.setattr(prepare, "HUB_NAME", "nvidia/stands-here")
    opened: list[tuple[str, Any]] = []

    def open_local(name: str, *, subset: str | None, split: str, revision: str | None) -> Any:
        opened.append((name, split, revision))
        return open_hub(str(hub), subset=subset, split=split, revision=None)

    open_hub = columns.open_hub
    monkeypatch.setattr(columns, "open_hub", open_local)
    monkeypatch.setattr(
        "stepalign_jax.preparing.hub_records.newest_revision", lambda name: "abc"
    )
    target = tmp_path / "streamed"
    prepare.main(["--source", "openmath", "--to", str(target)])
    manifest = read_json(target / "manifest.json")
    assert opened == [("nvidia/stands-here", "cot", "abc")]
    streamed, expected = counts(manifest), {**expected, "over_the_limits": 0}
    # Which of two rows comes first differs with the shards; what is counted does not.
    assert streamed == expected
    prepared(hub, tmp_path / "files")
    for split in SPLITS:
        ours = read_jsonl(tmp_path / "files" / f"{split}.jsonl")
        theirs = read_jsonl(target / f"{split}.jsonl")
        assert [{**row, "where": ""} for row in ours] == [
            {**row, "where": ""} for row in theirs
        ]


def test_a_broken_shard_of_the_stream_is_a_bad_row_and_a_lost_connection_is_none(
    tmp_path, monkeypatch
):
    hub = tmp_path / "hub"
    for index in range(2):
        rows = [openmath_row(10 * index + i) for i in range(3)]
        write_parquet(hub / f"data/cot-{index:05d}-of-00002.parquet", rows)
    records = hub_records.open_hub(str(hub), subset=None, split="cot", revision=None)
    first = hub / "data/cot-00000-of-00002.parquet"
    whole = first.read_bytes()
    first.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    (bad,) = records.read(records.parts[0], ())
    assert bad[:3] == (records.parts[0], 1, "")
    assert len(list(records.read(records.parts[1], ()))) == 3

    def breaks(shard: Any) -> Any:
        yield {"problem": "a"}
        raise ConnectionResetError(104, "reset by peer")

    with pytest.raises(UserError, match=r"1/2 stopped behind row 1 \(ConnectionResetError"):
        list(hub_records._read_shard(breaks(None), records.parts[0]))
