# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps the problems that the initial solver seldom solves: the paper's difficulty filter.

A problem stays if the Avg@n of the untrained solver (the base, with the adapter that the
run starts from, if any) is below a bound (arXiv 2606.11173 is reported to keep Avg@16 <
5/16). The kept problems are remembered under the runs' directory, because every run of a
comparison would otherwise sample the same completions again.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, write_json
from stepalign_jax.base.hashing import stable_hash32
from stepalign_jax.config.schema import Config, EvaluationConfig
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.evaluation.identity import evaluation_inputs
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.kept import Kept, kept_beside

SELECTED = ".selected"  # of the runs' directory: has the kept problems
SEED = 1  # not a run's seed: the selection must not depend on the run

# (problems, how to sample, label, kept completions) -> the initial solver's results
Evaluate = Callable[[Sequence[Problem], EvaluationConfig, str, Kept | None], Evaluation]


def select_problems(
    config: Config,
    problems: list[Problem],
    split: str,
    *,
    fingerprint: Callable[[], Mapping[str, str]],
    evaluate: Evaluate,
) -> list[Problem]:
    """Returns the problems that `hard_problems` keeps.

    Raises:
      UserError: if none is left.
    """
    chosen = hard_problems(config, problems, split, fingerprint=fingerprint, evaluate=evaluate)
    if not chosen:
        raise UserError(
            f"no {split} problem has initial Avg@{config.problems.base_avg_samples} below "
            f"problems.base_avg_below={config.problems.base_avg_below:.3g}; raise it, or take "
            "harder problems."
        )
    return chosen


def hard_problems(
    config: Config,
    problems: list[Problem],
    split: str,
    *,
    fingerprint: Callable[[], Mapping[str, str]],
    evaluate: Evaluate,
) -> list[Problem]:
    """Returns the problems with initial Avg@n below `problems.base_avg_below`; all if 0.

    Args:
      config: of the run.
      problems: the candidates.
      split: their name, for messages.
      fingerprint: of the checkpoint that the solver starts from; called if the filter is on.
      evaluate: the initial solver's, with the seed SEED.
    """
    bound, num_samples = config.problems.base_avg_below, config.problems.base_avg_samples
    if bound == 0.0:
        return problems
    settings = dataclasses.replace(config.evaluation, num_samples=num_samples)
    inputs = evaluation_inputs(config, settings, fingerprint(), problems, seed=SEED)
    decided_by = stable_hash32(json.dumps([bound, inputs]))
    path = Path(config.runs_dir) / SELECTED / f"{decided_by:08x}.json"
    if path.exists():
        hard = set(read_json(path))
    else:
        with kept_beside(path) as kept:
            found = evaluate(problems, settings, f"select {split}", kept)
            pairs = zip(problems, found.per_problem["avg_at_k"], strict=True)
            hard = {problem.text for problem, average in pairs if average < bound}
            write_json(path, sorted(hard))
    return [problem for problem in problems if problem.text in hard]
