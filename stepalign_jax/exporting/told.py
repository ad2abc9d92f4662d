# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Rollouts as other programs are told of them, from the rows that training stored."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.config.schema import Config
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory


class Told(NamedTuple):
    """One rollout of T tokens.

    Attributes:
      id: different from every other's.
      step: the optimizer step that sampled it; None for a fresh one.
      problem: the question.
      answer: the expected answer.
      text: the completion.
      prompt: token ids of the solver's prompt.
      tokens: [T] token ids of the completion.
      correct: whether its final answer is right.
      contexts: by condition, what the teacher saw.
      failures: by condition, why a context could not be used; those that could are left out.
      advantages: [T] by condition that could be used.
      kl: [T] KL(teacher||solver) by condition; {} where it was not kept.
      logprobs: [T] of the sampled tokens under the solver; None where they were not kept.
      entropy: [T] of the solver; None where it was not kept.
      top: [T] the solver's likeliest tokens, (id, log-probability) each; None as above.
    """

    id: str
    step: int | None
    problem: str
    answer: str
    text: str
    prompt: list[int]
    tokens: list[int]
    correct: bool
    contexts: dict[str, str]
    failures: dict[str, str]
    advantages: dict[str, list[float]]
    kl: dict[str, list[float]]
    logprobs: list[float] | None
    entropy: list[float] | None
    top: list[list[tuple[int, float]]] | None


def solver_prompt_of(roles: Roles, problem: str, answer: str) -> list[int]:
    """Token ids of the solver's prompt, of a problem that is known by its texts alone."""
    return roles.solver(Problem(problem, answer, None, "rollout"))


def told_by_run(
    run: RunDirectory, config: Config, roles: Roles, step: int | None
) -> list[Told]:
    """Returns the rollouts that training stored, as it stored them.

    Advantages are those of the run's own condition, rounded to five decimals in the file.

    Args:
      run: its directory.
      config: of the run.
      roles: prompts and tokenizer.
      step: an optimizer step, counted from 0; None: all there are.

    Raises:
      UserError: there are none, or they cannot be read.
    """
    steps = stored_steps(run) if step is None else [step]
    found: list[Told] = []
    for each in steps:
        path = run.rollouts_file(each)
        if not path.is_file():
            raise UserError(
                f"{path} is missing: the run has rollouts of steps {_ends(stored_steps(run))}."
            )
        rows = read_jsonl(path)
        found += [
            _told(row, each, number, config.condition, roles) for number, row in enumerate(rows)
        ]
    return found


def stored_steps(run: RunDirectory) -> list[int]:
    """The optimizer steps whose rollouts are stored, in order.

    Raises:
      UserError: there are none.
    """
    folder = run.rollouts_file(0).parent
    steps = sorted(int(path.stem.partition("_")[2]) for path in folder.glob("step_*.jsonl"))
    if not steps:
        raise UserError(f"{folder} holds no rollouts; train first.")
    return steps


def _ends(steps: Sequence[int]) -> str:
    return f"{steps[0]} to {steps[-1]}"


def _told(row: dict[str, Any], step: int, number: int, condition: str, roles: Roles) -> Told:
    advantage = row["advantage"]
    return Told(
        id=f"step_{step:05d}/{number}",
        step=step,
        problem=row["problem"],
        answer=row["answer"],
        text=row["rollout"],
        prompt=solver_prompt_of(roles, row["problem"], row["answer"]),
        tokens=row["tokens"],
        correct=row["correct"],
        contexts={condition: row["context"]},
        failures={condition: row["failure"]} if row["failure"] else {},
        advantages={} if advantage is None else {condition: advantage},
        kl={},
        logprobs=None,
        entropy=None,
        top=None,
    )
