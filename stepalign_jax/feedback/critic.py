# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Asks for a critique of every rollout: the model's own base weights, or the oracle.

The oracle corrects arithmetic by program. It serves as a critic, and as the measure of
any other critic wherever problems can check their own reasoning steps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stepalign_jax.base.config import CriticConfig, SamplingConfig
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Problem
from stepalign_jax.feedback.critique import Critique, Grade, require_answers, validate_critique
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.problems.arithmetic import correct_trace
from stepalign_jax.sampling.engine import Engine, Purpose

_NO_REFERENCE = Critique("", "no_reference")


def oracle_critique(problem: Problem, attempt: str) -> str | None:
    """Returns the programmatic critique, or None where the problem cannot check itself."""
    return correct_trace(problem.text, attempt) if problem.source == "arithmetic" else None


def ask_oracle(problems: Sequence[Problem], attempts: Sequence[str]) -> list[Critique]:
    """Returns the programmatic critique of each attempt.

    Raises:
      UserError: if a problem cannot check its own reasoning steps.
    """
    texts = [oracle_critique(p, attempt) for p, attempt in zip(problems, attempts, strict=True)]
    if None in texts:
        raise UserError(
            "critic.kind=oracle needs problems that check their own reasoning steps "
            "(problems.source=arithmetic); use --critic.kind=self for others."
        )
    return [Critique(text or "", None) for text in texts]


def ask_model(
    engine: Engine,
    variables: dict[str, Any],
    roles: Roles,
    config: CriticConfig,
    problems: Sequence[Problem],
    attempts: Sequence[str],
    *,
    addresses: np.ndarray,
    seed: int,
    grade: Grade,
) -> list[Critique]:
    """Returns the model's critique of each attempt, or why it cannot be used.

    Args:
      engine: samples the critiques.
      variables: the critic's weights; the base alone for a critic of one's own.
      roles: prompts and tokenizer.
      config: what the critic sees, and how it is sampled.
      problems: the problem of each attempt.
      attempts: rollout texts.
      addresses: [N, 4] of the rollouts; their critiques share them under another purpose.
      seed: the run's.
      grade: checks the answers of a critic that is shown them.
    """
    prompts = [
        roles.critic(problem, attempt, config.sees)
        for problem, attempt in zip(problems, attempts, strict=True)
    ]
    asked = [i for i, prompt in enumerate(prompts) if prompt is not None]
    settings = SamplingConfig(
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
    rollouts = engine.sample(
        variables,
        [prompt for prompt in prompts if prompt is not None],
        addresses[asked],
        seed=seed,
        purpose=Purpose.CRITIC,
        settings=settings,
    )
    critiques = [_NO_REFERENCE] * len(prompts)
    for i, text, finished in zip(asked, roles.texts(rollouts), rollouts.finished, strict=True):
        critiques[i] = validate_critique(
            text,
            bool(finished),
            step_pattern=roles.prompts.reasoning_step_pattern,
            answer_pattern=roles.prompts.answer_pattern,
        )
    if config.sees == "question":
        return critiques
    return require_answers(
        critiques,
        [problem.answer for problem in problems],
        answer_pattern=roles.prompts.answer_pattern,
        grade=grade,
    )


def exact_share(
    problems: Sequence[Problem], attempts: Sequence[str], critiques: Sequence[Critique]
) -> float | None:
    """Returns the share of *wrong* attempts whose critique is the oracle's to the letter.

    An attempt is wrong if the oracle would change any of it, its answer line included. A
    failed critique is not exact. None where no attempt is wrong, or no problem can check
    itself.
    """
    exact = []
    for problem, attempt, critique in zip(problems, attempts, critiques, strict=True):
        oracle = oracle_critique(problem, attempt)
        if oracle is not None and attempt != oracle:
            exact.append(critique.failure is None and critique.text == oracle)
    return float(np.mean(exact)) if exact else None
