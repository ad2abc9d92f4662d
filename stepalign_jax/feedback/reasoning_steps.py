# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the reasoning steps of a trace lie, in characters.

Two trace formats, one parser: a reasoning step opens where the config's pattern matches
(`Step \\d+: ` or `<step_\\d+>`) and runs up to the next opening, the answer, or the end.

    text    Step 1: 3*8=24\\n Step 2: 47+24=71\\n Answer: 71
    spans   [0 ........... ) [1 ............ )
"""

import re
from typing import NamedTuple

_TAG_NAME = re.compile(r"<([A-Za-z]+)")


class ReasoningStep(NamedTuple):
    """One reasoning step of a trace.

    Attributes:
      index: 0-based place in the trace; the number written in the trace is not trusted.
      start: first character, that of the opening.
      end: one past the last character; whitespace and closing tag belong to the span.
      text: the body: no opening, no closing tag, no surrounding whitespace.
    """

    index: int
    start: int
    end: int
    text: str


class TraceFormat(NamedTuple):
    """How a run's traces are read; see `PromptsConfig`."""

    step_pattern: str
    answer_pattern: str

    def steps(self, text: str) -> list[ReasoningStep]:
        """The reasoning steps of `text`, see `parse_reasoning_steps`."""
        return parse_reasoning_steps(text, self.step_pattern, self.answer_pattern)


def with_body(text: str, step: ReasoningStep, body: str) -> str:
    """Returns `text` with other words in a reasoning step of it; its opening and tag stay.

    The places of the reasoning steps behind it no longer hold: change the last one first.
    """
    if not step.text:
        return text
    span = text[step.start : step.end].replace(step.text, body, 1)
    return text[: step.start] + span + text[step.end :]


def parse_reasoning_steps(
    text: str, step_pattern: str, answer_pattern: str
) -> list[ReasoningStep]:
    """Returns the reasoning steps of `text`, in order and disjoint; [] if it has none.

    Tags may be left open. An answer that no `answer_pattern` matches but that opens with
    `<answer>` (say, cut off by the token budget) still ends a reasoning step. Never
    raises for any text; the patterns are taken as checked (`prompts.check_templates`).
    """
    openings = list(re.finditer(step_pattern, text))
    limits = [*(opening.start() for opening in openings), len(text)][1:]
    found: list[ReasoningStep] = []
    for opening, limit in zip(openings, limits, strict=True):
        end = min(limit, _answer_start(text, opening.end(), answer_pattern))
        if end > opening.start():
            body = _without_closing_tag(text[opening.end() : end], opening.group())
            found.append(ReasoningStep(len(found), opening.start(), end, body))
    return found


def _answer_start(text: str, position: int, answer_pattern: str) -> int:
    """Returns where the next answer from `position` on begins, or the length of `text`."""
    match = re.compile(answer_pattern).search(text, position)
    tag = text.find("<answer>", position)
    found = [match.start()] if match else []
    return min([*found, tag if tag >= 0 else len(text)])


def _without_closing_tag(body: str, opening: str) -> str:
    """Returns `body` without its closing tag."""
    pattern = closing_tag_pattern(opening)
    return (re.sub(pattern, "", body) if pattern else body).strip()


def closing_tag_pattern(opening: str) -> str | None:
    """A regex of what closes `<step_1>`; None if the opening is no tag.

    It takes `</step_1>`, `</step>` and `</step_2>`: models mix them up.
    """
    tag = _TAG_NAME.search(opening)
    return None if tag is None else rf"</{tag.group(1)}\w*>?"
