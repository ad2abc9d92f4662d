# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""An analysis on disk, and how one is made.

    tokens.npz, rollouts.jsonl   see scored.py
    analysis.json                what was scored, by whom, and where the advantage falls

An analysis that is whole and of the same inputs is read, and its numbers are made again;
nothing is sampled or scored twice.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stepalign_jax.analysis.chosen import Chosen
from stepalign_jax.analysis.first_errors import first_errors
from stepalign_jax.analysis.localisation import localisation
from stepalign_jax.analysis.score import Shown, score_rollouts, show
from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object, write_json
from stepalign_jax.base.hashing import content_hash
from stepalign_jax.config.compared import config_json
from stepalign_jax.config.schema import Config
from stepalign_jax.critics.protocol import Critic
from stepalign_jax.feedback.contexts import Condition
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.grader import Grader
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.stopwatch import Stopwatch
from stepalign_jax.training.scoring import ScoringPrograms
from stepalign_jax.training.state import Variables

RESULT_FILE = "analysis.json"

# Of the config: what decides which tokens are scored, and in which contexts.
_DECIDING = ("seed", "model", "prompts", "sampling", "critic", "critiques")


class Analyst(NamedTuple):
    """Who scores: the roles, loaded.

    Attributes:
      config: of the run.
      model: weights loaded.
      roles: its prompts.
      grader: judges answers.
      critic: loaded; None where no condition needs it.
      conditions: whose contexts the teacher reads.
      programs: see `make_analysis_programs`.
    """

    config: Config
    model: LanguageModel
    roles: Roles
    grader: Grader
    critic: Critic | None
    conditions: list[Condition]
    programs: ScoringPrograms


class Material(NamedTuple):
    """What is scored, before any score.

    Attributes:
      chosen: the rollouts.
      shown: what the teacher reads of each.
      first_error: [R], see `ScoredRollouts`.
      judges: how many first errors each judge named, see `first_errors`.
    """

    chosen: Chosen
    shown: Shown
    first_error: np.ndarray
    judges: dict[str, int]


def gather(analyst: Analyst, chosen: Chosen, watch: Stopwatch) -> Material:
    """Asks the critic, whose seconds `watch` takes, and finds first errors."""
    with watch.phase("critique"):
        shown = show(analyst.conditions, chosen, analyst.critic, analyst.roles)
    first, who = first_errors(chosen, shown.critiques, analyst.roles.trace, analyst.grader)
    return Material(chosen, shown, first, dict(Counter(who)))


def analysis_inputs(config: Config, problems: Sequence[Problem], *more: Any) -> str:
    """Returns a hash of all that decides the scores.

    Args:
      config: of the run.
      problems: what is asked, or was.
      more: whose weights, and which rollouts; JSON.
    """
    values = config_json(config)
    return content_hash(
        [
            {key: values[key] for key in _DECIDING},
            [values["analysis"]["num_rollouts"], values["analysis"]["contexts"]],
            [[problem.text, problem.expected, problem.reference] for problem in problems],
            *more,
        ]
    )


def finished(directory: Path, inputs: str) -> bool:
    """Whether the directory holds a whole analysis of these inputs."""
    path = directory / RESULT_FILE
    return path.is_file() and read_json_object(path).get("inputs") == inputs


def make_analysis(
    directory: Path,
    analyst: Analyst,
    solver: Variables,
    teacher: Variables,
    choose: Callable[[Stopwatch], Material],
    facts: dict[str, Any],
) -> tuple[ScoredRollouts, dict[str, Any]]:
    """Scores rollouts, unless the directory has their scores, and says where A falls.

    Args:
      directory: where all is written; `facts["inputs"]` decides whether it is there already.
      analyst: who scores; call it within `use_mesh`.
      solver: its variables.
      teacher: the teacher's.
      choose: returns what is scored.
      facts: what analysis.json says beside the numbers.

    Returns:
      The scores, and the content of analysis.json.

    Raises:
      UserError: no context can be used, or a file cannot be written.
    """
    result = directory / RESULT_FILE
    if finished(directory, facts["inputs"]):
        scored, saved = ScoredRollouts.load(directory), read_json_object(result)
        return scored, _write(result, analyst.config, scored, saved | facts)
    result.unlink(missing_ok=True)  # what stands beside it stops to hold
    watch = Stopwatch()
    chosen, shown, first_error, judges = choose(watch)
    with watch.phase("score"):
        scored = score_rollouts(
            analyst.model, analyst.programs, solver, teacher, analyst.roles, chosen, shown,
            first_error, batch_size=analyst.config.analysis.batch_size,
        )  # fmt: skip
    if not scored.usable.any():
        raise UserError(
            "no rollout has a context that can be used: see why with `python -m "
            "stepalign_jax.probe`, or name others in analysis.contexts"
        )
    scored.save(directory)
    more = {"first_error_by": judges, "seconds": watch.seconds}
    return scored, _write(result, analyst.config, scored, facts | more)


def _write(
    path: Path, config: Config, scored: ScoredRollouts, facts: dict[str, Any]
) -> dict[str, Any]:
    how = config.evaluation
    found = localisation(
        scored,
        num_resamples=how.num_resamples,
        confidence=how.confidence,
        seed=config.seed,
    )
    content = {**facts, "confidence": how.confidence, **found}
    write_json(path, content)
    return content
