# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Finding the final answer in a completion."""

import functools
import re
from typing import NamedTuple

from stepalign_jax.base.errors import UserError

_BRACES = re.compile(r"\\(?:boxed|f(?:rame)?box)\s*\{|\\[{}\\]|[{}]")
# A box without braces: `\boxed 5`, `\boxed\frac12`, `\boxed\pi`.
_BARE_BOX = re.compile(
    r"\\boxed\s*(\\[dt]?frac(?:\{[^{}]*\}|\d){2}|-?\d[\d.,]*\d|-?\d|\\[A-Za-z]+|[A-Za-z])"
)
_BOX = re.compile(r"\\(?:boxed|f(?:rame)?box)\s*\{")


def strip_thinking(text: str) -> str | None:
    """Returns `text` without `<think>...</think>`; None if a block is not closed.

    A closing tag alone ends a block that the prompt had opened, so all before it goes.
    """
    told, start = [], 0
    while (opened := text.find("<think>", start)) >= 0:  # a regular expression takes its time
        if (closed := text.find("</think>", opened)) < 0:
            break
        told.append(text[start:opened])
        start = closed + len("</think>")
    text = ("".join(told) + text[start:]).rpartition("</think>")[2]
    return None if "<think>" in text else text


def extract_answer(text: str, pattern: str) -> str | None:
    r"""The final answer that `text` states, or None.

    It is group 1 of the last match of `pattern`, stripped. Where that is missing or
    empty it is the content of the last `\boxed{...}` or `\fbox{...}` that is not empty. A
    last box that is cut off is no answer, and no earlier box is one in its place. Nothing
    inside a thought is an answer. Matching is linear in the length of the text but for
    `pattern` itself.

    Raises:
      UserError: `pattern` is not a regular expression with a group.
    """
    compiled = _compile(pattern)
    told = strip_thinking(text)
    if told is None:
        return None
    answer = None
    for match in compiled.finditer(told):
        answer = match.group(1)
    answer = (answer or "").strip()
    if answer:
        return None if _is_cut_off(answer) else answer
    return _last_boxed(told)


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


class _Box(NamedTuple):
    opens: int  # of the backslash
    content: str


def _last_boxed(text: str) -> str | None:
    """Content of the box that opens last among the non-empty ones; None if it is cut off."""
    boxes, cut_off = _boxes(text)
    boxes = [box for box in boxes if box.content]
    last = max(boxes, key=lambda box: box.opens, default=None)
    return None if last is None or cut_off > last.opens else last.content


def _is_cut_off(text: str) -> bool:
    return _BOX.search(text) is not None and _last_boxed(text) is None


def _boxes(text: str) -> tuple[list[_Box], int]:
    """(all closed boxes, where the last open one opens or -1), in one pass.

    Escaped braces do not count.
    """
    open_braces: list[re.Match[str]] = []
    boxes = []
    for brace in _BRACES.finditer(text):
        token = brace.group()
        if token == "{" or (token.endswith("{") and len(token) > 2):
            open_braces.append(brace)
        elif token == "}" and open_braces:
            opening = open_braces.pop()
            if opening.group() != "{":
                content = text[opening.end() : brace.start()].strip()
                boxes.append(_Box(opening.start(), content))
    boxes += [_Box(match.start(), match[1]) for match in _BARE_BOX.finditer(text)]
    cut_off = [brace.start() for brace in open_braces if brace.group() != "{"]
    return boxes, max(cut_off, default=-1)
