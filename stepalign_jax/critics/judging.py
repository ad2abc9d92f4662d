# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From what was stored of a critic to critiques: form first, then the final answer."""

from collections.abc import Sequence

from stepalign_jax.config.schema import PromptsConfig
from stepalign_jax.critics.protocol import CriticReply, Usage, outcomes
from stepalign_jax.critics.store import ANSWERED, StoredCritique
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.critique import Grade, require_answers, validate_critique


def reply_of(
    rows: Sequence[StoredCritique | None],
    attempts: Sequence[Attempt],
    prompts: PromptsConfig,
    grade: Grade,
    *,
    accepts: str,
    absent: str,
    num_asked: int,
    from_store: int,
) -> CriticReply:
    """Returns what a critic that stores its answers says of some attempts.

    Args:
      rows: one per attempt; None where there is no answer.
      attempts: the rollouts.
      prompts: the run's patterns.
      grade: judges answers.
      accepts: `critic.accepts`.
      absent: how an attempt without a row fails.
      num_asked: see `Usage.asked`.
      from_store: see `Usage.from_store`.
    """
    critiques = _judge(rows, attempts, prompts, grade, accepts, absent)
    given = [row for row in rows if row and row.outcome in ANSWERED]
    return CriticReply(
        critiques,
        [row.tokens for row in given],
        [row.outcome == "ok" for row in given],
        outcomes(critiques),
        Usage(sum(row.cost for row in rows if row), num_asked, from_store),
    )


def _judge(
    rows: Sequence[StoredCritique | None],
    attempts: Sequence[Attempt],
    prompts: PromptsConfig,
    grade: Grade,
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
        [attempts[i].problem.expected for i in checked],
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
