# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How good the base is in each role before training, and whether a context helps it.

The solver is evaluated; the critic is asked about the solver's own samples; the teacher
answers freely (temperature as in evaluation) under each condition's context. A condition whose
context does not make the teacher more accurate than the solver has nothing to distil.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stepalign_jax.config.schema import SamplingConfig
from stepalign_jax.critics.oracle import exact_share, oracle_critique
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
    """

    model: LanguageModel
    roles: Roles
    seed: int

    def addresses(self, problems: Sequence[Problem], purpose: Purpose) -> list[Address]:
        """The first sample of each problem, at optimizer step 0."""
        ids = [problem.id for problem in problems]
        return sample_addresses(ids, 1, seed=self.seed, purpose=purpose, step=0)

    def ask(
        self, prompts: Sequence[list[int]], addresses: Sequence[Address], how: SamplingConfig
    ) -> list[str]:
        """Returns one completion per prompt as text."""
        requests = make_requests(prompts, addresses, SamplingParams.of(how))
        variables = self.model.variables()
        rollouts = self.model.engine.sample(variables, requests, batch_size=how.batch_size)
        return self.roles.texts(rollouts)


def probe_critic(
    asker: Asker, critic: Critic, problems: Sequence[Problem], how: SamplingConfig
) -> tuple[list[Attempt], list[Context], dict[str, Any]]:
    """Returns one attempt per problem, their critiques, and how good the critiques are.

    Wrong attempts are those that the oracle would change; none where problems cannot tell.

    Args:
      asker: samples the attempts.
      critic: weights loaded.
      problems: what is asked.
      how: the attempts are sampled.
    """
    addresses = asker.addresses(problems, Purpose.SOLVER)
    prompts = [asker.roles.solver(problem) for problem in problems]
    attempts = list(map(Attempt, problems, asker.ask(prompts, addresses, how)))
    reply = critic.review(attempts, addresses)
    oracles = [oracle_critique(attempt) for attempt in attempts]
    exact = [
        critique.failure is None and critique.text == oracle
        for critique, oracle in zip(reply.critiques, oracles, strict=True)
        if oracle is not None
    ]
    wrong = [o is not None and o != a.text for o, a in zip(oracles, attempts, strict=True)]
    found = {
        "attempts": len(attempts),
        "wrong_attempts": sum(wrong),
        "exact_on_wrong": exact_share(attempts, reply.critiques),
        "exact": float(np.mean(exact)) if exact else None,
        "mean_tokens": float(np.mean(reply.lengths)) if reply.lengths else None,
        "failed": {name: n for name, n in count_failures(reply.critiques).items() if n},
    }
    return attempts, reply.critiques, found


def probe_teacher(
    asker: Asker,
    grader: Grader,
    attempts: Sequence[Attempt],
    critiques: Sequence[Context],
    conditions: Sequence[Condition],
    how: SamplingConfig,
) -> dict[str, float | None]:
    """Returns the accuracy of the teacher's own free answer under each condition's context.

    Rollouts whose context failed are left out; None where all failed.
    """
    found: dict[str, float | None] = {}
    for condition in conditions:
        if condition.contexts is None:
            continue
        contexts = fit_budget(
            condition.contexts(attempts, critiques, asker.roles.trace),
            asker.roles.count_tokens,
            asker.roles.prompts.max_context_tokens,
        )
        pairs = [
            (attempt.problem, context)
            for attempt, context in zip(attempts, contexts, strict=True)
            if context.failure is None
        ]
        problems = [problem for problem, _ in pairs]
        prompts = [asker.roles.teacher(problem, context.text) for problem, context in pairs]
        texts = asker.ask(prompts, asker.addresses(problems, Purpose.EVALUATION), how)
        pattern = asker.roles.prompts.answer_pattern
        answers = [extract_answer(text, pattern) for text in texts]
        right = grader.grade(answers, [problem.answer for problem in problems])
        found[condition.name] = float(np.mean(right)) if right else None
    return found
