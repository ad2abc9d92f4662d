# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the reasoning steps of a trace lie, in characters and in tokens.

Two trace formats, one parser: a reasoning step opens where the config's pattern matches
(`Step \\d+: ` or `<step_\\d+>`) and runs up to the next opening, the answer, or the end.

    text    Step 1: 3*8=24\\n Step 2: 47+24=71\\n Answer: 71
    spans   [0 ........... ) [1 ............ )
    tokens  Step 1: |3|*|8|=|2|4|\\n|Step 2: |4|7|+|2|4|=|7|1|\\n|Answer: |7|1|<eos>
    labels     0     0 0 0 0 0 0 0     1      1 1 1 1 1 1 1 1 1    -1    -1 -1  -1
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_TAG_NAME = re.compile(r"<([A-Za-z]+)")
_INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are not (yet) a character


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
    """Returns `body` without `</step_1>` (or `</step>`, `</step_2>`: models mix them up)."""
    tag = _TAG_NAME.search(opening)
    if tag is not None:
        body = re.sub(rf"</{tag.group(1)}\w*>?", "", body)
    return body.strip()


def token_offsets(
    token_ids: Sequence[int], decode: Callable[[list[int]], str]
) -> list[tuple[int, int]]:
    """Returns each token's characters [start, end) in `decode(token_ids)`.

    Starts and ends never decrease. A byte-level token may hold part of a character: all
    tokens that share one cover it. A token without text (a special one that decoding
    skips) gets an empty range where it stands.

    Tokens are decoded in groups that end where the text so far is whole, so the cost is
    linear. Where the groups do not add up to the text (a decoder that looks further
    back), one group of all tokens is exact, at quadratic cost.
    """
    ids = list(token_ids)
    groups = list(_whole_groups(ids, decode))
    text = decode(ids)
    if "".join(piece for _, piece in groups) != text:
        groups = [(ids, text)]
    offsets: list[tuple[int, int]] = []
    base = 0
    for group, piece in groups:
        for start, end in _offsets_in_group(group, piece, decode):
            offsets.append((base + start, base + end))
        base += len(piece)
    return offsets


def _whole_groups(
    ids: list[int], decode: Callable[[list[int]], str]
) -> Iterator[tuple[list[int], str]]:
    """Yields the shortest groups of tokens that end with a whole character, and their text."""
    group: list[int] = []
    piece = ""
    for token_id in ids:
        group.append(token_id)
        piece = decode(group)
        if not piece.endswith(_INCOMPLETE):
            yield group, piece
            group = []
    if group:
        yield group, piece


def _offsets_in_group(
    group: list[int], piece: str, decode: Callable[[list[int]], str]
) -> Iterator[tuple[int, int]]:
    """Yields the characters of `piece` that each token of `group` completes or is part of."""
    start = last_end = 0
    for count in range(1, len(group) + 1):
        prefix = decode(group[:count])
        complete = max(start, _common_length(prefix, piece))
        partial = complete < len(prefix)  # the token ends inside the next character
        last_end = max(last_end, min(len(piece), complete + partial))
        yield start, last_end
        start = complete


def _common_length(a: str, b: str) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def token_spans(
    offsets: Sequence[tuple[int, int]], reasoning_steps: Sequence[ReasoningStep]
) -> list[tuple[int, int]]:
    """Returns the tokens [first, last) of each reasoning step: ordered and disjoint.

    A token that touches two reasoning steps goes to the earlier one, a token that touches
    only one goes to it, so that every character of a reasoning step lies in a token of
    some reasoning step. If all its characters lie in an earlier one's tokens, a
    reasoning step is left with an empty range.

    Args:
      offsets: each token's characters, from `token_offsets`; neither column decreases.
      reasoning_steps: those of the same text.
    """
    starts = [start for start, _ in offsets]
    # A token without text counts as touching the character it stands before.
    ends = [max(end, start + 1) for start, end in offsets]
    spans: list[tuple[int, int]] = []
    last = 0
    for reasoning_step in reasoning_steps:
        first = max(last, bisect_right(ends, reasoning_step.start))
        last = max(first, bisect_left(starts, reasoning_step.end))
        spans.append((first, last))
    return spans


def label_tokens(
    offsets: Sequence[tuple[int, int]], reasoning_steps: Sequence[ReasoningStep]
) -> list[int]:
    """Returns each token's reasoning step index, or -1 outside of all of them."""
    labels = [-1] * len(offsets)
    spans = token_spans(offsets, reasoning_steps)
    for reasoning_step, (first, last) in zip(reasoning_steps, spans, strict=True):
        labels[first:last] = [reasoning_step.index] * (last - first)
    return labels
