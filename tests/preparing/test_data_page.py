# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""docs/data.md: its files and local commands, followed word for word; its links and counts."""

import re
import shlex
from pathlib import Path

import pytest

from stepalign_jax import prepare
from stepalign_jax.base.files import read_json
from stepalign_jax.preparing import model_stages
from stepalign_jax.preparing.openmath import FILTERS
from stepalign_jax.problems.jsonl import read_problems
from stepalign_jax.problems.sources import SPLITS

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)(?: file=(\S+))?\n(.*?)```", TEXT, re.DOTALL)
COMMAND = "python -m stepalign_jax.prepare "


def test_the_page_prepares_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for language, file, text in BLOCKS:
        if file:
            Path(file).write_text(text, encoding="utf-8")
        elif language == "sh":
            assert text.startswith(COMMAND)
            prepare.main(shlex.split(text.removeprefix(COMMAND)))
    printed = capsys.readouterr().out
    (table,) = [text for language, _, text in BLOCKS if not language and "rows read" in text]
    assert printed.startswith(table)
    (problem,) = read_problems("data/small/train.jsonl")
    assert problem.reference == "2+3 is 5."
    files = [Path("data/mine", f"{split}.jsonl") for split in SPLITS]
    found = [read_problems(file) for file in files if file.stat().st_size]
    answers = sorted(problem.answer for problems in found for problem in problems)
    assert answers == ["1200", "4", "4", "7"]


@pytest.mark.parametrize("text", [text for language, _, text in BLOCKS if not language])
def test_the_commands_that_need_the_hub_are_possible(text):
    if text.startswith(COMMAND):
        argv = shlex.split(text.replace("\\\n", "").removeprefix(COMMAND))
        with pytest.raises(SystemExit) as end:
            prepare.main([*argv, "--help"])
        assert not end.value.code


def test_the_page_names_every_count_and_every_key_of_the_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, file, text = next(block for block in BLOCKS if block[1])
    Path(file).write_text(text, encoding="utf-8")
    prepare.main(["--source", "openmath", "--from", file, "--to", "out"])
    manifest = read_json(Path("out/manifest.json"))
    rows = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", TEXT, re.M))))
    counts = {entry["what"] for entry in manifest["counts"]} - {"rows_read"}
    assert counts | manifest.keys() | set(model_stages.FILTERS) == rows
    assert set(FILTERS) <= rows
