# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which critiques are fit to be a teacher's context.

A critique is a corrected trace in the solver's own format, or any text where `critic.accepts`
says so. One that fails keeps its text (it is stored and shown) and names a reason; its rollout
is masked out of the loss and counted under that reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from stepalign_jax.feedback.contexts import Context
from stepalign_jax.feedback.reasoning_steps import parse_reasoning_steps
from stepalign_jax.grading.answers import extract_answer, strip_thinking
from stepalign_jax.problems.problem import Expected

# (answers, expected answers) -> which are right; `grading.grader.Grader.grade`.
Grade = Callable[[list[str | None], list[Expected]], list[bool]]


def validate_critique(
    text: str,
    finished: bool,
    *,
    accepts: str,
    thinking_open: bool,
    step_pattern: str,
    answer_pattern: str,
) -> Context:
    """Returns the critique without thinking, or with the first failure of its form.

    Args:
      text: the critic's completion.
      finished: False where the token budget ended it.
      accepts: `critic.accepts`: "trace" asks for reasoning steps and an answer, "any" for text.
      thinking_open: whether the prompt ended inside a thought: then the completion holds no
        `<think>`, and is nothing but thought until a `</think>`.
      step_pattern: opens a reasoning step.
      answer_pattern: its group 1 is the answer.
    """
    stripped = strip_thinking(f"<think>{text}" if thinking_open else text)
    if stripped is None:
        return Context(text, "truncated_thinking")
    critique = Context(stripped.strip(), None)
    if not finished:
        return replace(critique, failure="truncated")
    if not critique.text:
        return replace(critique, failure="empty")
    if accepts == "any":
        return critique
    answer = extract_answer(critique.text, answer_pattern)
    if not answer or not parse_reasoning_steps(critique.text, step_pattern, answer_pattern):
        return replace(critique, failure="unparsable")
    return critique


def require_answers(
    critiques: Sequence[Context],
    expected_answers: Sequence[Expected],
    *,
    answer_pattern: str,
    grade: Grade,
) -> list[Context]:
    """Returns the critiques, those with another answer failed as `wrong_answer`.

    Only for a critic that is shown the answer: for one that has to find it, this check
    would leak the answer into the choice of contexts. Failed critiques pass unchanged.
    """
    valid = [i for i, critique in enumerate(critiques) if critique.failure is None]
    answers = [extract_answer(critiques[i].text, answer_pattern) for i in valid]
    right = grade(answers, [expected_answers[i] for i in valid])
    wrong = {i for i, is_right in zip(valid, right, strict=True) if not is_right}
    return [
        replace(critique, failure="wrong_answer") if i in wrong else critique
        for i, critique in enumerate(critiques)
    ]
