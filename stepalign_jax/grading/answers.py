# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Finding the final answer in a completion."""

import functools
import re
from typing import NamedTuple

from stepalign_jax.base.errors import UserError

MAX_WRAPPERS = 4  # of an answer, as in `$\\boxed{$7$}$`


_BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")


_MATH_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


def extract_answer(text: str, pattern: str) -> str | None:
    r"""The final answer that `text` states, or None.

    It is group 1 of the last match of `pattern`, stripped. Where that is missing or
    empty it is the content of the last `\boxed{...}` whose braces balance and which is
    not empty. Matching is linear in the length of the text but for `pattern` itself.

    Raises:
      UserError: `pattern` is not a regular expression with a group.
    """
    answer = None
    for match in _compile(pattern).finditer(text):
        answer = match.group(1)
    return (answer or "").strip() or _last_boxed(text)


@functools.lru_cache
def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"prompts.answer_pattern {pattern!r} is no regex: {error}") from error
    if compiled.groups < 1:
        raise UserError(
            f"prompts.answer_pattern {pattern!r} needs a group (...) around the answer"
        )
    return compiled


def _last_boxed(text: str) -> str | None:
    """Content of the `\\boxed{...}` that opens last among the closed, non-empty ones."""
    boxes = [box for box in _boxes(text) if text[box.start : box.end].strip()]
    last = max(boxes, key=lambda box: box.start, default=None)
    return None if last is None else text[last.start : last.end].strip()


class _Box(NamedTuple):
    opens: int  # of the backslash
    start: int  # of the content
    end: int  # of the content, exclusive


def _boxes(text: str) -> list[_Box]:
    """All `\\boxed{...}` with balanced braces, in one pass; escaped braces do not count."""
    open_braces: list[re.Match[str]] = []
    boxes = []
    for brace in _BRACES.finditer(text):
        token = brace.group()
        if token == "{" or token.startswith("\\boxed"):
            open_braces.append(brace)
        elif token == "}" and open_braces:
            opening = open_braces.pop()
            if opening.group() != "{":
                boxes.append(_Box(opening.start(), opening.end(), brace.start()))
    return boxes


def normalize(answer: str) -> str:
    """`answer` out of its math delimiters and `\\boxed{}`, with single spaces, none outside."""
    answer = " ".join(answer.split())
    for _ in range(MAX_WRAPPERS):
        answer = _peel(answer).strip()
    return answer


def _peel(answer: str) -> str:
    for left, right in _MATH_DELIMITERS:
        inner = answer[len(left) : -len(right)]
        is_wrapped = answer.startswith(left) and answer.endswith(right)
        if is_wrapped and inner and left not in inner and right not in inner:
            return inner
    if answer.startswith("\\boxed") and answer.endswith("}"):
        for box in _boxes(answer):
            if box.opens == 0 and box.end == len(answer) - 1:
                return answer[box.start : box.end]
    return answer
