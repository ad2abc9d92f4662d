# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Killed at any point and started again, a preparation ends with the same manifest."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.openmath import openmath_row, planted_rows, prepare_files, write_lines

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json
from stepalign_jax.base.stopping import EXIT_CAN_GO_ON, Stopped
from stepalign_jax.preparing import gather, prepared
from stepalign_jax.preparing.file_records import open_files
from stepalign_jax.preparing.openmath import openmath_source

ROOT = Path(__file__).parents[2]
ROWS_PER_TRANSACTION = 20

# Without JAX, so that it may fork: each child ends itself without a word when a named call
# comes the n-th time, "before" the call or "after" it.
DRIVER = f"""
import json, os, signal, sys
from pathlib import Path
from stepalign_jax.preparing import gather, prepared, write
from support.openmath import prepare_files

assert "jax" not in sys.modules
gather._ITEMS_PER_TRANSACTION = {ROWS_PER_TRANSACTION}
source, targets, points = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])

def dying(call, when, number):
    left = [number]
    def wrapped(*arguments, **keywords):
        left[0] -= 1
        if left[0] == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*arguments, **keywords)
        if left[0] == 0 and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped

for target, where, name, when, number in points:
    if (child := os.fork()) == 0:
        owner = eval(where)
        setattr(owner, name, dying(getattr(owner, name), when, number))
        prepare_files(source, targets / target)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

POINTS = [
    ("gather", "_prepare_tables", "after", 1),  # nothing has been read
    ("gather.Gathered", "_take_row", "before", 7),  # inside the first transaction
    ("gather.Gathered", "_moved", "before", 2),  # a transaction's last word
    ("gather.Gathered", "_take", "after", 3),  # between two transactions
    ("gather.Gathered", "_take_row", "after", 41),
    ("gather.Gathered", "_moved", "after", 4),  # the first file is done
    ("write", "_record", "before", 5),  # the splits are half written
    ("prepared", "_write_rows", "after", 1),
    ("write", "write_json", "before", 1),  # all but the manifest
    ("prepared", "write_manifest", "after", 1),
    ("os", "fsync", "after", 3),  # the directory is on its way to its name
    ("prepared.shutil", "rmtree", "before", 1),  # all is done but tidying up
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("source")
    rows, _ = planted_rows()
    write_lines(directory / "a.jsonl", [*rows[:50], "{broken"])
    write_lines(directory / "b.jsonl", rows[50:])
    return directory


@pytest.fixture(scope="module")
def unbroken(source, tmp_path_factory):
    return prepare_files(source, tmp_path_factory.mktemp("unbroken") / "out")


def run_killed(source: Path, targets: Path, *points: tuple) -> None:
    """Prepares in one process per point, (directory of `targets`, *entry of POINTS)."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", DRIVER, str(source), str(targets), json.dumps(points)]
    printed = subprocess.run(
        command, env=environment, check=True, timeout=60, stdout=subprocess.PIPE, text=True
    ).stdout
    assert printed.split() == [str(-signal.SIGKILL)] * len(points)


@pytest.fixture(scope="module")
def killed(source, tmp_path_factory):
    """A directory in which what was killed at point number N lies as N/out."""
    targets = tmp_path_factory.mktemp("killed")
    run_killed(source, targets, *((f"{n}/out", *point) for n, point in enumerate(POINTS)))
    return targets


@pytest.mark.parametrize("number", range(len(POINTS)))
def test_killed_and_started_again(number, killed, source, unbroken, monkeypatch):
    monkeypatch.setattr(gather, "_ITEMS_PER_TRANSACTION", ROWS_PER_TRANSACTION)
    directory = killed / str(number)
    assert prepare_files(source, directory / "out") == unbroken
    assert [path.name for path in directory.iterdir()] == ["out"]


def test_killed_again_and_again(source, unbroken, tmp_path):
    """Each process gets three transactions further, and dies."""
    point = ("out", "gather.Gathered", "_take", "after", 3)
    run_killed(source, tmp_path, *[point] * 2)
    assert prepare_files(source, tmp_path / "out") == unbroken


def test_what_was_read_is_not_read_again(source, tmp_path, monkeypatch):
    target = tmp_path / "out"
    run_killed(source, tmp_path, ("out", "gather.Gathered", "_take", "after", 3))
    taken = []
    take = gather.Gathered._take
    monkeypatch.setattr(
        gather.Gathered, "_take", lambda self, batch: (taken.extend(batch), take(self, batch))
    )
    prepare_files(source, target)
    counts = read_json(target / "manifest.json")["counts"]
    # Two batches of 20, and the 11 that were left of the first file.
    assert counts[0]["number"] - len(taken) == 51


def test_a_signal_says_that_the_same_command_goes_on(source, tmp_path, unbroken, monkeypatch):
    def stopped(self: object, batch: object) -> None:
        raise Stopped("stopped by SIGTERM", 143)

    with monkeypatch.context() as patch:
        patch.setattr(gather.Gathered, "_take", stopped)
        with pytest.raises(Stopped, match="what was read is kept") as stop:
            prepare_files(source, tmp_path / "out")
    assert stop.value.exit_code == EXIT_CAN_GO_ON
    assert prepare_files(source, tmp_path / "out") == unbroken


def test_a_source_that_changed_meanwhile_is_read_from_the_start(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_lines(source / "a.jsonl", [openmath_row(i) for i in range(60)])
    run_killed(source, tmp_path, ("out", "gather.Gathered", "_take", "after", 2))
    write_lines(source / "a.jsonl", [openmath_row(i) for i in range(100, 160)])
    prepare_files(source, tmp_path / "out")
    texts = "".join(file.read_text() for file in (tmp_path / "out").glob("t*.jsonl"))
    assert "What follows 1" in texts and "What follows 3?" not in texts


def test_two_processes_cannot_prepare_one_directory(source, tmp_path):
    work = prepared.work_directory(tmp_path / "out")
    records = open_files(source, "cot")
    rows = openmath_source(records, pass_rate_above=0.85, keep_thinking=False)
    with (
        gather.open_gathered(work / "rows.sqlite", rows),
        pytest.raises(UserError, match="in use by another process"),
    ):
        prepare_files(source, tmp_path / "out")


def test_a_damaged_store_is_refused_in_a_sentence(source, tmp_path):
    work = prepared.work_directory(tmp_path / "out")
    work.mkdir()
    (work / "rows.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"not a database.*delete .*\.out\.preparing"):
        prepare_files(source, tmp_path / "out")
