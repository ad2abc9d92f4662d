# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""`evaluate` and `probe` on several processes: the single process's result, one writer."""

import signal
from pathlib import Path
from typing import Any

import pytest
from support.processes import Ended, files, start, wait
from support.runs import small_config, write_config

from stepalign_jax import evaluate, probe, train
from stepalign_jax.base.files import read_json
from stepalign_jax.base.stopping import EXIT_CAN_GO_ON
from stepalign_jax.config.cli import EXIT_USER_ERROR
from stepalign_jax.runs.directory import RunDirectory

SECONDS = 400
MESH = ["--parallel.data=2", "--parallel.fsdp=2"]
# With DIES the second process kills itself when the trained weights' turn comes.
CODE = """
import os, signal, sys
from stepalign_jax import evaluate, probe
from stepalign_jax.config.cli import run_command

if os.environ.get("DIES") and INDEX == 1:
    original, calls = evaluate.evaluate, []
    def dies(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    evaluate.evaluate = dies
if INDEX == 1:
    os.chdir(os.environ["ELSEWHERE"])
command, *arguments = os.environ["COMMAND"].split()
sys.argv = [command, *arguments, *OPTIONS]
run_command(getattr(sys.modules["stepalign_jax." + command], "main"))
"""


def together(*words: str, elsewhere: Path, dies: str = "") -> list[Ended]:
    both = start(
        CODE, num_processes=2, devices_each=2, COMMAND=" ".join([*words, *MESH]),
        ELSEWHERE=str(elsewhere), DIES=dies,
    )  # fmt: skip
    return wait(both, SECONDS)


def without_place(content: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation found, without how it lay on devices."""
    return {name: value for name, value in content.items() if name != "inputs"}


@pytest.mark.long
@pytest.mark.timeout(4 * SECONDS)
def test_two_processes_evaluate_like_one_and_one_of_them_writes(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    steps = {"num_steps": 1, "validate_every_steps": 0, "checkpoint_every_steps": 1}
    # Asks all candidates first, which a second command finds done.
    hard = {"base_avg_below": 0.9, "base_avg_samples": 2, "num_validation": 6}
    config = small_config(
        tmp_path / "runs", train=steps, problems=hard, optimizer={"warmup_steps": 0}
    )
    train.train(config)
    run = RunDirectory.of(config)
    whole = ["evaluate", "--run", str(run.path), "--split", "validation", "--to"]

    found = together(*whole, str(tmp_path / "two.json"), elsewhere=elsewhere, dies="yes")
    assert [ended.status for ended in found] == [EXIT_CAN_GO_ON, -signal.SIGKILL], found
    kept = (tmp_path / "two.json.partial").read_text().splitlines()
    assert kept and len(set(kept)) == len(kept)  # of two writers each row would be there twice
    found = together(*whole, str(tmp_path / "two.json"), elsewhere=elsewhere)
    assert [ended.status for ended in found] == [0, 0], found
    assert "the base was evaluated before" in found[0].err
    assert "trained" in found[0].out and "trained" not in found[1].out
    assert not (tmp_path / "two.json.partial").exists() and files(elsewhere) == []
    written = files(run.path)

    evaluate.main([*whole[1:], str(tmp_path / "one.json")])
    one, two = (read_json(tmp_path / f"{name}.json")["validation"] for name in ("one", "two"))
    assert without_place(two) == without_place(one)
    assert set(two["rows"]) == {"base", "trained"}
    assert files(run.path) == written

    # A run that the second host does not see.
    found = together("evaluate", "--run", "runs/" + config.name, elsewhere=elsewhere)
    assert found[0].status == EXIT_USER_ERROR, found
    assert "not every host sees" in found[0].err

    spec = write_config(tmp_path / "config.py", config)
    probed = ["probe", "--config", spec, "--split", "validation", "--to"]
    found = together(*probed, str(tmp_path / "probe2.json"), elsewhere=elsewhere)
    assert [ended.status for ended in found] == [0, 0], found
    probe.main([*probed[1:], str(tmp_path / "probe1.json")])
    assert read_json(tmp_path / "probe2.json") == read_json(tmp_path / "probe1.json")
    assert files(elsewhere) == []
