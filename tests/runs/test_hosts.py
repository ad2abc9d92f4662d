# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A run on several processes: the single process's result, one writer, and every end."""

import os
import re
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from support.processes import Ended, files, start, wait
from support.runs import output_on_devices, small_config, write_config

from stepalign_jax import train
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.base.stopping import EXIT_CAN_GO_ON
from stepalign_jax.runs.checkpoint import Checkpoints, finished_steps, restore_latest
from stepalign_jax.runs.directory import RunDirectory, open_run

STEPS = {"num_steps": 3, "validate_every_steps": 0, "checkpoint_every_steps": 1}
FOUR, EIGHT = {"data": 2, "fsdp": 2, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2}
SECONDS = 500
CODE = """
import os, signal, sys
from stepalign_jax import train
from stepalign_jax.config.cli import run_command

phase, victim, number = os.environ.get("DIES", "-,-1,0").split(",")
if INDEX == int(victim):
    owner = train.Checkpoints if phase == "save" else train
    original, calls = getattr(owner, phase), []
    def dies(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:  # the second step's
            os.kill(os.getpid(), int(number))
        return original(*arguments, **options)
    setattr(owner, phase, dies)
sys.argv = ["train", "--config", os.environ["SPEC"], *OPTIONS]
run_command(train.main)
"""


def config_of(folder: Path, **sections: Any) -> tuple[str, RunDirectory]:
    config = small_config(folder, **{"train": STEPS} | sections)
    folder.mkdir(exist_ok=True)
    return write_config(folder / "config.py", config), RunDirectory.of(config)


def begin(spec: str, num_processes: int, devices_each: int, **variables: str):
    return start(
        CODE, num_processes=num_processes, devices_each=devices_each, SPEC=spec, **variables
    )


def together(spec: str, num_processes: int, devices_each: int, **variables: str) -> list[Ended]:
    return wait(begin(spec, num_processes, devices_each, **variables), SECONDS)


def alone(spec: str, num_devices: int = 8) -> None:
    program = f"from stepalign_jax import train\ntrain.main(['--config', {spec!r}])"
    output_on_devices(program, num_devices=num_devices, timeout_secs=SECONDS)


# What gloo writes of itself is not ours to hold back. Two threads may write at once, so that
# pieces of one line stand inside another.
GLOOS = re.compile(
    r"\[Gloo\]|Rank|is connected to|(Expected number of connected )?peer ranks( is :|\.)|[\d\s]"
)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> RunDirectory:
    """The run of one process on one device."""
    config = small_config(tmp_path_factory.mktemp("one"), train=STEPS)
    train.train(config)
    return RunDirectory.of(config)


def require_same(found: RunDirectory, expected: RunDirectory) -> None:
    pairs = zip(read_jsonl(expected.metrics_file), read_jsonl(found.metrics_file), strict=True)
    for theirs, ours in pairs:
        for name in ("loss", "gradient_norm", "advantage_abs_mean", "solver_logprob_mean"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3), name
        for name in ("step", "solver_tokens", "tokens_in_loss", "reward", "critic_tokens"):
            assert ours[name] == theirs[name], name
    for step in range(STEPS["num_steps"]):
        ours, theirs = (read_jsonl(run.rollouts_file(step)) for run in (found, expected))
        assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    for side in ("before", "after"):
        assert read_json(found.summary_file)[side] == read_json(expected.summary_file)[side]


@pytest.mark.long
@pytest.mark.timeout(2 * SECONDS)
def test_two_processes_train_like_one_and_one_of_them_writes(one, tmp_path):
    spec, run = config_of(tmp_path / "two", parallel=FOUR)
    found = together(spec, 2, 2)
    assert [ended.status for ended in found] == [0, 0], found
    require_same(run, one)
    # The same files as of one process; TensorBoard's and Orbax's have names of their own.
    others = ("tensorboard/", "checkpoints/", "report/")  # the report is written by `main`
    own = lambda run: [name for name in files(run.path) if not name.startswith(others)]  # noqa: E731
    assert own(run) == own(one)
    assert finished_steps(run.checkpoints) == finished_steps(one.checkpoints)
    assert "Avg@2" in found[0].out
    assert GLOOS.sub("", found[1].out) == ""
    again = together(spec, 2, 2)
    assert [ended.status for ended in again] == [0, 0]
    assert "is finished: nothing was run" in again[0].err


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize(("num_processes", "devices_each"), [(2, 4), (4, 2)])
def test_a_killed_run_goes_on_with_any_number_of_processes(
    num_processes, devices_each, one, tmp_path
):
    spec, run = config_of(tmp_path / "many", parallel=EIGHT)
    found = together(
        spec, num_processes, devices_each, DIES=f"update,{num_processes - 1},{signal.SIGKILL}"
    )
    assert [ended.status for ended in found[:-1]] == [EXIT_CAN_GO_ON] * (num_processes - 1)
    assert finished_steps(run.checkpoints) == [1]
    if num_processes == 2:
        found = together(spec, devices_each, num_processes)
        assert [ended.status for ended in found] == [0] * devices_each, found
    else:
        alone(spec)
    require_same(run, one)


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize(
    ("phase", "victim", "number"),
    [
        ("sample", 1, signal.SIGKILL),
        ("sample", 0, signal.SIGSTOP),
        ("grade", 0, signal.SIGKILL),
        ("critique", 1, signal.SIGSTOP),
        ("critique", 0, signal.SIGKILL),
        ("pack", 1, signal.SIGKILL),
        ("score", 0, signal.SIGSTOP),
        ("update", 1, signal.SIGSTOP),
        ("save", 0, signal.SIGKILL),
        ("save", 1, signal.SIGSTOP),
        ("evaluate", 1, signal.SIGKILL),
    ],
    ids=str,
)
def test_in_each_phase_one_that_dies_or_stops_ends_the_other_and_the_run_goes_on(
    phase, victim, number, one, tmp_path
):
    spec, run = config_of(
        tmp_path / "two", parallel=FOUR, hosts={"heartbeat_timeout_secs": 15.0}
    )
    both = begin(spec, 2, 2, DIES=f"{phase},{victim},{number}")
    [other] = wait([both[1 - victim]], SECONDS)
    both[victim].kill()
    wait([both[victim]], SECONDS)
    assert other.status == EXIT_CAN_GO_ON
    assert other.err.splitlines()[-1].startswith(f"stopped: process {victim} of 2 "), other.err
    assert [ended.status for ended in together(spec, 2, 2)] == [0, 0]
    require_same(run, one)


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_stops_both_at_one_step_with_a_checkpoint(signalled, one, tmp_path):
    spec, run = config_of(
        tmp_path / "two", parallel=FOUR, train=STEPS | {"checkpoint_every_steps": 3}
    )
    both = begin(spec, 2, 2)
    _wait_for(run.rollouts_file(0), both)
    os.kill(both[signalled].pid, signal.SIGTERM)
    found = wait(both, SECONDS)
    assert [ended.status for ended in found] == [EXIT_CAN_GO_ON] * 2, found
    [step] = finished_steps(run.checkpoints)
    assert step < STEPS["num_steps"]
    assert f"{step} of 3 steps are saved; the same command goes on" in found[0].err
    assert [ended.status for ended in together(spec, 2, 2)] == [0, 0]
    require_same(run, one)


def _wait_for(path: Path, processes: list[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < until and all(p.poll() is None for p in processes)
        time.sleep(0.2)


def test_checkpoints_lie_where_the_key_says(tmp_path):
    elsewhere = {"checkpoints_dir": str(tmp_path / "seen by all")}
    config = small_config(tmp_path / "runs", hosts=elsewhere)
    run = open_run(config)
    place = tmp_path / "seen by all" / config.name / "checkpoints"
    assert Path(run.checkpoints) == place == Path(RunDirectory(run.path).checkpoints)
    with closing(Checkpoints(run.checkpoints, num_to_keep=1)) as saver:
        saver.save(1, {"a": jnp.ones(3)}, data_state=7)
        saver.save(2, {"a": jnp.ones(3)}, data_state=8)
    assert finished_steps(run.checkpoints) == [2] and not (run.path / "checkpoints/2").exists()
    found = restore_latest(run.checkpoints, {"a": jnp.zeros(3)})
    assert found is not None and found.data_state == 8 and found.state["a"].sum() == 3
    other = small_config(tmp_path / "runs", hosts={"checkpoints_dir": str(tmp_path / "b")})
    with pytest.raises(UserError, match="seen by all"):
        open_run(other)
