# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a critic is: attempts go in; critiques, or named failures, come out."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from stepalign_jax.config.schema import CriticConfig, PromptsConfig
from stepalign_jax.critics.store import CritiqueStore
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.critique import Grade
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.parallel.offload import Resident
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.kept import Kept
from stepalign_jax.sampling.request import Address


class Usage(NamedTuple):
    """What a server's critiques of some attempts took.

    Attributes:
      cost: of these critiques when they were asked for, in the currency of the price keys.
      asked: requests that were sent now, repeated ones too.
      from_store: critiques that were not asked for, because a store had them.
    """

    cost: float
    asked: int
    from_store: int


class CriticReply(NamedTuple):
    """What a critic said of some attempts.

    Attributes:
      critiques: one per attempt; a failed one has a name from `contexts.FAILURES`.
      lengths: tokens of each completion that was sampled for it, thinking included; empty for
        a critic that samples none.
      finished: whether each of these ended by itself; False where the token budget ended it.
      outcomes: of each question, those of repeated ones too: "ok" or a name from
        `contexts.FAILURES`; empty for a critic whose outcomes are not counted.
      usage: of a server; None for others.
    """

    critiques: list[Context]
    lengths: list[int]
    finished: list[bool]
    outcomes: Sequence[str] = ()
    usage: Usage | None = None


class Critic(Protocol):
    """Rewrites rollouts. An engine, an endpoint or a program: its users cannot tell."""

    def load(self) -> None:
        """Reads whatever is large; all else was checked when the critic was opened."""
        ...

    def review(self, attempts: Sequence[Attempt], addresses: Sequence[Address]) -> CriticReply:
        """Returns a critique of each attempt.

        Args:
          attempts: problems with rollouts.
          addresses: of the rollouts; a critic that samples draws at the same ones under its
            own purpose.
        """
        ...

    def example_prompt(self, problem: Problem) -> str:
        """What the critic reads about a rollout of `problem`; "" if it reads no prompt."""
        ...


class Wrapper:
    """A critic around another one, whose own is what it does not change.

    Attributes:
      inner: who writes the critiques.
    """

    def __init__(self, inner: Critic):
        self.inner = inner

    def load(self) -> None:
        """Loads the inner critic."""
        self.inner.load()

    def example_prompt(self, problem: Problem) -> str:
        """The inner critic's."""
        return self.inner.example_prompt(problem)


class Surroundings(NamedTuple):
    """What a critic may use of the run that asks it.

    Attributes:
      model: the model that is trained.
      prompts: the run's prompts and patterns.
      max_attempt_tokens: the longest rollout.
      grade: judges the answers of critiques.
      others: what else is on the devices, for a critic that needs them alone for a while.
      label: names a progress bar while the critic is asked; "" for none.
      kept: completions on disk, of a command that goes on after a stop; or None.
      store: keeps what was asked.
    """

    model: LanguageModel
    prompts: PromptsConfig
    max_attempt_tokens: int
    grade: Grade
    others: tuple[Resident, ...]
    label: str
    kept: Kept | None
    store: CritiqueStore


@functools.singledispatch
def open_critic(config: CriticConfig, surroundings: Surroundings) -> Critic:
    """Returns the critic that `config` names, before anything large is read.

    A new critic registers a function for a config class of its own (docs/extending.md).

    Raises:
      UserError: the critic cannot be used in this run.
    """
    raise TypeError(f"no critic is registered for {type(config).__name__}")


def outcomes(critiques: Sequence[Context]) -> list[str]:
    """Returns "ok", or the failure of each."""
    return [critique.failure or "ok" for critique in critiques]


def innermost(critic: Any) -> Any:
    """The critic that asks, without what is wrapped around it."""
    while (inner := getattr(critic, "inner", None)) is not None:
        critic = inner
    return critic
