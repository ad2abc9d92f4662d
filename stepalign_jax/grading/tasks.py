# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Answers that a task's own scorer judges, in worker processes: this side of the pipe."""

import importlib.util
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.grading.pool import TIMEOUT, WorkerPool
from stepalign_jax.problems.problem import Scored

PACKAGE = "reasoning_gym"


class ScoredAnswer(NamedTuple):
    """An answer, and what it is judged by."""

    expected: Scored
    answer: str


class TaskScorers:
    """Judges answers by their tasks' scorers. Verdicts are remembered.

    Attributes:
      num_timeouts: answers that ran past the deadline; each counts as wrong.
    """

    def __init__(self, pool: WorkerPool):
        """Starts nothing yet.

        Args:
          pool: of workers that judge by `scorers.py`.
        """
        self._pool = pool
        self._verdicts: dict[ScoredAnswer, bool] = {}
        self.num_timeouts = 0

    def judge(self, answers: Sequence[ScoredAnswer]) -> list[bool]:
        """Returns which answers are right; an empty one is not.

        Raises:
          UserError: the package of the scorers is not installed.
        """
        new = [each for each in dict.fromkeys(answers) if each not in self._verdicts]
        asked = [each for each in new if each.answer]
        if new:
            _require_package(new[0].expected)
        self._verdicts.update(dict.fromkeys(new, False))
        verdicts = self._pool.run([("score", e.expected.scorer, e.answer) for e in asked])
        self._verdicts.update(zip(asked, [v == "right" for v in verdicts], strict=True))
        self.num_timeouts += verdicts.count(TIMEOUT)
        return [self._verdicts[each] for each in answers]

    def check(self, expected: Iterable[Scored]) -> None:
        """Tries the first expected answer of each task on the task's own scorer.

        Raises:
          UserError: the scorer cannot be had, or does not find that answer right.
        """
        first: dict[str, ScoredAnswer] = {}
        for each in expected:
            first.setdefault(_task(each), ScoredAnswer(each, each.answer))
        for task, right in zip(first, self.judge(list(first.values())), strict=True):
            if not right:
                raise UserError(
                    f"the scorer of the task {task} does not find its own expected answer "
                    f"right: install the version of {PACKAGE} that the problems were prepared "
                    "with, or prepare them again"
                )


def _task(expected: Scored) -> str:
    return json.loads(expected.scorer)["task"]


def _require_package(expected: Scored) -> None:
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            f"the answers of the task {_task(expected)} are judged by the package {PACKAGE}: "
            "install it with pip install 'stepalign_jax[gym]'."
        )
