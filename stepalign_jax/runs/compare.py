# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs configs, most often the conditions of one, against each other over seeds.

Every run is a `train` command of its own, in a process pinned to its share of the cores;
finished runs are kept, so the same command again goes on. Two variants are compared:

    equal_tokens      every condition makes train.num_steps steps of as many rollouts
    equal_wall_clock  each condition gets as many steps as fit in the time that the slowest
                      one took above (median time of a step, evaluation not counted)

What is compared are configs, each under a label: the variants of one config that have the names
of conditions (`of_conditions`), or several configs (`of_configs`).
"""

import dataclasses
import os
import queue
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl, write_json
from stepalign_jax.base.progress import advance, progress, say
from stepalign_jax.config.load import load_config, split_spec
from stepalign_jax.config.schema import Config
from stepalign_jax.runs.directory import RunDirectory, is_finished, open_run

POLL_SECS = 1.0  # how often the steps of the runs that are under way are counted


class Contender(NamedTuple):
    """One of the configs that are compared.

    Attributes:
      label: its name in tables: a condition, or the config's own.
      spec: as for `--config`.
    """

    label: str
    spec: str


def of_conditions(spec: str, conditions: Sequence[str]) -> list[Contender]:
    """Returns one config's variants, called like the conditions; a variant of it is a regime.

    `tiny` gives `tiny:grpo`, `tiny:hard` gives `tiny:hard-grpo`.

    Raises:
      UserError: the config does not know a condition.
    """
    path, regime = split_spec(spec)
    found = []
    for condition in conditions:
        variant = f"{path}:{regime}-{condition}" if regime else f"{path}:{condition}"
        try:
            load_config(variant)
        except UserError as error:
            raise UserError(
                f"{str(error).rstrip('.')}; conditions that are configs of their own are "
                "compared by --configs=A,B,... instead of --config and --conditions."
            ) from error
        found.append(Contender(condition, variant))
    return found


def of_configs(specs: Sequence[str]) -> list[Contender]:
    """Returns configs, each labelled with its name.

    Raises:
      UserError: a config cannot be loaded, or two have one name.
    """
    found = [Contender(load_config(spec).name, spec) for spec in specs]
    labels = [contender.label for contender in found]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(
                f"--configs has two configs with name={label!r}: give each a name of its own, "
                "which its runs and its row in the table have."
            )
    return found


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of `train`: its arguments, and the config they resolve to."""

    contender: Contender
    seed: int
    arguments: tuple[str, ...]
    config: Config

    @property
    def label(self) -> str:
        """What it is compared as."""
        return self.contender.label

    @property
    def run(self) -> RunDirectory:
        """Where the run lies."""
        return RunDirectory.of(self.config)

    def steps_done(self) -> int:
        """How many optimizer steps are on disk."""
        try:
            return self.run.metrics_file.read_bytes().count(b"\n")
        except OSError:
            return 0


def make_job(
    contender: Contender, overrides: Sequence[str], seed: int, extra: Sequence[str]
) -> Job:
    """Returns the run of one config and seed.

    Raises:
      UserError: if an override is wrong.
    """
    spec = contender.spec
    name = load_config(spec, overrides).name
    suffix = "".join("-" + e.split("=")[1] + "steps" for e in extra)
    extra = (*extra, f"--seed={seed}", f"--name={name}{suffix}-seed{seed}")
    arguments = ("--config", spec, *overrides, *extra)
    return Job(contender, seed, arguments, load_config(spec, [*overrides, *extra]))


def run_jobs(jobs: Sequence[Job], num_workers: int, description: str) -> None:
    """Runs the jobs that are not finished yet, `num_workers` at a time.

    Raises:
      UserError: if a run fails; the others that had started are waited for. Or, before any
        of them starts, if a directory holds a run of another config or cannot be written.
      Stopped: by a signal; the runs that had started are asked to stop, and save a checkpoint.
    """
    for job in jobs:
        open_run(job.config)
    cores = available_cores()
    children = _Children()
    shares: queue.Queue[list[int]] = queue.Queue()
    for worker in range(num_workers):
        shares.put(cores[worker::num_workers] or cores)

    def run(job: Job) -> None:
        share = shares.get()
        try:
            _run_one(job, share, children)
        finally:
            shares.put(share)

    waiting = [job for job in jobs if not is_finished(job.config)]
    num_steps = sum(job.config.train.num_steps for job in waiting)
    with (
        progress(total=num_steps, description=f"{description}, steps") as bar,
        ThreadPoolExecutor(num_workers) as pool,
    ):
        futures = [pool.submit(run, job) for job in waiting]
        try:
            for future in futures:
                while not future.done():
                    _show_steps(bar, waiting, futures)
                    wait([future], timeout=POLL_SECS)
                future.result()
            _show_steps(bar, waiting, futures)
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
        except KeyboardInterrupt:
            children.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _result(job: Job) -> str:
    """What a run came to, in a line."""
    summary = read_json(job.run.summary_file)
    before, after = (100 * summary[side]["avg_at_k"]["mean"] for side in ("before", "after"))
    k = job.config.evaluation.num_samples
    return f"{job.run.path.name}: Avg@{k} {before:.1f} % before, {after:.1f} % after"


def _show_steps(bar: Any, jobs: Sequence[Job], futures: Sequence[Future[None]]) -> None:
    advance(bar)(sum(job.steps_done() for job in jobs))
    finished = sum(future.done() for future in futures)
    bar.set_postfix_str(f"{finished} of {len(jobs)} runs finished")


class _Children:
    """The processes that are under way, so that all of them can be stopped at once."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopping = threading.Lock(), False

    def run(self, command: Sequence[str], log: Path, cores: list[int]) -> int:
        """Runs a command to its end; returns its status, or -1 if all are to stop."""
        with log.open("w") as file, self._lock:
            if self._stopping:
                return -1
            # In a group of its own: a Ctrl-C reaches it once, from `stop`, and not twice.
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            self._running.add(process)
        _pin(process.pid, cores)  # long before it starts the threads that inherit this
        with process:
            status = process.wait()
        self._running.discard(process)
        return status

    def stop(self) -> None:
        """Asks the running ones to stop, and lets no other start."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                process.terminate()


def _run_one(job: Job, cores: list[int], children: _Children) -> None:
    log = job.run.path / "log.txt"
    command = [sys.executable, "-m", "stepalign_jax.train", *job.arguments]
    if status := children.run(command, log, cores):
        raise UserError(
            f"{' '.join(['train', *job.arguments])} ended with status {status}; its output is "
            f"in {log}, and this command goes on from there when it is given again."
        )
    say(_result(job))


def available_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _pin(process_id: int, cores: list[int]) -> None:
    if hasattr(os, "sched_setaffinity"):  # Linux; elsewhere the runs share all cores
        os.sched_setaffinity(process_id, cores)


def seconds_per_step(job: Job) -> float:
    """Returns the median time of an optimizer step, evaluation not counted."""
    rows = read_jsonl(job.run.timings_file)
    return statistics.median(row["total"] - row.get("validate", 0.0) for row in rows)


def jobs_of_equal_time(jobs: Sequence[Job], overrides: Sequence[str]) -> list[Job]:
    """Returns the jobs again, each with the steps that fit in the slowest one's time."""
    speed: dict[str, float] = {}
    for label in dict.fromkeys(job.label for job in jobs):
        own = [seconds_per_step(job) for job in jobs if job.label == label]
        speed[label] = statistics.median(own)
    slowest = max(speed.values())
    equal = []
    for job in jobs:
        num_steps = round(job.config.train.num_steps * slowest / speed[job.label])
        extra = (f"--train.num_steps={num_steps}",)
        same = num_steps == job.config.train.num_steps
        equal.append(job if same else make_job(job.contender, overrides, job.seed, extra))
    return equal


def collect(jobs: Sequence[Job]) -> dict[str, list[dict[str, Any]]]:
    """Returns, by label, what each seed's run came to."""
    found: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        rows = read_jsonl(job.run.metrics_file)
        summary = read_json(job.run.summary_file)
        found.setdefault(job.label, []).append(
            {
                "seed": job.seed,
                "name": job.config.name,
                "num_steps": job.config.train.num_steps,
                "summary": summary,
                "curve": job.run.validation_curve(),
                "critic_exactness": [
                    [row["step"] + 1, row["critic_exact_on_wrong"]] for row in rows
                ],
                "solver_tokens": summary["solver_tokens"],
                "train_seconds": summary["step_seconds"],
            }
        )
    return found


def compare(
    contenders: Sequence[Contender],
    overrides: Sequence[str],
    seeds: int,
    num_workers: int,
    *,
    title: str,
    equal_time: bool,
) -> tuple[dict[str, Any], Path]:
    """Runs the comparison and returns it with the directory of its files.

    Args:
      contenders: what is compared.
      overrides: of all configs.
      seeds: runs of each, with the seeds 0 to seeds - 1.
      num_workers: runs at a time.
      title: what the comparison is called, beside the labels.
      equal_time: adds the second variant.
    """
    jobs = [
        make_job(contender, overrides, seed, ())
        for seed in range(seeds)
        for contender in contenders
    ]
    run_jobs(jobs, num_workers, "equal tokens")
    variants = {"equal_tokens": collect(jobs)}
    if equal_time:
        timed = jobs_of_equal_time(jobs, overrides)
        run_jobs(timed, num_workers, "equal wall clock")
        variants["equal_wall_clock"] = collect(timed)
    comparison = {
        "k": jobs[0].config.evaluation.num_samples,
        "configs": {contender.label: contender.spec for contender in contenders},
        "overrides": list(overrides),
        "variants": variants,
    }
    name = "-".join(filter(None, ["comparison", title, *variants["equal_tokens"]]))
    directory = Path(jobs[0].config.runs_dir) / name
    write_json(directory / "comparison.json", comparison)
    return comparison, directory
