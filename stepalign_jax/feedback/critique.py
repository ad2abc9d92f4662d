# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Critiques: which are fit to be a teacher's context, and how much they copy.

A critique is a corrected trace in the solver's own format. One that fails keeps its text
(it is stored and shown) and names a reason; its rollout is masked out of the loss and
counted under that reason.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from stepalign_jax.feedback.reasoning_steps import ReasoningStep, parse_reasoning_steps
from stepalign_jax.grading.answers import extract_answer

# Why a rollout has no context. In the order in which they are looked for.
FAILURES: dict[str, str] = {
    "prompt_too_long": "the critic's prompt leaves no room for critic.max_new_tokens",
    "truncated_thinking": "ended inside <think>, most often by the token budget",
    "truncated": "the token budget ended the critique",
    "empty": "nothing but whitespace",
    "unparsable": "no reasoning step, or no answer",
    "wrong_answer": "ends in another answer than the expected one",
    "too_long": "over prompts.max_context_tokens",
    "no_reference": "the problem has no reference solution",
    "no_other_problem": "no valid critique of another problem in the batch",
}

# (answers, expected answers) -> which are right; `problems.grading.Grader.grade`.
Grade = Callable[[list[str | None], list[str]], list[bool]]


@dataclass(frozen=True)
class Critique:
    """A teacher's context for one rollout: a critique, or what stands in its place.

    Attributes:
      text: what the teacher would read. Only for the eye if `failure` is set.
      failure: a name from `FAILURES`, or None.
    """

    text: str
    failure: str | None


def strip_thinking(text: str) -> str | None:
    """Returns `text` without `<think>...</think>`; None if a block is not closed.

    A closing tag alone ends a block that the prompt had opened, so all before it goes.
    """
    text = re.sub(r"(?s)<think>.*?</think>", "", text)
    text = text.rpartition("</think>")[2]
    return None if "<think>" in text else text


def validate_critique(
    text: str, finished: bool, *, thinking_open: bool, step_pattern: str, answer_pattern: str
) -> Critique:
    """Returns the critique without thinking, or with the first failure of its form.

    Args:
      text: the critic's completion.
      finished: False where the token budget ended it.
      thinking_open: whether the prompt ended inside a thought: then the completion holds no
        `<think>`, and is nothing but thought until a `</think>`.
      step_pattern: opens a reasoning step.
      answer_pattern: its group 1 is the answer.
    """
    stripped = strip_thinking(f"<think>{text}" if thinking_open else text)
    if stripped is None:
        return Critique(text, "truncated_thinking")
    critique = Critique(stripped.strip(), None)
    if not finished:
        return replace(critique, failure="truncated")
    if not critique.text:
        return replace(critique, failure="empty")
    answer = extract_answer(critique.text, answer_pattern)
    if not answer or not parse_reasoning_steps(critique.text, step_pattern, answer_pattern):
        return replace(critique, failure="unparsable")
    return critique


def require_answers(
    critiques: Sequence[Critique],
    expected_answers: Sequence[str],
    *,
    answer_pattern: str,
    grade: Grade,
) -> list[Critique]:
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


def fit_budget(
    contexts: Sequence[Critique], count_tokens: Callable[[str], int], budget: int
) -> list[Critique]:
    """Returns the contexts, those over `budget` tokens failed as `too_long`, never cut."""
    return [
        replace(context, failure="too_long")
        if context.failure is None and count_tokens(context.text) > budget
        else context
        for context in contexts
    ]


def count_failures(critiques: Sequence[Critique]) -> dict[str, int]:
    """Returns how often each failure occurs, with a 0 for those that do not."""
    counts = Counter(critique.failure for critique in critiques)
    return {name: counts[name] for name in FAILURES}


class CopyStatistics(NamedTuple):
    """How a critique follows an attempt. Reasoning steps are equal up to whitespace.

    Attributes:
      num_copied: leading reasoning steps of the attempt that the critique repeats.
      first_changed: index of the first reasoning step of the attempt that it does not:
        the first error as the critic sees it, or the place of an insertion. None if the
        whole attempt is repeated, also when the critique goes on after it.
      quotes_changed: whether the critique nevertheless contains its words as they were,
        outside of the reasoning steps it copied.
    """

    num_copied: int
    first_changed: int | None
    quotes_changed: bool


def copy_statistics(
    attempt_steps: Sequence[ReasoningStep],
    critique_steps: Sequence[ReasoningStep],
    critique_text: str,
) -> CopyStatistics:
    """Returns what a critique copies of an attempt.

    Args:
      attempt_steps: reasoning steps of the rollout.
      critique_steps: reasoning steps parsed from `critique_text`.
      critique_text: the critique; a quotation may also stand outside of reasoning steps.
    """
    copied = 0
    for attempted, repeated in zip(attempt_steps, critique_steps, strict=False):
        if _squeeze(attempted.text) != _squeeze(repeated.text):
            break
        copied += 1
    if copied == len(attempt_steps):
        return CopyStatistics(copied, None, False)
    # An attempt may repeat itself: what is copied is no quotation of the changed one.
    rest = critique_text
    if copied:
        before, after = critique_steps[0].start, critique_steps[copied - 1].end
        rest = critique_text[:before] + "\n" + critique_text[after:]
    return CopyStatistics(copied, copied, _quotes(rest, attempt_steps[copied].text))


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _quotes(text: str, words: str) -> bool:
    """True if `words` stand in `text` by themselves: 3*8=2 is not quoted by 3*8=24."""
    words = _squeeze(words)
    pattern = rf"(?<!\w)(?<!\d\.){re.escape(words)}(?!\w|\.\d)"
    return bool(words) and re.search(pattern, _squeeze(text)) is not None
