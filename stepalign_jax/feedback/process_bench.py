# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How well critiques find the first error, on rows in ProcessBench's schema.

    {"id": "gsm8k-0", "generator": "Qwen2-7B", "problem": "...", "steps": ["...", "..."],
     "final_answer_correct": false, "label": 1}

`label` is the 0-based first wrong reasoning step, or -1 where all are right (Zheng et al.,
arXiv 2412.06559). The F1 is the harmonic mean of two accuracies, which are told apart: one
prompt may raise the one and lower the other, and leave F1 as it was.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.feedback.validate import measure
from stepalign_jax.problems.problem import Problem

ALL_RIGHT = -1
_TYPES = {
    "id": str,
    "generator": str,
    "problem": str,
    "steps": list,
    "final_answer_correct": bool,
    "label": int,
}


class ProcessScores(NamedTuple):
    """Shares in [0, 1]; None where no row is of that kind.

    Attributes:
      error_accuracy: of the rows with an error, how often it was named.
      correct_accuracy: of the rows without one, how often none was named.
      f1: their harmonic mean; None where one is None.
      no_verdict: rows without a usable critique; they count as wrong.
    """

    error_accuracy: float | None
    correct_accuracy: float | None
    f1: float | None
    no_verdict: int


def read_process_bench(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a JSON Lines file.

    Raises:
      UserError: the file cannot be read, or a row lacks a field or holds another type.
    """
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        for name, kind in _TYPES.items():
            if not isinstance(row, dict) or not isinstance(row.get(name), kind):
                raise UserError(
                    f"{path}, line {number}: {name} must be a {kind.__name__}; rows need "
                    f"ProcessBench's fields {', '.join(_TYPES)}."
                )
        if not all(isinstance(step, str) for step in row["steps"]):
            raise UserError(f"{path}, line {number}: steps must be a list of texts.")
        if not ALL_RIGHT <= row["label"] < len(row["steps"]):
            raise UserError(
                f"{path}, line {number}: label is {row['label']}, but it must be -1 or the "
                f"0-based index of one of the {len(row['steps'])} steps."
            )
    return rows


def as_attempt(row: Mapping[str, Any]) -> Attempt:
    """The row as a rollout in the paper's trace format (`<step_1>`); it states no answer."""
    steps = enumerate(row["steps"], start=1)
    text = "\n".join(f"<step_{i}>\n{step}\n</step_{i}>" for i, step in steps)
    return Attempt(Problem(row["problem"], "", None, "ProcessBench"), text)


def named_error(attempt: Attempt, critique: Context, trace: TraceFormat) -> int | None:
    """The label that a critique stands for; None where it failed."""
    if critique.failure is not None:
        return None
    first = measure(attempt, critique.text, trace).first_error
    # Reasoning steps put behind the last one finish the rollout; they call none wrong.
    return ALL_RIGHT if first is None or first >= len(trace.steps(attempt.text)) else first


def process_scores(labels: Sequence[int], named: Sequence[int | None]) -> ProcessScores:
    """Scores labels that were named against the true ones.

    Raises:
      ValueError: there is not one per row.
    """
    pairs = list(zip(labels, named, strict=True))

    def accuracy(of_errors: bool) -> float | None:
        hits = [label == said for label, said in pairs if (label != ALL_RIGHT) == of_errors]
        return sum(hits) / len(hits) if hits else None

    wrong, right = accuracy(True), accuracy(False)
    f1 = None
    if wrong is not None and right is not None:
        f1 = 2 * wrong * right / (wrong + right) if wrong + right else 0.0
    return ProcessScores(wrong, right, f1, sum(said is None for said in named))
