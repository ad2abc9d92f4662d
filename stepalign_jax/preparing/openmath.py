# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""nvidia/OpenMathReasoning: which of its rows are problems to train on.

Its columns are text, but for `used_in_kaggle`. Several rows share a problem, each with another
solution. What is read of them:

    problem               the question
    problem_type          has_answer_extracted; no_answer_extracted: models voted on an answer;
                          converted_proof: the task was to prove the answer
    expected_answer       of the question
    pass_rate_72b_tir     how often a 72B model with tools is right: "0.96875", or "n/a"
    generated_solution    <think>...</think> and a worked solution
"""

import math

from stepalign_jax.grading.answers import strip_thinking
from stepalign_jax.preparing.records import (
    FieldError,
    Record,
    Records,
    check_columns,
    question_field,
    rows_of,
    text_field,
)
from stepalign_jax.preparing.rows import Dropped, Row, Source

HUB_NAME, HUB_SPLIT = "nvidia/OpenMathReasoning", "cot"
LICENCE = "CC-BY-4.0"
UNKNOWN_RATE = "n/a"
COLUMNS = (
    *("problem", "problem_type", "expected_answer", "pass_rate_72b_tir"),
    "generated_solution",
)
_FILTER_OF_TYPE = {
    "has_answer_extracted": None,
    "converted_proof": "proofs",
    "no_answer_extracted": "voted_answers",
}
FILTERS = ("proofs", "voted_answers", "answerless", "pass_rate_unknown", "pass_rate")


def openmath_source(records: Records, *, pass_rate_above: float, keep_thinking: bool) -> Source:
    """The problems of OpenMathReasoning, or of files with its columns.

    Args:
      records: of the data set.
      pass_rate_above: what a problem's pass rate must be above.
      keep_thinking: whether a reference keeps what its solution holds in <think>...</think>.

    Raises:
      UserError: it lacks one of the columns.
    """
    check_columns(records, dict.fromkeys(COLUMNS, ""))

    def take(record: Record, where: str) -> Row | Dropped:
        # Every field is looked at first: whether a row is bad depends on no filter.
        problem = question_field(record, "problem")
        kind = text_field(record, "problem_type")
        if kind not in _FILTER_OF_TYPE:
            raise FieldError("problem_type", f"unknown: {kind[:40]!r}")
        answer = _optional(record, "expected_answer")
        rate = _pass_rate(record)
        solution = _optional(record, "generated_solution")
        if (taken_out := _FILTER_OF_TYPE[kind]) is not None:
            return Dropped(taken_out)
        if not answer:
            return Dropped("answerless")
        if rate is None:
            return Dropped("pass_rate_unknown")
        if rate <= pass_rate_above:
            return Dropped("pass_rate")
        if not keep_thinking:
            # One that ends inside its thought is no worked solution.
            solution = (strip_thinking(solution) or "").strip()
        return Row(problem, answer, solution or None, where=where)

    return Source(
        name="openmath",
        parts=records.parts,
        read=rows_of(records, COLUMNS, take),
        filters=FILTERS,
        details=records.details,
        licence=LICENCE,
        identity=f"{records.identity} {pass_rate_above} {keep_thinking}",
    )


def _optional(record: Record, field: str) -> str:
    """A text; "" for null."""
    return "" if record.get(field, "") is None else text_field(record, field)


def _pass_rate(record: Record) -> float | None:
    text = text_field(record, "pass_rate_72b_tir")
    if text == UNKNOWN_RATE:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1:
        raise FieldError(
            "pass_rate_72b_tir", f"{text[:40]!r} is no share, nor {UNKNOWN_RATE!r}"
        )
    return rate
