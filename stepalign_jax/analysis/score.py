# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores chosen rollouts under several contexts, on the same tokens, without a gradient."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stepalign_jax.analysis.chosen import Chosen
from stepalign_jax.analysis.scored import TOP, ScoredRollouts
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.progress import counting
from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.learning import ForwardKl
from stepalign_jax.critics.protocol import Critic
from stepalign_jax.feedback.contexts import Condition, Context, fit_budget, get_condition
from stepalign_jax.feedback.reasoning_steps import ReasoningStep
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.huggingface.tokenizer import token_spans
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.training.scoring import (
    ScoringPrograms,
    make_scoring_programs,
    score_contexts,
)
from stepalign_jax.training.state import Variables


class Shown(NamedTuple):
    """What the teacher is shown of R rollouts.

    Attributes:
      contexts: by condition, [R] texts or named failures.
      critiques: [R] what the critic wrote; [] where no condition asks it.
    """

    contexts: dict[str, list[Context]]
    critiques: list[Context]


def scored_conditions(names: Sequence[str]) -> list[Condition]:
    """Returns the conditions, in whose contexts a teacher can score.

    Raises:
      UserError: a name is unknown, or its condition shows a teacher nothing.
    """
    conditions = [get_condition(name) for name in names]
    for condition in conditions:
        if not condition.asks_teacher:
            raise UserError(
                f"analysis.contexts names {condition.name}, which asks no teacher: leave it out"
            )
    return conditions


def show(
    conditions: Sequence[Condition], chosen: Chosen, critic: Critic | None, roles: Roles
) -> Shown:
    """Returns the contexts of each condition; the critic is asked at most once per rollout.

    Args:
      conditions: see `scored_conditions`.
      chosen: the rollouts, which may have critiques already.
      critic: loaded; None only where no condition needs critiques.
      roles: the run's prompts.
    """
    critiques = list(chosen.critiques or [])
    if not critiques and any(condition.needs_critiques for condition in conditions):
        assert critic is not None
        critiques = critic.review(chosen.attempts, chosen.addresses).critiques
    budget, contexts = roles.prompts.max_context_tokens, {}
    for condition in conditions:
        assert condition.contexts is not None
        made = condition.contexts(chosen.attempts, critiques, roles.trace)
        contexts[condition.name] = fit_budget(made, roles.count_tokens, budget)
    return Shown(contexts, critiques)


def make_analysis_programs(model: LanguageModel, *, token_tile: int) -> ScoringPrograms:
    """Returns the programs of `score_rollouts`: KL(teacher||solver), plain, and the top-5."""
    plain = ForwardKl(
        token_tile=token_tile,
        token_weights=(),
        loss_temperature=1.0,
        grpo_mix=0.0,
        element_clip=0.0,
        top_k=0,
    )
    return make_scoring_programs(model.module("none"), plain, num_top=TOP)


def score_rollouts(
    model: LanguageModel,
    programs: ScoringPrograms,
    solver: Variables,
    teacher: Variables,
    roles: Roles,
    chosen: Chosen,
    shown: Shown,
    first_error: np.ndarray,
    *,
    batch_size: int,
) -> ScoredRollouts:
    """Returns the scores of all tokens; the solver reads each rollout once.

    Args:
      model: whose mesh the weights lie on; call it within `use_mesh(model.mesh)`.
      programs: see `make_analysis_programs`.
      solver: its variables.
      teacher: the teacher's.
      roles: the prompts.
      chosen: the rollouts.
      shown: what the teacher reads of each.
      first_error: [R], see `first_errors`.
      batch_size: rollouts that are scored together; all batches have this many.
    """
    pairs = zip(chosen.attempts, chosen.tokens, strict=True)
    readings = [_Reading.of(roles, attempt.text, tokens) for attempt, tokens in pairs]
    names = list(shown.contexts)
    usable = np.array([[not c.failure for c in shown.contexts[name]] for name in names])
    by_row = _score_batches(
        model, programs, solver, teacher, roles, chosen, shown, batch_size=batch_size
    )
    lengths = [len(tokens) for tokens in chosen.tokens]

    def of(name: str, field: str) -> np.ndarray:
        return np.concatenate([getattr(row[name], field) for row in by_row])

    def of_solver(field: str) -> np.ndarray:
        return of(names[0], field)

    def of_teacher(field: str) -> np.ndarray:
        found = np.stack([of(name, field) for name in names])
        found[~np.repeat(usable, lengths, axis=1)] = 0
        return found

    return ScoredRollouts(
        contexts=names,
        rows=[_row(chosen, shown, reading, index) for index, reading in enumerate(readings)],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        tokens=np.concatenate(chosen.tokens).astype(np.int32),
        ends=np.concatenate([reading.ends for reading in readings]),
        reasoning_step=np.concatenate([reading.reasoning_step for reading in readings]),
        markup=np.concatenate([roles.markup(tokens) for tokens in chosen.tokens]).astype(bool),
        correct=chosen.correct,
        first_error=first_error,
        usable=usable,
        solver_logprobs=of_solver("solver_logprobs"),
        teacher_logprobs=of_teacher("teacher_logprobs"),
        kl=of_teacher("divergence"),
        solver_entropy=of_solver("solver_entropy"),
        teacher_entropy=of_teacher("teacher_entropy"),
        solver_top_ids=of_solver("solver_top_ids"),
        solver_top_logprobs=of_solver("solver_top_logprobs"),
        teacher_top_ids=of_teacher("teacher_top_ids"),
        teacher_top_logprobs=of_teacher("teacher_top_logprobs"),
    )


def _score_batches(
    model: LanguageModel,
    programs: ScoringPrograms,
    solver: Variables,
    teacher: Variables,
    roles: Roles,
    chosen: Chosen,
    shown: Shown,
    *,
    batch_size: int,
) -> list[dict[str, TokenScores]]:
    """[R] scores [length, ...] by context."""
    solver_prompts = [roles.solver(attempt.problem) for attempt in chosen.attempts]
    # A context that failed may be longer than any prompt may be, and no token of it counts.
    teacher_prompts = {
        name: [
            roles.teacher(attempt.problem, "" if context.failure else context.text)
            for attempt, context in zip(chosen.attempts, contexts, strict=True)
        ]
        for name, contexts in shown.contexts.items()
    }
    number = len(chosen.tokens)
    found: list[dict[str, TokenScores]] = [{} for _ in range(number)]
    with counting(number, "analyze: scores") as count:
        # Batches in any order have about equally long rows, and so one shape: were they sorted
        # by length, each would compile its own, which takes longer than the padding.
        for start in range(0, number, batch_size):
            # The last batch begins with rows of the one before: a smaller one compiles anew.
            first = max(0, min(start, number - batch_size))
            rows = range(first, min(first + batch_size, number))
            scores = score_contexts(
                programs,
                solver,
                teacher,
                [solver_prompts[row] for row in rows],
                {n: [prompts[row] for row in rows] for n, prompts in teacher_prompts.items()},
                _as_rollouts([chosen.tokens[row] for row in rows]),
                num_parts=1,
                mesh=model.mesh,
            )
            for place, row in enumerate(rows):
                cut = slice(len(chosen.tokens[row]))
                found[row] = {
                    name: TokenScores(*(values[place, cut] for values in each))
                    for name, each in scores.items()
                }
            count(min(start + batch_size, number))
    return found


def _as_rollouts(completions: Sequence[Sequence[int]]) -> Rollouts:
    lengths = np.array([len(tokens) for tokens in completions], np.int32)
    tokens = np.zeros((len(lengths), int(lengths.max())), np.int32)
    for line, completion in zip(tokens, completions, strict=True):
        line[: len(completion)] = completion
    logprobs = np.zeros(tokens.shape, np.float32)  # nobody reads what was sampled
    return Rollouts(tokens, logprobs, lengths, np.ones(len(lengths), bool))


class _Reading(NamedTuple):
    """Where a rollout's tokens stand in its text."""

    steps: list[ReasoningStep]
    ends: np.ndarray
    reasoning_step: np.ndarray

    @classmethod
    def of(cls, roles: Roles, text: str, tokens: Sequence[int]) -> "_Reading":
        written, spans = token_spans(roles.tokenizer, tokens)
        # Some tokenizers leave out a space at the beginning of a text.
        shift = len(written) - len(text)
        ends = np.array([end for _, end in spans], np.int32) - max(shift, 0)
        ends = np.clip(ends, 0, len(text))
        empty = np.array([start == end for start, end in spans])
        steps = roles.trace.steps(text)
        owner = np.full(len(text) + 1, -1, np.int32)
        for step in steps:
            owner[step.start : step.end] = step.index
        # A token over a boundary belongs where its last character stands.
        reasoning_step = np.where(empty, -1, owner[np.maximum(ends - 1, 0)])
        return cls(steps, ends, reasoning_step.astype(np.int32))


def _row(chosen: Chosen, shown: Shown, reading: _Reading, index: int) -> dict[str, Any]:
    problem, text = chosen.attempts[index]
    contexts = [shown.contexts[name][index] for name in shown.contexts]
    return {
        "id": chosen.ids[index],
        "problem": problem.text,
        "answer": problem.answer,
        "rollout": text,
        "step": chosen.steps[index],
        "reference": problem.reference,
        "contexts": [context.text for context in contexts],
        "failures": [context.failure for context in contexts],
        "steps": [[step.start, step.end] for step in reading.steps],
    }
