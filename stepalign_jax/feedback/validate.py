# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a critique did to the rollout, read from the two texts alone.

    rollout     Step 1: 3*8=24 | Step 2: 47+24=61 | Step 3: 61-12=49 | Answer: 49
    critique    Step 1: 3*8=24 | Step 2: 47+24=71 | Step 3: 71-12=59 | Answer: 59
                copied, word     first error = 1     redone
                for word

Two reasoning steps say the same if the sides of their equations agree, in any order and in any
words around them; without mathematics, if their words agree. A correction of words beside the
same mathematics ("is prime", "is not prime") is therefore not seen.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.names import nearest
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.mathematics import NUMBER, RESULT, sides
from stepalign_jax.feedback.reasoning_steps import ReasoningStep, TraceFormat
from stepalign_jax.grading.answers import extract_answer

_WORD = re.compile(r"\w+|[^\w\s]")
_MARKUP = re.compile(r"</?[A-Za-z]\w*>|<\|[^|<>\n]{0,40}\|>|```|\*\*|(?m:^#{1,6} )")
_LEAK = re.compile(
    r"(?i)\b(?:expected|reference|given|provided|known|official|ground.truth)"
    r"[ -](?:final[ -])?(?:answer|solution)\b"
)
# Constants that any solver may write down.
_FREE_NUMBERS = frozenset(map(str, [*range(11), 100, 1000]))


class Measures(NamedTuple):
    """What a critique did to a rollout.

    Attributes:
      case: "A" nothing changed, "B" reasoning steps were put in and the answer stands, "C" the
        rollout was finished or shortened, "D" a reasoning step, or the answer, was replaced.
      first_error: 0-based reasoning step of the rollout that the critique first changes, or
        before which it puts one in; None where it changes none.
      answer: the critique's final answer.
      copy_fidelity: share of words that agree, of the reasoning steps before `first_error`;
        None where there are none.
      quotes_error: whether the replaced reasoning step stands in the critique all the same.
      invented: numbers of the new reasoning steps that are neither in the problem, nor in the
        rollout, nor computed before.
      foreign: text and markup that the trace format does not have.
      leaks: whether it names an answer or solution that the solver was not shown.
    """

    case: str
    first_error: int | None
    answer: str | None
    copy_fidelity: float | None
    quotes_error: bool
    invented: tuple[str, ...]
    foreign: tuple[str, ...]
    leaks: bool


CHECKS: dict[str, Callable[[Measures], bool]] = {
    "foreign_markup": lambda measures: bool(measures.foreign),
    "quoted_error": lambda measures: measures.quotes_error,
    "answer_leaked": lambda measures: measures.leaks,
    "invented_number": lambda measures: bool(measures.invented),
}


def check_names(names: Sequence[str]) -> None:
    """Refuses a name of `critiques.checks` that is no check.

    Raises:
      UserError: names the nearest check.
    """
    for name in names:
        if name not in CHECKS:
            raise UserError(
                f"critiques.checks has no check {name!r}; the nearest is "
                f"{nearest(name, CHECKS)!r} of {', '.join(CHECKS)}."
            )


def accept(
    attempt: Attempt,
    critique: Context,
    trace: TraceFormat,
    *,
    checks: Sequence[str],
    min_copy_fidelity: float,
) -> Context:
    """Returns the critique, failed by the first of `checks` that finds something.

    One that failed before passes unchanged.
    """
    if critique.failure is not None:
        return critique
    found = measure(attempt, critique.text, trace)
    for name, finds in CHECKS.items():
        if name in checks and finds(found):
            return replace(critique, failure=name)
    if found.copy_fidelity is not None and found.copy_fidelity < min_copy_fidelity:
        return replace(critique, failure="low_fidelity")
    return critique


def measure(attempt: Attempt, critique: str, trace: TraceFormat) -> Measures:
    """Returns what `critique` did to the rollout; never raises, whatever the texts."""
    ours, theirs = trace.steps(attempt.text), trace.steps(critique)
    first = first_changed(ours, theirs)
    answers = [extract_answer(text, trace.answer_pattern) for text in (attempt.text, critique)]
    case = _case(ours, theirs, first, answers)
    copied = len(ours) if first is None else first
    return Measures(
        case=case,
        first_error=first,
        answer=answers[1],
        copy_fidelity=_fidelity(ours[:copied], theirs[:copied]),
        quotes_error=case == "D" and _quotes(ours, theirs, first),
        invented=_invented(attempt, theirs, copied),
        foreign=_foreign(attempt.text, critique, theirs, trace),
        leaks=_LEAK.search(critique) is not None,
    )


def first_changed(ours: Sequence[ReasoningStep], theirs: Sequence[ReasoningStep]) -> int | None:
    """Returns the index of the first reasoning step that says something else, or None.

    Other words for the same mathematics are no change (`controls.first_difference` counts them
    as one). A reasoning step that one side lacks is a change.
    """
    for index, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if not _says_the_same(our.text, their.text):
            return index
    shorter = min(len(ours), len(theirs))
    return None if len(ours) == len(theirs) else shorter


def _says_the_same(a: str, b: str) -> bool:
    if a.split() == b.split():
        return True
    ours, theirs = sides(a), sides(b)
    if ours or theirs:
        return ours == theirs
    words = [re.findall(r"\w+", text.casefold()) for text in (a, b)]
    return bool(words[0]) and words[0] == words[1]


def _case(
    ours: Sequence[ReasoningStep],
    theirs: Sequence[ReasoningStep],
    first: int | None,
    answers: Sequence[str | None],
) -> str:
    same_answer = answers[0] is not None and answers[0] == answers[1]
    if first is None:
        return "A" if same_answer else "C" if answers[0] is None else "D"
    if same_answer and len(theirs) > len(ours) and _is_subsequence(ours, theirs):
        return "B"
    stops = first == len(ours)
    return "C" if answers[0] is None or stops or first == len(theirs) else "D"


def _is_subsequence(ours: Sequence[ReasoningStep], theirs: Sequence[ReasoningStep]) -> bool:
    rest = iter(theirs)
    return all(any(_says_the_same(our.text, their.text) for their in rest) for our in ours)


def _fidelity(ours: Sequence[ReasoningStep], theirs: Sequence[ReasoningStep]) -> float | None:
    if not ours or not theirs:
        return None
    words = [_WORD.findall(" ".join(step.text for step in steps)) for steps in (ours, theirs)]
    return SequenceMatcher(None, words[0], words[1], autojunk=False).ratio()


def _quotes(
    ours: Sequence[ReasoningStep], theirs: Sequence[ReasoningStep], first: int | None
) -> bool:
    if first is None or first >= len(ours) or len(ours[first].text) < 3:
        return False
    wrong = re.escape("".join(ours[first].text.split()))
    rest = ("".join(step.text.split()) for step in theirs[first:])
    return any(re.search(rf"(?<![\d.]){wrong}(?!\d)", text) for text in rest)


def _invented(
    attempt: Attempt, theirs: Sequence[ReasoningStep], copied: int
) -> tuple[str, ...]:
    shown = [attempt.problem.text, attempt.text, *(step.text for step in theirs[:copied])]
    known = {*_FREE_NUMBERS, *NUMBER.findall(" ".join(shown))}
    invented = []
    for step in theirs[copied:]:
        known.update(RESULT.findall(step.text))
        numbers = NUMBER.findall(step.text)
        invented += [number for number in numbers if number not in known]
        known.update(numbers)
    return tuple(invented)


def _foreign(
    rollout: str, critique: str, theirs: Sequence[ReasoningStep], trace: TraceFormat
) -> tuple[str, ...]:
    own = {_digitless(mark) for mark in _MARKUP.findall(rollout)}
    # A tag's closing counts with it, and the answer's in a format that has tags.
    own |= {mark.replace("<", "</") for mark in own}
    if re.search(trace.step_pattern, "<step_1>"):
        own |= {"<step_N>", "</step_N>", "<answer>", "</answer>"}
    found = [mark for mark in _MARKUP.findall(critique) if _digitless(mark) not in own]
    ends = [match.end() for match in re.finditer(trace.answer_pattern, critique)]
    outside = [critique[: theirs[0].start] if theirs else critique]
    outside += [critique[max(ends) :]] if ends else []
    found += [text.strip() for text in outside if _MARKUP.sub("", text).strip()]
    return tuple(found)


def _digitless(mark: str) -> str:
    return re.sub(r"\d+", "N", mark)
