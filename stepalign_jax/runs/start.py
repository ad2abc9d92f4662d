# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run started from, beside which its results stand: evaluated once, and kept.

evaluations/before.json                the run's own, on its test problems
evaluations/start_<problems>_<hash>    by `evaluate`; the hash is of all that decides it
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import write_json
from stepalign_jax.base.hashing import content_hash
from stepalign_jax.config.load import config_from_json
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.evaluation.identity import evaluation_inputs
from stepalign_jax.huggingface.fingerprint import fingerprint_checkpoint
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.inputs import was_begun_with

_SECTIONS = ("seed", "model", "trainable", "prompts", "evaluation")


def evaluate_start(
    run: RunDirectory,
    config: Config,
    directory: Path,
    on: str,
    problems: Sequence[Problem],
    measure: Callable[[], Evaluation],
) -> Evaluation:
    """Returns the evaluation of what a run started from.

    Args:
      run: its directory.
      config: of the evaluation; it may differ from the run's.
      directory: the checkpoint that the run started from.
      on: the name of the problems: one of the run's splits, or a benchmark.
      problems: what is asked.
      measure: evaluates, if the run holds no such evaluation yet.

    Raises:
      UserError: one that it holds is damaged.
    """
    num_samples = config.evaluation.num_samples
    checkpoint = fingerprint_checkpoint(directory)
    file = _file(run, config, checkpoint, on, problems)
    before = run.evaluation_file("before")
    if on == "test" and before.exists() and was_begun_with(run, config, directory, problems):
        own = config_from_json(run.config_file, (), _SECTIONS)
        if _file(run, own, checkpoint, on, problems) == file:
            file = before
    if file.exists():
        print(f"note: the base was evaluated before, in {file}", file=sys.stderr)
        return Evaluation.read_whole(file, len(problems), num_samples)
    found = measure()
    try:
        write_json(file, found.as_lists())
    except UserError as error:  # somebody else's run, perhaps
        print(f"note: the base will be evaluated again next time: {error}", file=sys.stderr)
    return found


def _file(
    run: RunDirectory,
    config: Config,
    checkpoint: Mapping[str, str],
    on: str,
    problems: Sequence[Problem],
) -> Path:
    inputs = evaluation_inputs(
        config, config.evaluation, checkpoint, problems, seed=config.seed
    )
    return run.evaluation_file(f"start_{on}_{content_hash(inputs)}")
