# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which runs a comparison makes, how time is shared out, and what is collected."""

import dataclasses
import json
import os
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
from stepalign_jax.report.plots import plot_comparison
from stepalign_jax.report.tables import comparison_markdown, comparison_table
from stepalign_jax.runs import compare
from stepalign_jax.runs.compare import Job, make_job, of_conditions, of_configs
from stepalign_jax.runs.directory import open_run


def job(tmp_path: Path, condition: str, seed: int = 0, spec: str = TINY) -> Job:
    (contender,) = of_conditions(spec, [condition])
    return make_job(contender, [f"--runs_dir={tmp_path}", "--train.num_steps=40"], seed, ())


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
    monkeypatch.setattr(compare, "progress", lambda total, **_: nullcontext(bar))
    monkeypatch.setattr(compare, "POLL_SECS", 0.01)

    def run_one(made: Job, *_: object) -> None:
        deadline = time.monotonic() + 30
        for done in range(1, 41):
            write_jsonl(made.run.metrics_file, [{"step": step} for step in range(done)])
            target = 40 * made.seed + done
            while done in (10, 40) and bar.n != target and time.monotonic() < deadline:
                time.sleep(0.002)

    monkeypatch.setattr(compare, "_run_one", run_one)
    compare.run_jobs(jobs, 1, "testing")
    assert {(10, "0 of 2 runs finished"), (50, "1 of 2 runs finished")} <= set(seen)
    assert seen[-1] == (80, "2 of 2 runs finished")


def test_seconds_per_step_is_a_median_without_validation(tmp_path):
    made = job(tmp_path, "stepalign")
    finish(made.run, step_seconds=[30.0, 1.0, 2.0, 1.5, 1.0], validation={3: 0.5, 4: 0.5})
    assert compare.seconds_per_step(made) == 1.5


def test_equal_time_gives_each_condition_the_slowest_ones_time(tmp_path, monkeypatch):
    jobs = [job(tmp_path, c, s) for s in (0, 1, 2) for c in ("grpo", "refsol", "stepalign")]
    speeds = {"grpo": [1.0, 9.0, 1.0], "refsol": [1.6, 1.5, 1.4], "stepalign": [2.0, 2.0, 1.0]}
    monkeypatch.setattr(compare, "seconds_per_step", lambda j: speeds[j.label][j.seed])
    overrides = [f"--runs_dir={tmp_path}", "--train.num_steps=40"]
    timed = compare.jobs_of_equal_time(jobs, overrides)
    assert [(j.label, j.seed) for j in timed] == [(j.label, j.seed) for j in jobs]
    # Medians over seeds are 1, 1.5 and 2 s: 40 steps of the slowest take 80 s.
    for done, equal in zip(jobs, timed, strict=True):
        steps = {"grpo": 80, "refsol": 53, "stepalign": 40}[done.label]
        assert equal.config.train.num_steps == steps
        if done.label == "stepalign":
            assert equal is done  # the same run serves both variants
        else:
            name = f"tiny-{done.label}-{steps}steps-seed{done.seed}"
            assert equal.config.name == name
            same = dataclasses.replace(equal.config.train, num_steps=40)
            assert same == done.config.train


def test_what_is_collected(tmp_path):
    jobs = [job(tmp_path, c, s) for s in (0, 1) for c in ("grpo", "stepalign")]
    for made in jobs:
        exact = 0.75 if made.label == "stepalign" else None
        finish(
            made.run,
            step_seconds=[1.0, 2.0, 1.0],
            validation={1: 0.6, 2: 0.7},
            critic_exact=exact,
        )
    found = compare.collect(jobs)
    assert list(found) == ["grpo", "stepalign"]
    assert found["stepalign"][1] == {
        "seed": 1,
        "name": "tiny-stepalign-seed1",
        "num_steps": 40,
        "summary": read_json(jobs[3].run.summary_file),
        "curve": [[1, 0.6], [2, 0.7]],
        "critic_exactness": [[1, 0.75], [2, 0.75], [3, 0.75]],
        "solver_tokens": 640,
        "train_seconds": 4.0,
    }
    assert found["grpo"][0]["critic_exactness"] == [[1, None], [2, None], [3, None]]
    comparison = {"k": 12, "variants": {"equal_tokens": found, "equal_wall_clock": found}}
    table = comparison_markdown(comparison)
    assert table.count("| stepalign | 2 | 40.0 | 70.0 |") == 2
    assert plot_comparison(comparison, tmp_path / "plot.png").stat().st_size > 10_000


def test_each_variant_has_its_own_runs(tmp_path, monkeypatch):
    def run_jobs(jobs: list[Job], *_: Any) -> None:
        for made in jobs:
            finish(made.run, step_seconds=[2.0 if made.label == "stepalign" else 1.0])

    monkeypatch.setattr(compare, "run_jobs", run_jobs)
    overrides = [f"--runs_dir={tmp_path}", "--train.num_steps=40", "--evaluation.num_samples=7"]
    pair = of_conditions(TINY, ["grpo", "stepalign"])
    comparison, directory = compare.compare(
        pair, overrides, 2, 1, title="tiny", equal_time=True
    )
    steps = {
        variant: {name: [seed["num_steps"] for seed in seeds] for name, seeds in found.items()}
        for variant, found in comparison["variants"].items()
    }
    assert steps == {
        "equal_tokens": {"grpo": [40, 40], "stepalign": [40, 40]},
        "equal_wall_clock": {"grpo": [80, 80], "stepalign": [40, 40]},
    }
    assert comparison["k"] == 7
    assert directory == tmp_path / "comparison-tiny-grpo-stepalign"
    assert read_json(directory / "comparison.json") == comparison
    assert comparison["configs"] == {c.label: c.spec for c in pair}
    only, own = compare.compare(pair, overrides, 1, 1, title="", equal_time=False)
    assert list(only["variants"]) == ["equal_tokens"]
    assert own == tmp_path / "comparison-grpo-stepalign"


def test_finished_runs_are_kept_and_workers_share_the_cores(tmp_path, monkeypatch):
    jobs = [job(tmp_path, "grpo", seed) for seed in range(5)]
    open_run(jobs[1].config)
    finish(jobs[1].run, step_seconds=[1.0], validation={})
    monkeypatch.setattr(compare.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    together, lock, both = threading.Barrier(2, timeout=30), threading.Lock(), []

    def run_one(made: Job, cores: list[int], _children: object) -> None:
        with lock:
            both.append((made.seed, cores))
        together.wait()  # passes only if two runs are under way

    monkeypatch.setattr(compare, "_run_one", run_one)
    compare.run_jobs(jobs, 2, "testing")
    assert sorted(seed for seed, _ in both) == [0, 2, 3, 4]
    assert {tuple(cores) for _, cores in both} == {(0, 2), (1, 3)}


def test_what_a_run_came_to_is_said_when_it_ends(tmp_path, capsys):
    made, children = job(tmp_path, "grpo", 1), SimpleNamespace(run=lambda *_: 0)
    finish(made.run, step_seconds=[1.0], validation={})
    compare._run_one(made, [0], children)  # pyright: ignore[reportArgumentType]
    name = made.run.path.name
    assert capsys.readouterr().out == f"{name}: Avg@12 40.0 % before, 70.0 % after\n"


def test_a_failed_run_ends_the_comparison_with_its_log(tmp_path, monkeypatch):
    asked, start = [], subprocess.Popen

    def fail(command: list[str], **options: Any) -> Any:
        asked.append(command)
        program = "print('error: no such thing'); raise SystemExit(2)"
        return start([sys.executable, "-c", program], **options)

    monkeypatch.setattr(compare.subprocess, "Popen", fail)
    jobs = [job(tmp_path, "grpo", seed) for seed in range(3)]
    with pytest.raises(UserError) as refusal:
        compare.run_jobs(jobs, 1, "testing")
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

    monkeypatch.setattr(compare.subprocess, "Popen", run)
    jobs = [job(tmp_path, "grpo", seed) for seed in range(3)]
    log = jobs[0].run.path / "log.txt"

    def interrupt() -> None:
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Stopped), stop_signals():
        compare.run_jobs(jobs, 1, "testing")
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
    # Again, all of it is there already; only what depends on speed could differ.
    main(argv)
    assert json.loads((directory / "comparison.json").read_text()) == comparison
