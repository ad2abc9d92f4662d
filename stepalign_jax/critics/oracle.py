# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The oracle corrects attempts by program, where problems can check their reasoning steps.

It serves as a critic, and as the measure of any other critic.
"""

from collections.abc import Sequence

import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import OracleCritic
from stepalign_jax.critics.protocol import CriticReply, Surroundings, open_critic
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.request import Address


def oracle_critique(attempt: Attempt) -> str | None:
    """Returns the programmatic critique, or None where the problem cannot check itself."""
    problem = attempt.problem
    return problem.correct and problem.correct(problem.text, attempt.text)


class Oracle:
    """A `Critic` without a model."""

    def load(self) -> None:
        """Does nothing: the oracle has no weights."""

    def review(self, attempts: Sequence[Attempt], addresses: Sequence[Address]) -> CriticReply:
        """Returns the programmatic critique of each attempt; nothing is sampled.

        Raises:
          UserError: a problem cannot check its own reasoning steps.
        """
        texts = [oracle_critique(attempt) for attempt in attempts]
        if None in texts:
            raise UserError(
                "critic.kind=oracle needs problems that check their own reasoning steps "
                "(problems.kind=arithmetic); use --critic=self for others."
            )
        return CriticReply([Context(text or "", None) for text in texts], [], [])

    def example_prompt(self, problem: Problem) -> str:
        """The oracle reads no prompt."""
        return ""


@open_critic.register
def _(_config: OracleCritic, _surroundings: Surroundings) -> Oracle:
    return Oracle()


def exact_share(attempts: Sequence[Attempt], critiques: Sequence[Context]) -> float | None:
    """Returns the share of *wrong* attempts whose critique is the oracle's to the letter.

    An attempt is wrong if the oracle would change any of it, its answer line included. A
    failed critique is not exact. None where no attempt is wrong, or no problem can check
    itself.
    """
    exact = []
    for attempt, critique in zip(attempts, critiques, strict=True):
        oracle = oracle_critique(attempt)
        if oracle is not None and attempt.text != oracle:
            exact.append(critique.failure is None and critique.text == oracle)
    return float(np.mean(exact)) if exact else None
