# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The same rollouts, scored again and again while a run trains.

The initial solver samples them once, from validation problems, and the critic is asked once.
`analysis/step_00000/` holds both; later analyses read them there, so that what changes over the
steps is what solver and teacher say of fixed tokens in fixed contexts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepalign_jax.analysis.chosen import Chosen, sample_rollouts
from stepalign_jax.analysis.results import (
    RESULT_FILE,
    Analyst,
    Material,
    analysis_inputs,
    finished,
    gather,
    make_analysis,
)
from stepalign_jax.analysis.score import Shown, make_analysis_programs, scored_conditions
from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.base.files import read_json_object
from stepalign_jax.config.schema import Config
from stepalign_jax.critics.protocol import Critic
from stepalign_jax.feedback.contexts import Attempt, Condition, Context
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.grader import Grader
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.inputs import recorded_changes
from stepalign_jax.runs.stopwatch import Stopwatch
from stepalign_jax.training.state import Variables


def probed_conditions(config: Config) -> list[Condition]:
    """Returns the conditions in whose contexts training scores its probe set; [] for none.

    Raises:
      UserError: one of them asks no teacher.
    """
    return scored_conditions(config.analysis.contexts) if config.analysis.every_steps else []


class ProbeSet:
    """Fixed rollouts of one run."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        model: LanguageModel,
        roles: Roles,
        grader: Grader,
        critic: Critic | None,
        problems: Sequence[Problem],
    ):
        """Computes nothing yet.

        Args:
          config: of the run.
          run: its directory.
          model: weights loaded.
          roles: its prompts.
          grader: judges answers.
          critic: loaded; None where no probed condition needs critiques.
          problems: of validation.
        """
        programs = make_analysis_programs(model, token_tile=config.objective.token_tile)
        conditions = probed_conditions(config)
        self._analyst = Analyst(config, model, roles, grader, critic, conditions, programs)
        self._run, self._problems = run, problems

    def directory(self, step: int) -> Path:
        """Where the analysis of `step` optimizer steps done lies."""
        return self._run.analysis / f"step_{step:05d}"

    def analyse(self, step: int, solver: Variables, teacher: Variables) -> None:
        """Scores the probe set, unless an interrupted run has done so.

        Args:
          step: optimizer steps done; 0 comes first, and is that of the initial weights.
          solver: its variables.
          teacher: the teacher's.
        """
        config, model = self._analyst.config, self._analyst.model
        of = [model.fingerprint, recorded_changes(self._run)]
        inputs = analysis_inputs(config, self._problems, "probe set", of, step)
        if finished(self.directory(step), inputs):
            return
        facts = {
            "of": config.name,
            "step": step,
            "source": "the probe set, sampled by the initial solver from validation problems",
            "inputs": inputs,
        }

        def choose(watch: Stopwatch) -> Material:
            return self._kept() if step else self._sample(solver, watch)

        make_analysis(self.directory(step), self._analyst, solver, teacher, choose, facts)

    def _sample(self, solver: Variables, watch: Stopwatch) -> Material:
        config, model, roles, grader, *_ = self._analyst
        with watch.phase("sample"):
            chosen = sample_rollouts(
                config, model, solver, roles, grader, self._problems, "validation", kept=None
            )
        return gather(self._analyst, chosen, watch)

    def _kept(self) -> Material:
        """What was scored before the first optimizer step."""
        scored = ScoredRollouts.load(self.directory(0))
        facts = read_json_object(self.directory(0) / RESULT_FILE)
        return Material(
            chosen=_chosen(scored),
            shown=Shown({n: _contexts(scored, i) for i, n in enumerate(scored.contexts)}, []),
            first_error=scored.first_error,
            judges=facts["first_error_by"],
        )


def _chosen(scored: ScoredRollouts) -> Chosen:
    rows: list[dict[str, Any]] = scored.rows
    return Chosen(
        ids=[row["id"] for row in rows],
        steps=[row["step"] for row in rows],
        attempts=[
            Attempt(
                Problem(row["problem"], row["answer"], row["reference"], "probe set"),
                row["rollout"],
            )
            for row in rows
        ],
        tokens=[scored.tokens[scored.of(rollout)].tolist() for rollout in range(len(rows))],
        correct=scored.correct,
        addresses=[],  # no critic is asked again
        critiques=None,
    )


def _contexts(scored: ScoredRollouts, context: int) -> list[Context]:
    return [Context(row["contexts"][context], row["failures"][context]) for row in scored.rows]
