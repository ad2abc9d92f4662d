# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Asks for a critique of every rollout: a model, most often its own base, or the oracle.

The oracle corrects arithmetic by program. It serves as a critic, and as the measure of
any other critic wherever problems can check their own reasoning steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import EngineCritic
from stepalign_jax.feedback.critique import Critique, Grade, require_answers, validate_critique
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.parallel.offload import FrozenWeights
from stepalign_jax.problems.arithmetic import correct_trace
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.engine import Engine, Purpose


@dataclass(frozen=True)
class Critic:
    """A model that is asked for critiques: rollouts go in and critiques come out as text.

    Attributes:
      engine: samples from it.
      weights: its params; of a critic of one's own, the base that is trained from.
      roles: the run's prompts under the critic's own tokenizer and chat template.
      mesh: the devices of its weights.
      max_positions: tokens of a prompt and its critique.
      takes_turns: whether its weights wait in host memory until it is asked.
    """

    engine: Engine
    weights: FrozenWeights
    roles: Roles
    mesh: jax.sharding.Mesh
    max_positions: int
    takes_turns: bool


class Asked(NamedTuple):
    """What a critic said.

    Attributes:
      critiques: one per attempt.
      lengths: [number asked] int32 tokens of each completion, thinking included.
      finished: [number asked] bool, False where the token budget ended it.
    """

    critiques: list[Critique]
    lengths: np.ndarray
    finished: np.ndarray


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
            "(problems.kind=arithmetic); use --critic=self for others."
        )
    return [Critique(text or "", None) for text in texts]


def ask_model(
    critic: Critic,
    config: EngineCritic,
    problems: Sequence[Problem],
    attempts: Sequence[str],
    *,
    addresses: np.ndarray,
    seed: int,
    grade: Grade,
) -> Asked:
    """Returns the model's critique of each attempt, or why it cannot be used.

    Args:
      critic: the model, its weights on their devices.
      config: what it sees, and how it is sampled.
      problems: the problem of each attempt.
      attempts: rollout texts.
      addresses: [N, 4] of the rollouts; their critiques share them under another purpose.
      seed: the run's.
      grade: checks the answers of a critic that is shown them.
    """
    prompts = [
        critic.roles.critic(problem, attempt, config.sees)
        for problem, attempt in zip(problems, attempts, strict=True)
    ]
    room = critic.max_positions - config.max_new_tokens
    critiques = [Critique("", _unasked(prompt, room)) for prompt in prompts]
    asked = [i for i, critique in enumerate(critiques) if critique.failure is None]
    with use_mesh(critic.mesh):
        rollouts = critic.engine.sample(
            {"params": critic.weights.tree},
            [prompts[i] or [] for i in asked],
            addresses[asked],
            seed=seed,
            purpose=Purpose.CRITIC,
            settings=config,
        )
    patterns = critic.roles.prompts
    thinking_open = critic.roles.critic_opens_thinking()
    texts = critic.roles.texts(rollouts)
    for i, text, finished in zip(asked, texts, rollouts.finished, strict=True):
        critiques[i] = validate_critique(
            text,
            bool(finished),
            thinking_open=thinking_open,
            step_pattern=patterns.reasoning_step_pattern,
            answer_pattern=patterns.answer_pattern,
        )
    if config.sees != "question":
        critiques = require_answers(
            critiques,
            [problem.answer for problem in problems],
            answer_pattern=patterns.answer_pattern,
            grade=grade,
        )
    return Asked(critiques, np.asarray(rollouts.lengths), np.asarray(rollouts.finished))


def _unasked(prompt: list[int] | None, room: int) -> str | None:
    """Why the critic is not asked: it lacks the reference, or room beside its own budget."""
    if prompt is None:
        return "no_reference"
    return "prompt_too_long" if len(prompt) > room else None


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
