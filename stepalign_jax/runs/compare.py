# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares configs over seeds, cell by cell (docs/compare.md).

A finished run (`jobs.py`) leaves a cell (`cells.py`), and cells are all that the tables are
made from (`comparison.py`): the same command again makes what is missing, here or on another
machine. Two variants are compared:

    equal_tokens      every condition makes train.num_steps steps of as many rollouts
    equal_wall_clock  each condition gets as many steps as fit in the time that the slowest
                      one took above (median time of a step, evaluation not counted)
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object, write_json
from stepalign_jax.base.progress import say
from stepalign_jax.runs.cells import (
    EQUAL_TOKENS,
    EQUAL_WALL_CLOCK,
    VARIANTS,
    Cell,
    CellFiles,
    CellName,
    differing_digits,
    make_cell,
)
from stepalign_jax.runs.comparison import notes_on, variant_of
from stepalign_jax.runs.directory import RunDirectory, is_finished
from stepalign_jax.runs.jobs import Contender, Job, make_job, run_jobs
from stepalign_jax.runs.lock import lock_run


def jobs_of_equal_time(
    jobs: Sequence[Job], cells: Sequence[Cell], overrides: Sequence[str], files: CellFiles
) -> list[Job]:
    """Returns the jobs again, each with the steps that fit in the slowest one's time.

    A cell that is there has the number of steps that it was made with, and so have those that
    are still to be made of its condition.

    Args:
      jobs: of equal tokens, all of them.
      cells: theirs.
      overrides: of all configs.
      files: where cells of equal time may lie.
    """
    speed: dict[str, float] = {}
    for label in dict.fromkeys(job.label for job in jobs):
        own = [
            cell["costs"]["seconds_per_step"]
            for job, cell in zip(jobs, cells, strict=True)
            if job.label == label
        ]
        speed[label] = statistics.median(own)
    slowest = max(speed.values())
    made: dict[str, dict[int, int]] = {}
    for job in jobs:
        if (path := files.path(job.cell(EQUAL_WALL_CLOCK))).exists():
            made.setdefault(job.label, {})[job.seed] = _num_steps(path)
    equal = []
    for job in jobs:
        there = made.get(job.label, {})
        computed = round(job.config.train.num_steps * slowest / speed[job.label])
        num_steps = there.get(job.seed, next(iter(there.values()), computed))
        extra = (f"--train.num_steps={num_steps}",)
        same = num_steps == job.config.train.num_steps
        equal.append(job if same else make_job(job.contender, overrides, job.seed, extra))
    return equal


def _num_steps(path: Path) -> int:
    try:
        return int(read_json_object(path)["config"]["train"]["num_steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no cell: delete it to make it again.") from error


class Comparison:
    """Contenders and seeds: which cells there are, and which are still to be made."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        overrides: Sequence[str],
        seeds: int,
        *,
        title: str,
        equal_time: bool,
    ):
        """Nothing is run.

        Args:
          contenders: what is compared; differences are taken from the first.
          overrides: of all configs.
          seeds: runs of each, with the seeds 0 to seeds - 1.
          title: what the comparison is called, beside the labels.
          equal_time: adds the second variant.

        Raises:
          UserError: an override is wrong, or configs have other numbers of samples.
        """
        self._contenders, self._overrides = contenders, overrides
        self._equal_time, self._num_seeds = equal_time, seeds
        self.labels = [contender.label for contender in contenders]
        self.jobs = [
            make_job(contender, overrides, seed, ())
            for seed in range(seeds)
            for contender in contenders
        ]
        self._how = self.jobs[0].config.evaluation
        for job in self.jobs:
            if job.config.evaluation.num_samples != self._how.num_samples:
                raise UserError(
                    "evaluation.num_samples differs between the configs, so their Pass@k would "
                    "not compare: set it for all with --evaluation.num_samples=..."
                )
        name = "-".join(filter(None, ["comparison", title, *self.labels]))
        self.directory = Path(self.jobs[0].config.runs_dir) / name
        self._files = CellFiles(self.directory)
        self._missing: dict[str, list[CellName]] = {}

    def make(self, num_workers: int, only: Sequence[CellName] | None = None) -> None:
        """Collects the cells that there are, and runs those that are missing.

        Equal time needs the times of all cells of equal tokens, and waits for them.

        Args:
          num_workers: runs at a time; 0 runs nothing.
          only: runs these alone; None: all.

        Raises:
          UserError: a run failed, or a cell does not belong to this comparison.
          Stopped: by a signal; the same call goes on.
        """
        jobs = {job.cell(EQUAL_TOKENS): job for job in self.jobs}
        self._fill(jobs, num_workers, only)
        if not self._equal_time:
            return
        if waiting := self._missing[EQUAL_TOKENS]:
            self._missing[EQUAL_WALL_CLOCK] = [j.cell(EQUAL_WALL_CLOCK) for j in self.jobs]
            print(f"equal wall clock waits for {', '.join(map(str, waiting))}", file=sys.stderr)
            return
        cells = [self._files[name] for name in jobs]
        timed = jobs_of_equal_time(self.jobs, cells, self._overrides, self._files)
        self._fill({job.cell(EQUAL_WALL_CLOCK): job for job in timed}, num_workers, only)

    def _fill(
        self, jobs: Mapping[CellName, Job], num_workers: int, only: Sequence[CellName] | None
    ) -> None:
        for name, job in jobs.items():
            if self._files.read(name, job.config) is None and is_finished(job.config):
                self._keep(name, job)
        wanted = {
            name: job
            for name, job in jobs.items()
            if name not in self._files and (only is None or name in only)
        }
        variant = next(iter(jobs)).variant
        if wanted and num_workers:
            by_job = {job.config.name: (name, job) for name, job in wanted.items()}
            run_jobs(
                list(wanted.values()),
                num_workers,
                variant.replace("_", " "),
                lambda job: self._keep(*by_job[job.config.name]),
            )
        # Read once more: others may have made cells here while these ran.
        self._missing[variant] = [
            name for name, job in jobs.items() if self._files.read(name, job.config) is None
        ]

    def _keep(self, name: CellName, job: Job) -> None:
        cell = make_cell(name, job.config, job.arguments, job.run)
        self._files.write(name, cell, job.config)
        before, after = (100 * np.mean(cell[side]["avg_at_k"]) for side in ("before", "after"))
        seconds = cell["costs"]["train_seconds"]
        say(
            f"{name}: Avg@{self._how.num_samples} {before:.1f} -> {after:.1f}, "
            f"{job.config.train.num_steps} steps in {seconds:,.0f} s"
        )

    def again(self, name: CellName, num_workers: int) -> list[str]:
        """Makes one cell again; what it was before is set aside.

        A stopped call goes on when it is given again: what is set aside then is not touched.

        Returns:
          Where its digits are others now, in words; [] if nowhere.

        Raises:
          UserError: there is no such cell, or as `make`.
        """
        self.make(0)
        shelf = self.directory / "set_aside"
        if name in self._files:
            self._set_aside(name, shelf)
        kept = sorted(shelf.glob(f"[0-9]*/{name.file}"), key=lambda path: int(path.parent.name))
        if not kept:
            raise UserError(
                f"{self.directory} has no cell {name} to make again: leave --again out to make "
                "it once."
            )
        self.make(num_workers, [name])
        return differing_digits(read_json_object(kept[-1]), self._files[name])

    def _set_aside(self, name: CellName, shelf: Path) -> None:
        """Moves a cell, its run, and the run's other cell to a new folder of the shelf."""
        run = self._files[name]["config"]["name"]
        numbers = [int(path.name) for path in shelf.glob("[0-9]*")]
        place = shelf / str(max(numbers, default=0) + 1)
        place.mkdir(parents=True)
        directory = RunDirectory(Path(self.jobs[0].config.runs_dir) / run)
        if directory.path.exists():
            with lock_run(directory):
                directory.path.rename(place / run)
        for variant in VARIANTS:
            other = name._replace(variant=variant)
            if other in self._files and self._files[other]["config"]["name"] == run:
                self._files.path(other).rename(place / other.file)
                self._files.forget(other)

    def results(self) -> dict[str, Any]:
        """Writes comparison.json, and returns what it holds.

        Raises:
          UserError: there is no cell.
        """
        parts, notes = {}, []
        for variant, missing in self._missing.items():
            names = [job.cell(variant) for job in self.jobs if job.cell(variant) not in missing]
            cells: dict[str, dict[int, Cell]] = {}
            for name in names:
                cells.setdefault(name.label, {})[name.seed] = self._files[name]
            parts[variant] = variant_of(self.labels, cells, self._how)
            timed = variant == EQUAL_WALL_CLOCK
            seeds = max(map(len, cells.values()), default=0)
            notes += notes_on([self._files[n] for n in names], num_seeds=seeds, timed=timed)
        if not any(part["conditions"] for part in parts.values()):
            raise UserError(
                f"{self.directory} has no cell yet: leave --collect-only out to make them."
            )
        comparison = {
            "k": self._how.num_samples,
            "confidence": self._how.confidence,
            "num_seeds": self._num_seeds,
            "labels": self.labels,
            "configs": {contender.label: contender.spec for contender in self._contenders},
            "overrides": list(self._overrides),
            "variants": {variant: part["conditions"] for variant, part in parts.items()},
            "curves": {variant: part["curves"] for variant, part in parts.items()},
            "gains": {variant: part["gains"] for variant, part in parts.items()},
            "selection": {variant: part["selection"] for variant, part in parts.items()},
            "unsolved": {variant: part["unsolved"] for variant, part in parts.items()},
            "differences": {variant: part["differences"] for variant, part in parts.items()},
            "missing": {v: [str(name) for name in names] for v, names in self._missing.items()},
            "notes": list(dict.fromkeys(notes)),
        }
        write_json(self.directory / "comparison.json", comparison)
        return comparison
