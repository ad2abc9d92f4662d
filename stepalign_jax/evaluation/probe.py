# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How good the base is in each role before training, and whether a context helps it.

The solver is evaluated; the critic is asked about the solver's own samples; the teacher
answers freely (temperature as in evaluation) under each condition's context. A condition whose
context does not make the teacher more accurate than the solver has nothing to distil.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepalign_jax.base.progress import counting
from stepalign_jax.config.schema import SamplingConfig
from stepalign_jax.critics.oracle import oracle_critique
from stepalign_jax.critics.protocol import Critic
from stepalign_jax.feedback.contexts import (
    Attempt,
    Condition,
    Context,
    count_failures,
    fit_budget,
)
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import Grader
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.kept import Kept
from stepalign_jax.sampling.request import (
    Address,
    Purpose,
    SamplingParams,
    make_requests,
    sample_addresses,
)


class Asker(NamedTuple):
    """The initial model, asked once per problem in some role.

    Attributes:
      model: weights loaded.
      roles: its prompts.
      seed: the run's.
      step: of the addresses it draws at.
      kept: completions of an earlier, stopped process, and where to keep these; or None.
    """

    model: LanguageModel
    roles: Roles
    seed: int
    step: int
    kept: Kept | None

    def addresses(self, problems: Sequence[Problem], purpose: Purpose) -> list[Address]:
        """The first sample of each problem."""
        ids = [problem.id for problem in problems]
        return sample_addresses(ids, 1, seed=self.seed, purpose=purpose, step=self.step)

    def ask(
        self,
        prompts: Sequence[list[int]],
        addresses: Sequence[Address],
        how: SamplingConfig,
        label: str,
    ) -> list[str]:
        """Returns one completion per prompt as text; `label` names the progress bar."""
        requests = make_requests(prompts, addresses, SamplingParams.of(how))
        variables = self.model.variables()
        with counting(len(requests), label) as count:
            rollouts = self.model.engine.sample(
                variables, requests, batch_size=how.batch_size, progress=count, kept=self.kept
            )
        return self.roles.texts(rollouts)


class CriticFindings(NamedTuple):
    """What a critic made of N attempts.

    Attributes:
      attempts: [N] what it was asked about.
      critiques: [N] what it said.
      exact: of each attempt whose problem can check itself, whether the critique is the
        oracle's to the letter; a failed critique is not.
      wrong: of the same attempts, whether the oracle changes the attempt.
      lengths: tokens of the critiques that were sampled.
    """

    attempts: list[Attempt]
    critiques: list[Context]
    exact: np.ndarray
    wrong: np.ndarray
    lengths: list[int]

    def as_json(self) -> dict[str, Any]:
        """Counts and means; None where there is nothing to average."""
        return {
            "attempts": len(self.attempts),
            "wrong_attempts": int(self.wrong.sum()),
            "exact_on_wrong": _mean(self.exact[self.wrong]),
            "exact": _mean(self.exact),
            "mean_tokens": _mean(self.lengths),
            "failed": {name: n for name, n in count_failures(self.critiques).items() if n},
        }


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def probe_critic(
    asker: Asker, critic: Critic, problems: Sequence[Problem], how: SamplingConfig
) -> CriticFindings:
    """Returns one attempt per problem, their critiques, and how good the critiques are.

    Args:
      asker: samples the attempts.
      critic: weights loaded.
      problems: what is asked.
      how: the attempts are sampled.
    """
    addresses = asker.addresses(problems, Purpose.SOLVER)
    prompts = [asker.roles.solver(problem) for problem in problems]
    texts = asker.ask(prompts, addresses, how, "probe: attempts")
    attempts = list(map(Attempt, problems, texts))
    reply = critic.review(attempts, addresses)
    judged = [
        (critique.failure is None and critique.text == oracle, attempt.text != oracle)
        for attempt, critique in zip(attempts, reply.critiques, strict=True)
        if (oracle := oracle_critique(attempt)) is not None
    ]
    exact, wrong = np.array(judged, bool).reshape(-1, 2).T
    return CriticFindings(attempts, reply.critiques, exact, wrong, reply.lengths)


def probe_teacher(
    asker: Asker,
    grader: Grader,
    attempts: Sequence[Attempt],
    critiques: Sequence[Context],
    conditions: Sequence[Condition],
    how: SamplingConfig,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each condition's name, and which of the teacher's own free answers are right.

    The contexts are those that training would use. Rollouts whose context failed are left out.
    """
    budget = asker.roles.prompts.max_context_tokens
    for condition in conditions:
        if condition.contexts is None or not condition.asks_teacher:
            continue
        contexts = condition.contexts(attempts, critiques, asker.roles.trace)
        contexts = fit_budget(contexts, asker.roles.count_tokens, budget)
        label = f"probe: teacher, {condition.name}"
        yield condition.name, ask_teacher(asker, grader, attempts, contexts, how, label)


def ask_teacher(
    asker: Asker,
    grader: Grader,
    attempts: Sequence[Attempt],
    contexts: Sequence[Context],
    how: SamplingConfig,
    label: str,
) -> np.ndarray:
    """Returns which of the teacher's own free answers are right: float64, 0 or 1.

    One per attempt whose context did not fail, in their order.
    """
    pairs = [
        (attempt.problem, context)
        for attempt, context in zip(attempts, contexts, strict=True)
        if context.failure is None
    ]
    problems = [problem for problem, _ in pairs]
    prompts = [asker.roles.teacher(problem, context.text) for problem, context in pairs]
    addresses = asker.addresses(problems, Purpose.EVALUATION)
    texts = asker.ask(prompts, addresses, how, label)
    answers = [extract_answer(text, asker.roles.prompts.answer_pattern) for text in texts]
    right = grader.grade(answers, [problem.expected for problem in problems])
    return np.array(right, np.float64)
