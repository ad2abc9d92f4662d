# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which reasoning step of a rollout is the first wrong one, and who says so.

    oracle     the problem checks its own reasoning steps (arithmetic)
    critique   else a critique that ends in the right answer: the first reasoning step in which
               it differs. A critic that rewords what is right puts the error too early
    unknown    else nobody says

A reasoning step that is missing is wrong at its place, one past the last there is.
"""

from collections.abc import Sequence

import numpy as np

from stepalign_jax.analysis.chosen import Chosen
from stepalign_jax.analysis.scored import NO_ERROR, UNKNOWN
from stepalign_jax.critics.oracle import oracle_critique
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.controls import first_difference
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import Grader


def first_errors(
    chosen: Chosen, critiques: Sequence[Context], trace: TraceFormat, grader: Grader
) -> tuple[np.ndarray, list[str]]:
    """Returns [R] int32 as `ScoredRollouts.first_error`, and who says so of each.

    Args:
      chosen: the rollouts.
      critiques: one of each; [] where none was asked.
      trace: how they are read.
      grader: judges the critiques' answers.
    """
    critiques = critiques or [Context("", "missing")] * len(chosen.attempts)
    answers = [
        None if critique.failure else extract_answer(critique.text, trace.answer_pattern)
        for critique in critiques
    ]
    right = grader.grade(answers, [attempt.problem.expected for attempt in chosen.attempts])
    found = [
        _first_error(*row, trace) for row in zip(chosen.attempts, critiques, right, strict=True)
    ]
    return np.array([index for index, _ in found], np.int32), [who for _, who in found]


def _first_error(
    attempt: Attempt, critique: Context, is_right: bool, trace: TraceFormat
) -> tuple[int, str]:
    oracle = oracle_critique(attempt)
    text = oracle if oracle is not None else critique.text if is_right else None
    if text is None:
        return UNKNOWN, "unknown"
    first = first_difference(trace.steps(attempt.text), trace.steps(text))
    return NO_ERROR if first is None else first, "critique" if oracle is None else "oracle"
