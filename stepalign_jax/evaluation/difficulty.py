# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps the problems that the initial solver seldom solves: the paper's difficulty filter.

A problem stays if the Avg@n of the untrained solver (the base, with the adapter that the
run starts from, if any) is below a bound (arXiv 2606.11173 is reported to keep Avg@16 <
5/16). What was kept is remembered under the runs' directory, because every
run of a comparison would otherwise sample the same completions again.
"""

import dataclasses
import json
from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, write_json
from stepalign_jax.base.hashing import stable_hash32
from stepalign_jax.config.schema import Config, LoraTrainable
from stepalign_jax.evaluation.evaluate import evaluate_visibly
from stepalign_jax.grading.grader import Grader
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.setup import Workbench

_SEED = 1  # not a run's seed: what is selected must not depend on the run


def select_problems(
    config: Config, bench: Workbench, grader: Grader, problems: list[Problem], split: str
) -> list[Problem]:
    """Returns the problems with initial Avg@n below `problems.base_avg_below`; all if 0.

    Raises:
      UserError: if none is left.
    """
    section = config.problems
    if section.base_avg_below == 0.0:
        return problems
    fingerprint = _fingerprint(config, bench.directory, problems)
    path = Path(config.runs_dir) / ".selected" / f"{fingerprint:08x}.json"
    if path.exists():
        kept = set(read_json(path))
    else:
        settings = dataclasses.replace(config.evaluation, num_samples=section.base_avg_samples)
        found = evaluate_visibly(
            bench,
            bench.initial_solver(),
            grader,
            problems,
            settings,
            seed=_SEED,
            description=f"select {split}",
        )
        scores = zip(problems, found.per_problem["avg_at_k"], strict=True)
        kept = {problem.text for problem, avg in scores if avg < section.base_avg_below}
        write_json(path, sorted(kept))
    chosen = [problem for problem in problems if problem.text in kept]
    if not chosen:
        raise UserError(
            f"no {split} problem has initial Avg@{section.base_avg_samples} below "
            f"problems.base_avg_below={section.base_avg_below:.3g}; raise it, or take harder "
            "problems."
        )
    return chosen


def _fingerprint(config: Config, directory: Path, problems: list[Problem]) -> int:
    """A hash of all that decides the selection; weights count by file size and time."""
    files = sorted(directory.glob("*.safetensors"))
    if isinstance(config.trainable, LoraTrainable) and config.trainable.adapter:
        files += sorted(Path(config.trainable.adapter).glob("adapter_*"))
    weights = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    parts = [
        weights,
        config.model.compute_dtype,
        config.problems.base_avg_below,
        config.problems.base_avg_samples,
        dataclasses.asdict(config.prompts),
        dataclasses.asdict(config.evaluation),
        [(problem.text, problem.answer) for problem in problems],
    ]
    return stable_hash32(json.dumps(parts))
