# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which rollouts are analysed: those that a run has stored, or fresh ones."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.base.progress import counting
from stepalign_jax.config.schema import Config
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import Grader
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.sampling.kept import Kept
from stepalign_jax.sampling.request import (
    ANALYSIS_STEP,
    Address,
    Purpose,
    SamplingParams,
    make_requests,
    sample_addresses,
)


class Chosen(NamedTuple):
    """R rollouts.

    Attributes:
      ids: [R] different names, such as `validation/3/0` or `step_00020/7`.
      steps: [R] the optimizer steps that sampled them; None for fresh ones.
      attempts: [R] problem and completion as text.
      tokens: [R] the completions' token ids.
      correct: [R] bool, whether the final answer is right.
      addresses: [R] at which a critic is asked.
      critiques: [R] of a run that stored them; None where the critic has to be asked.
    """

    ids: list[str]
    steps: list[int | None]
    attempts: list[Attempt]
    tokens: list[list[int]]
    correct: np.ndarray
    addresses: list[Address]
    critiques: list[Context] | None


def sample_rollouts(
    config: Config,
    model: LanguageModel,
    variables: dict[str, Any],
    roles: Roles,
    grader: Grader,
    problems: Sequence[Problem],
    split: str,
    *,
    kept: Kept | None,
) -> Chosen:
    """Samples `analysis.num_rollouts` as a training step would, from as many problems.

    Where there are fewer problems each gets several rollouts, the first ones one more.

    Args:
      config: of the run.
      model: its engine samples.
      variables: the solver's.
      roles: its prompts.
      grader: judges answers.
      problems: of the split.
      split: its name.
      kept: completions of a stopped process, or None.
    """
    number = config.analysis.num_rollouts
    asked = list(problems[:number])
    places = np.arange(number) % len(asked)
    addresses = sample_addresses(
        [asked[place].id for place in places], 1,
        seed=config.seed, purpose=Purpose.SOLVER, step=ANALYSIS_STEP,
    )  # fmt: skip
    prompts = [roles.solver(problem) for problem in asked]
    requests = make_requests(
        [prompts[place] for place in places], addresses, SamplingParams.of(config.sampling)
    )
    with counting(number, "analyze: rollouts") as count:
        rollouts = model.engine.sample(
            variables,
            requests,
            batch_size=config.sampling.batch_size,
            progress=count,
            kept=kept,
        )
    attempts = list(map(Attempt, (asked[place] for place in places), roles.texts(rollouts)))
    answers = [
        extract_answer(attempt.text, roles.prompts.answer_pattern) for attempt in attempts
    ]
    right = grader.grade(answers, [attempt.problem.expected for attempt in attempts])
    return Chosen(
        ids=[
            f"{split}/{place}/{at.sample}" for place, at in zip(places, addresses, strict=True)
        ],
        steps=[None] * number,
        attempts=attempts,
        tokens=[
            np.asarray(row[:length]).tolist()
            for row, length in zip(rollouts.tokens, rollouts.lengths, strict=True)
        ],
        correct=np.array(right, bool),
        addresses=addresses,
        critiques=None,
    )


def stored_rollouts(
    config: Config, run: RunDirectory, problems: Sequence[Problem], steps: Sequence[int]
) -> Chosen:
    """Returns the first `analysis.num_rollouts` that training steps have stored.

    Their critiques are taken too where the run's condition shows the teacher a critique of the
    rollout as it is, `stepalign`.

    Args:
      config: of the run.
      run: its directory.
      problems: of training, which know their references and how to check themselves.
      steps: optimizer steps, counted from 0.

    Raises:
      UserError: a step has no rollouts, or they cannot be read.
    """
    known = {problem.text: problem for problem in problems}
    rows = [(step, number, row) for step in steps for number, row in _read(run, step)]
    rows = rows[: config.analysis.num_rollouts]
    attempts = [Attempt(_problem(row, known), row["rollout"]) for _, _, row in rows]
    contexts = [Context(row["context"], row["failure"]) for *_, row in rows]
    return Chosen(
        ids=[f"step_{step:05d}/{number}" for step, number, _ in rows],
        steps=[step for step, *_ in rows],
        attempts=attempts,
        tokens=[row["tokens"] for *_, row in rows],
        correct=np.array([row["correct"] for *_, row in rows], bool),
        addresses=_addresses(config.seed, [step for step, *_ in rows], attempts),
        critiques=contexts if config.condition == "stepalign" else None,
    )


def _read(run: RunDirectory, step: int) -> list[tuple[int, dict[str, Any]]]:
    path = run.rollouts_file(step)
    if not path.is_file():
        files = sorted(file.stem for file in path.parent.glob("step_*.jsonl"))
        there = f"there are {files[0]} to {files[-1]}" if files else "the run has none"
        raise UserError(f"{path} is missing: {there}; choose with --rollouts.")
    # A row without tokens was never scored, and has nothing to show.
    return [(number, row) for number, row in enumerate(read_jsonl(path)) if row["tokens"]]


def _problem(row: Mapping[str, Any], known: Mapping[str, Problem]) -> Problem:
    stored = Problem(row["problem"], row["answer"], None, "rollout")
    return known.get(row["problem"], stored)


def _addresses(seed: int, steps: Sequence[int], attempts: Sequence[Attempt]) -> list[Address]:
    """Those that the steps sampled at, so that a store of critiques knows them."""
    found = []
    for step in dict.fromkeys(steps):
        ids = [a.problem.id for own, a in zip(steps, attempts, strict=True) if own == step]
        found += sample_addresses(ids, 1, seed=seed, purpose=Purpose.SOLVER, step=step)
    return found
