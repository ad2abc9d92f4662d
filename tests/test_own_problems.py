# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""docs/own-problems.md, followed word for word in an empty directory."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.runs.directory import RunDirectory

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "own-problems.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)(?: file=(\S+))?\n(.*?)```", TEXT, re.DOTALL)
COMMAND = re.compile(r"python -m stepalign_jax\.(\w+) (.*)")


def shell(script: str) -> None:
    """Runs lines in a shell whose `python` is the one of the tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-euc", script], env=environment, check=True, timeout=60)


def follow(script: str) -> None:
    """Runs a block of the page: our commands in this process, which has JAX, the rest not."""
    lines = script.splitlines()
    commands = [found for line in lines if (found := COMMAND.fullmatch(line))]
    if not commands:
        return shell(script)
    assert len(commands) == len(lines)
    for name, arguments in (found.groups() for found in commands):
        main = importlib.import_module(f"stepalign_jax.{name}").main
        try:
            main(shlex.split(arguments))
        except SystemExit as end:
            assert "--print_config" in arguments and not end.code


@pytest.mark.long
def test_the_page_trains_and_exports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for language, file, text in BLOCKS:
        if file:
            Path(file).write_text(text, encoding="utf-8")
        else:
            assert language == "sh"
            follow(text)
    assert "Step 1: " in capsys.readouterr().out  # what `generate` wrote
    train = {record["problem"] for record in read_jsonl(Path("data/train.jsonl"))}
    run = RunDirectory(Path("runs/mine"))
    rollouts = [row for step in (0, 1) for row in read_jsonl(run.rollouts_file(step))]
    assert {row["problem"] for row in rollouts} == train
    assert read_json(Path("exports/mine/config.json"))["model_type"] == "qwen3"


def test_its_config_takes_ten_lines_and_its_links_lead_somewhere() -> None:
    (config,) = [text for language, _, text in BLOCKS if language == "python"]
    body = config.split("def get_config(variant):\n")[1]
    assert len(body.splitlines()) <= 10
    links = re.findall(r"\]\(([\w-]+\.md)\)", TEXT)
    assert links and all((ROOT / "docs" / link).is_file() for link in links)
