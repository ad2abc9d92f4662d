# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From what was stored of a critic to critiques: form first, then the final answer."""

from collections.abc import Sequence

from stepalign_jax.config.schema import PromptsConfig
from stepalign_jax.critics.store import ANSWERED, StoredCritique
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.critique import Grade, require_answers, validate_critique


def judge(
    rows: Sequence[StoredCritique | None],
    attempts: Sequence[Attempt],
    prompts: PromptsConfig,
    grade: Grade,
    *,
    accepts: str,
    absent: str,
) -> list[Context]:
    """Returns one critique per row; where there is none, it fails as `absent`.

    The answer is checked where the critic was shown it and `accepts` asks for a trace.
    """
    critiques = [
        Context("", absent) if row is None else _form(row, prompts, accepts) for row in rows
    ]
    checked = [
        i
        for i, row in enumerate(rows)
        if accepts == "trace" and row and row.sees_answer and not row.judged
    ]
    found = require_answers(
        [critiques[i] for i in checked],
        [attempts[i].problem.answer for i in checked],
        answer_pattern=prompts.answer_pattern,
        grade=grade,
    )
    for i, critique in zip(checked, found, strict=True):
        critiques[i] = critique
    return critiques


def _form(row: StoredCritique, prompts: PromptsConfig, accepts: str) -> Context:
    if row.judged or row.outcome not in ANSWERED:
        return Context(row.text, None if row.outcome == "ok" else row.outcome)
    return validate_critique(
        row.text,
        row.outcome == "ok",
        accepts=accepts,
        thinking_open=False,  # a thought that the prompt opened ends in a lone closing tag
        step_pattern=prompts.reasoning_step_pattern,
        answer_pattern=prompts.answer_pattern,
    )
