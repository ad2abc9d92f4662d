# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/slurm.sh and its job script, with stand-ins for Slurm's programs."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.launching import LAUNCH, Place

SLURM = Path("slurm.sh")
TRAIN = ("train", "--name", "mine", "--partition", "gpu", "--", "--config", "tiny")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the first argument is what to do"),
        (("train", "--partition", "gpu", "--", "x"), "--name is not given"),
        (("train", "--name", "mine", "--", "x"), "--partition is not given"),
        (("train", "--name", "mine", "--partition", "gpu"), "training has no arguments"),
        (("train", "--name", "a b", "--partition", "gpu", "--", "x"), "--name a b"),
        (("train", "--nodes", "two", "--name", "mine", "--", "x"), "'two' is no whole number"),
    ],
)
def test_mistakes_are_refused_in_one_sentence_before_any_call(place, arguments, words):
    ended = place.run(SLURM, *arguments)
    assert ended.code == 2
    assert re.fullmatch(r"error: .*\n", ended.err)
    assert words in ended.err
    assert not place.lines("calls")


def test_train_submits_once_and_dry_run_prints_the_same_calls(place):
    dry = place.run(SLURM, "train", "--dry-run", *TRAIN[1:])
    assert not place.lines("calls")
    ended = place.run(SLURM, *TRAIN)
    assert ended.code == 0
    assert place.lines("calls") == dry.out.splitlines()
    assert ended.err.splitlines()[-1] == "  scancel --me --name=mine"
    (place.cloud / "squeue.says").write_text("17 PENDING\n")
    again = place.run(SLURM, *TRAIN)
    assert again.code == 0
    assert "already there: 17 PENDING" in again.err
    assert sum(call.startswith("sbatch") for call in place.lines("calls")) == 1


def test_nothing_is_submitted_while_slurm_does_not_answer(place):
    (place.cloud / "squeue.code").write_text("1")
    assert place.run(SLURM, *TRAIN).code == 75
    assert not any(call.startswith("sbatch") for call in place.lines("calls"))


def test_a_failed_submission_names_what_would_cancel_it(place):
    (place.cloud / "sbatch.code").write_text("3")
    ended = place.run(SLURM, *TRAIN)
    assert ended.code == 3
    assert "scancel --me --name=mine" in ended.err


def test_stop_forbids_the_job_to_queue_again_before_it_asks(place):
    (place.cloud / "squeue.says").write_text("17 RUNNING\n")
    assert place.run(SLURM, "stop", "--name", "mine").code == 0
    assert place.lines("calls")[1:] == [
        "scontrol update JobId=17 Requeue=0",
        "scancel --batch --signal=TERM 17",
    ]


@pytest.fixture
def job(place):
    """The job script, with a `python` that trains until it is told to stop."""
    programs = place.path / "programs"
    programs.mkdir()
    (programs / "python").write_text(
        '#!/usr/bin/env bash\necho "$*" >trained\ntrap "exit 75" TERM\n'
        "until [[ -s end ]]; do sleep 0.05; done\nexit $(<end)\n"
    )
    (programs / "sleep").write_text('#!/bin/sh\n[ "$1" = 60 ] || exec /bin/sleep "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = dict(place.environment())
    environment["PATH"] = f"{programs}:{environment['PATH']}"

    def begin(**more: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(LAUNCH / "slurm.sbatch"), "--config", "tiny"],
            cwd=place.path,
            env={**environment, "SLURM_JOB_ID": "17", **more},
            stderr=subprocess.DEVNULL,
        )

    return begin


def test_the_job_trains_by_readmes_command(place, job):
    (place.path / "end").write_text("3")
    assert job().wait(60) == 3
    assert (place.path / "trained").read_text() == "-m stepalign_jax.train --config tiny\n"
    assert not any(call.startswith("scontrol") for call in place.lines("calls"))


def test_a_preempted_job_saves_and_queues_again(place, job):
    running = job()
    deadline = time.monotonic() + 60
    while not (place.path / "trained").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # until `python` has set its trap
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(60) == 75
    assert place.lines("calls")[-1] == "scontrol requeue 17"


def test_restarts_are_bounded(place, job):
    (place.path / "end").write_text("75")
    assert job(SLURM_RESTART_COUNT="2", STEPALIGN_MAX_RESTARTS="2").wait(60) == 75
    assert not any(call.startswith("scontrol") for call in place.lines("calls"))
