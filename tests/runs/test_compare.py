# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which runs a comparison makes, and how they share the machine. Cells: `test_cells.py`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.run_files import finish
from support.runs import TINY, small_config, write_config

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, write_jsonl
from stepalign_jax.base.stopping import Stopped, stop_signals
from stepalign_jax.compare import main
from stepalign_jax.report.tables import comparison_markdown, comparison_table
from stepalign_jax.runs import jobs as running
from stepalign_jax.runs.directory import open_run
from stepalign_jax.runs.jobs import Job, make_job, of_conditions, of_configs


def job(tmp_path: Path, condition: str, seed: int = 0, spec: str = TINY) -> Job:
    (contender,) = of_conditions(spec, [condition])
    return make_job(contender, [f"--runs_dir={tmp_path}", "--train.num_steps=40"], seed, ())


def nothing(_: Job) -> None:
    """What is done with a run that is finished, where nobody asks."""


@pytest.mark.parametrize(
    ("spec", "extra", "name", "variant"),
    [
        (TINY, (), "tiny-grpo-seed2", "grpo"),
        (f"{TINY}:hard", (), "tiny-hard-grpo-seed2", "hard-grpo"),
        (TINY, ("--train.num_steps=45",), "tiny-grpo-45steps-seed2", "grpo"),
    ],
)
def test_a_job_is_a_train_command(spec, extra, name, variant):
    (contender,) = of_conditions(spec, ["grpo"])
    made = make_job(contender, ["--train.num_steps=30"], 2, extra)
    assert made.config.name == name and made.run.path == Path("runs") / name
    assert (made.config.condition, made.config.seed) == ("grpo", 2)
    assert made.config.train.num_steps == (45 if extra else 30)
    assert made.arguments == (
        *("--config", f"{TINY}:{variant}", "--train.num_steps=30"),
        *(*extra, "--seed=2", f"--name={name}"),
    )


def test_a_condition_that_the_config_does_not_know_is_refused(tmp_path):
    fixed = tmp_path / "fixed.py"
    fixed.write_text(
        "from stepalign_jax.base.errors import UserError\n"
        "def get_config(variant):\n    raise UserError(f'no variant {variant}')\n"
    )
    with pytest.raises(UserError, match=r"no variant refsol; .* compared by --configs=A,B"):
        of_conditions(str(fixed), ["refsol"])


def test_the_papers_conditions_are_configs_of_their_own(tmp_path):
    contenders = of_configs(["stepalign", "refsol", "grpo", f"{TINY}:grpo"])
    assert [contender.label for contender in contenders] == [
        *("stepalign", "refsol", "grpo", "tiny-grpo")
    ]
    jobs = [make_job(c, [f"--runs_dir={tmp_path}"], 1, ()) for c in contenders]
    assert [job.run.path.name for job in jobs] == [f"{c.label}-seed1" for c in contenders]
    assert jobs[2].arguments[:2] == ("--config", "grpo") and jobs[2].config.seed == 1
    with pytest.raises(UserError, match="two configs with name='tiny-grpo'"):
        of_configs(["tiny:grpo", f"{TINY}:grpo"])


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--config", "tiny"),
        ("--conditions", "grpo"),
        ("--configs", "grpo", "--config", "tiny"),
        ("--configs", "grpo", "--conditions", "grpo"),
    ],
)
def test_what_to_compare_is_named_in_one_way(argv):
    with pytest.raises(UserError, match="--conditions"):
        main([*argv, "--seeds", "1"])


def test_the_bar_counts_the_steps_of_the_runs_that_are_under_way(tmp_path, monkeypatch):
    jobs, seen = [job(tmp_path, "grpo", seed) for seed in range(2)], []
    bar: Any = SimpleNamespace(n=0, set_postfix_str=lambda words: seen.append((bar.n, words)))
    bar.update = lambda more: setattr(bar, "n", bar.n + more)
    monkeypatch.setattr(running, "progress", lambda total, **_: nullcontext(bar))
    monkeypatch.setattr(running, "POLL_SECS", 0.01)

    def run_one(made: Job, *_: object) -> None:
        deadline = time.monotonic() + 30
        for done in range(1, 41):
            write_jsonl(made.run.metrics_file, [{"step": step} for step in range(done)])
            target = 40 * made.seed + done
            while done in (10, 40) and bar.n != target and time.monotonic() < deadline:
                time.sleep(0.002)

    monkeypatch.setattr(running, "_run_one", run_one)
    running.run_jobs(jobs, 1, "testing", nothing)
    assert {(10, "0 of 2 runs finished"), (50, "1 of 2 runs finished")} <= set(seen)
    assert seen[-1] == (80, "2 of 2 runs finished")


def test_finished_runs_are_kept_and_workers_share_the_cores(tmp_path, monkeypatch):
    jobs = [job(tmp_path, "grpo", seed) for seed in range(5)]
    open_run(jobs[1].config)
    finish(jobs[1].run, step_seconds=[1.0], validation={})
    monkeypatch.setattr(running.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    together, lock, both, done = threading.Barrier(2, timeout=30), threading.Lock(), [], []

    def run_one(made: Job, cores: list[int], _children: object) -> None:
        with lock:
            both.append((made.seed, cores))
        together.wait()  # passes only if two runs are under way

    monkeypatch.setattr(running, "_run_one", run_one)
    running.run_jobs(jobs, 2, "testing", done.append)
    assert sorted(seed for seed, _ in both) == [0, 2, 3, 4]
    assert {tuple(cores) for _, cores in both} == {(0, 2), (1, 3)}
    assert sorted(made.seed for made in done) == [0, 2, 3, 4]


def test_a_failed_run_ends_the_comparison_with_its_log(tmp_path, monkeypatch):
    asked, start = [], subprocess.Popen

    def fail(command: list[str], **options: Any) -> Any:
        asked.append(command)
        program = "print('error: no such thing'); raise SystemExit(2)"
        return start([sys.executable, "-c", program], **options)

    monkeypatch.setattr(running.subprocess, "Popen", fail)
    jobs = [job(tmp_path, "grpo", seed) for seed in range(3)]
    with pytest.raises(UserError) as refusal:
        running.run_jobs(jobs, 1, "testing", nothing)
    log = tmp_path / "tiny-grpo-seed0" / "log.txt"
    assert f"ended with status 2; its output is in {log}" in str(refusal.value)
    assert log.read_text() == "error: no such thing\n"
    assert len(asked) < 3 and asked[0][1:3] == ["-m", "stepalign_jax.train"]
    assert tuple(asked[0][3:]) == jobs[0].arguments


def test_a_stop_signal_stops_the_runs_that_started_and_starts_no_other(tmp_path, monkeypatch):
    """The child stands for a run that saves a checkpoint when it is asked to stop."""
    start, started = subprocess.Popen, []
    program = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    pathlib.Path(sys.argv[1]).write_text('saved')\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )

    def run(command: list[str], **options: Any) -> Any:
        started.append(command)
        return start([sys.executable, "-c", program, str(tmp_path / "saved")], **options)

    monkeypatch.setattr(running.subprocess, "Popen", run)
    jobs = [job(tmp_path, "grpo", seed) for seed in range(3)]
    log = jobs[0].run.path / "log.txt"

    def interrupt() -> None:
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Stopped), stop_signals():
        running.run_jobs(jobs, 1, "testing", nothing)
    assert len(started) == 1 and (tmp_path / "saved").read_text() == "saved"


@pytest.mark.slow
def test_a_comparison_of_two_conditions(tmp_path, capsys):
    """The real thing: four or fewer processes, each a whole run."""
    config = small_config(tmp_path / "runs", train={"validate_every_steps": 2})
    base = write_config(tmp_path / "base.py", config)
    spec = tmp_path / "small.py"
    spec.write_text(
        "import dataclasses\nfrom base import get_config as base\n\n\n"
        "def get_config(variant=''):\n"
        "    name = variant or 'stepalign'\n"
        "    return dataclasses.replace(base(), name=name, condition=name)\n"
    )
    assert Path(base).exists()
    argv = ["--config", str(spec), "--conditions", "no_context,refsol", "--seeds", "1"]
    main([*argv, "--workers", "2"])
    directory = tmp_path / "runs" / "comparison-small-no_context-refsol"
    comparison = read_json(directory / "comparison.json")
    assert comparison["variants"].keys() == {"equal_tokens", "equal_wall_clock"}
    for variant in comparison["variants"].values():
        assert list(variant) == ["no_context", "refsol"]
        assert all(len(seeds) == 1 for seeds in variant.values())
    tokens = comparison["variants"]["equal_tokens"]
    assert [seeds[0]["num_steps"] for seeds in tokens.values()] == [4, 4]
    assert [len(seeds[0]["curve"]) for seeds in tokens.values()] == [3, 3]
    printed = capsys.readouterr().out
    assert comparison_table(comparison) in printed
    assert max(map(len, comparison_table(comparison).splitlines())) <= 80
    assert (directory / "comparison.md").read_text() == comparison_markdown(comparison)
    assert (directory / "comparison.png").stat().st_size > 10_000
    # Again, from the cells alone.
    for run in (tmp_path / "runs").glob("*-seed0"):
        shutil.rmtree(run)
    main(argv)
    assert json.loads((directory / "comparison.json").read_text()) == comparison
