# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One problem."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from stepalign_jax.base.hashing import stable_hash32


class Scored(NamedTuple):
    """An expected answer that text and mathematics do not decide on, but a task's own scorer.

    Attributes:
      answer: one that is right.
      scorer: the task and its entry, as JSON; see `grading/scorers.py`.
    """

    answer: str
    scorer: str


Expected = str | Scored  # what an answer is judged by; a str is mathematics


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      text: the question as the solver sees it.
      answer: the expected final answer.
      reference: a worked solution (RefSol's context), or None.
      source: which problem set made it, for messages.
      correct: (question, attempt) -> the attempt with its first error corrected and the rest
        redone; None for a problem that cannot check its own reasoning steps.
      scorer: see `Scored`; None where the answer is mathematics.
    """

    text: str
    answer: str
    reference: str | None
    source: str
    correct: Callable[[str, str], str] | None = None
    scorer: str | None = None

    @property
    def expected(self) -> Expected:
        """What answers are judged by."""
        return self.answer if self.scorer is None else Scored(self.answer, self.scorer)

    @property
    def id(self) -> int:
        """32 bits that stand for the text in addresses of randomness, on every machine."""
        return stable_hash32(self.text)
