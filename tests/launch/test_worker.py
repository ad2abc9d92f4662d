# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/worker.sh, and tpu.sh with it on workers that are directories of this machine."""

import io
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from support.launching import LAUNCH, Place

# Stands in for .venv/bin/python: pip does nothing; training writes a line, and then ends as the
# file `end` says, or waits for it or for SIGTERM.
PYTHON = """\
#!/usr/bin/env bash
[[ $2 == pip ]] && { echo pip >>pip.txt; exit; }
[[ $2 == stepalign_jax.train ]] || exit 9
shift 2
trap 'echo saved; exit 75' TERM
printf 'training%s\\n' "$(printf ' <%s>' "$@")"
mkdir -p runs/tiny/checkpoints/1/state
echo arrays >runs/tiny/checkpoints/1/state/array
echo whole >runs/tiny/checkpoints/1/manifest.json
echo row >>runs/tiny/metrics.jsonl
touch runs/tiny/lock.json
until [[ -s end ]]; do sleep 0.05; done
exit "$(<end)"
"""


def package(path: Path) -> None:
    """What tpu.sh copies; it has an environment already, which is not made again."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in (("constraints.txt", ""), (".venv/bin/python", PYTHON)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))


class Worker:
    def __init__(self, home: Path) -> None:
        self.home, self.tree = home, home / "stepalign"
        home.mkdir(exist_ok=True)
        package(home / "stepalign-package.tgz")

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["bash", str(LAUNCH / "worker.sh"), *arguments],
            env={"HOME": str(self.home), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self) -> str:
        return self("state").split()[1]

    def until(self, state: str) -> None:
        deadline = time.monotonic() + 30
        while self.state() != state:
            assert time.monotonic() < deadline, f"{self.state()}, not {state}"
            time.sleep(0.05)

    def begun(self) -> None:
        deadline = time.monotonic() + 30
        while not (self.tree / "runs" / "tiny" / "lock.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def pid(self) -> int:
        return int((self.tree / ".job" / "pid").read_text())


@pytest.fixture
def worker(tmp_path: Path):
    worker = Worker(tmp_path / "home")
    yield worker
    if worker.state() == "running":
        os.killpg(worker.pid(), signal.SIGKILL)


def test_setup_installs_once_for_each_package(worker):
    for _ in range(2):
        worker("setup")
    assert (worker.tree / "pip.txt").read_text() == "pip\n"
    (worker.home / "stepalign-package.tgz").unlink()
    another = PYTHON + "# another\n"
    with tarfile.open(worker.home / "stepalign-package.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo(".venv/bin/python")
        entry.size, entry.mode = len(another), 0o755
        archive.addfile(entry, io.BytesIO(another.encode()))
    worker("setup")
    assert (worker.tree / "pip.txt").read_text() == "pip\n" * 2


def test_training_outlives_its_connection_is_started_once_and_leaves_its_status(worker):
    assert worker("state") == "stepalign-state none \n"
    worker("setup")
    worker("start", "42", "--config", "a b; c")
    pid = worker.pid()
    worker("start", "42", "--config", "a b; c")
    assert worker.pid() == pid
    assert worker("state") == "stepalign-state running 42\n"
    (worker.tree / "end").write_text("3")
    worker.until("3")
    log = worker("follow", "5")
    assert log == "training <--config> <a b; c>\n"
    assert worker("follow", "5") == ""


def test_stop_lets_training_save_and_is_told_from_a_stop_of_its_own(worker):
    worker("setup")
    worker("start", "42")
    worker.begun()
    worker("stop")
    worker.until("stopped")
    assert worker("follow", "5").endswith("saved\n")
    (worker.tree / "end").write_text("75")
    worker("start", "42")
    worker.until("75")


def test_a_machine_that_went_down_under_training_goes_on(worker):
    worker("setup")
    worker("start", "42")
    worker.begun()
    os.killpg(worker.pid(), signal.SIGKILL)
    worker.until("75")


def test_a_snapshot_holds_whole_checkpoints_only_and_restores_where_nothing_is(worker):
    worker("setup")
    worker("start", "42")
    checkpoints = worker.tree / "runs" / "tiny" / "checkpoints"
    worker.begun()
    (checkpoints / "2" / "state").mkdir(parents=True)
    (checkpoints / "2" / "state" / "array").write_text("half")
    worker("snapshot")
    with tarfile.open(worker.home / "stepalign-runs.tar") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    assert "tiny/checkpoints/1/manifest.json" in names
    assert "tiny/checkpoints/2/state/array" in names
    assert "tiny/checkpoints/2/manifest.json" not in names
    assert {"tiny/metrics.jsonl", "log.txt"} <= names
    assert "tiny/lock.json" not in names
    other = Worker(worker.home.parent / "other")
    (other.home / "stepalign-runs.tar").write_bytes(
        (worker.home / "stepalign-runs.tar").read_bytes()
    )
    other("setup")
    other("restore")
    assert (other.tree / "runs" / "tiny" / "metrics.jsonl").read_text() == "row\n"
    (other.tree / "runs" / "tiny" / "metrics.jsonl").write_text("newer\n")
    other("restore")
    assert (other.tree / "runs" / "tiny" / "metrics.jsonl").read_text() == "newer\n"
    assert (other.tree / ".job" / "log").read_text().startswith("training")


def test_a_checkpoint_that_goes_while_it_is_packed_loses_its_manifest(worker, tmp_path):
    checkpoint = worker.tree / "runs" / "tiny" / "checkpoints" / "1"
    (checkpoint / "state").mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("whole")
    (checkpoint / "state" / "array").write_text("arrays")
    real_cp = subprocess.check_output(["bash", "-c", "type -P cp"], text=True).strip()
    programs = tmp_path / "programs"
    programs.mkdir()
    # The first copy comes after the checkpoint's deletion has begun: manifest first.
    (programs / "cp").write_text(
        f'#!/bin/sh\nrm -f "{checkpoint}/manifest.json"\nexec {real_cp} "$@"\n'
    )
    (programs / "cp").chmod(0o755)
    subprocess.run(
        ["bash", str(LAUNCH / "worker.sh"), "snapshot"],
        env={"HOME": str(worker.home), "PATH": f"{programs}:{os.environ['PATH']}"},
        check=True,
        timeout=60,
    )
    with tarfile.open(worker.home / "stepalign-runs.tar") as archive:
        names = archive.getnames()
    assert "./tiny/checkpoints/1/state/array" in names
    assert "./tiny/checkpoints/1/manifest.json" not in names


@pytest.mark.parametrize("code", [0, 75])
def test_keep_restores_packs_and_hands_on_the_status(tmp_path, code):
    bucket, tree = tmp_path / "bucket", tmp_path / "tree"
    bucket.mkdir()
    for number in (1, 2):
        tree.mkdir()
        done = subprocess.run(
            ["bash", str(LAUNCH / "worker.sh"), "keep", str(bucket), "600", "bash",
             "-c", f"mkdir -p runs; echo row >>runs/rows; exit {code}"],
            env={**os.environ, "STEPALIGN_TREE": str(tree)},
            cwd=tree, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert (tree / "runs" / "rows").read_text() == "row\n" * number
        tree.rename(tmp_path / f"gone{number}")


def test_the_launcher_trains_on_two_workers_through_every_quote(tmp_path):
    place = Place(tmp_path)
    image = place.cloud / "image" / "stepalign"
    python = image / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (image / "end").write_text("0")
    place.begin(real="1")
    arguments = "train --project my-project --zone my-zone --name mine --type v5litepod-8"
    ended = place.run(
        Path("tpu.sh"), *arguments.split(), "--poll-secs=0", "--", "--name=it's $HOME", "a b"
    )
    assert ended.code == 0, ended.err
    assert ended.out == "training <--name=it's $HOME> <a b>\n"
    assert (place.results / "tiny" / "metrics.jsonl").read_text() == "row\n"
    assert (place.results / "log.txt").read_text() == ended.out
    assert (place.cloud / "worker1" / "stepalign" / "runs" / "tiny").is_dir()
