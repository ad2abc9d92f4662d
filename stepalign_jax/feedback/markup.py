# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
r"""Which tokens of a rollout are form and say nothing about the problem.

A character is markup if it is one of

    white space
    punctuation       . , ; : ? quotation marks, and their like in other scripts; but no
                      . , : between two digits, which belong to a number. Signs, operators
                      and brackets change what a formula says, so they are content
    an opening        all of a match of prompts.reasoning_step_pattern, and the closing tag
                      of one that is a tag
    an answer's tags  of a match of prompts.answer_pattern all but its group 1, and of the
                      group a \boxed{ } around the whole of it

and a token is markup if all of its characters are. One that writes nothing, such as the stop
token, is markup; tokens with parts of characters are what their run is.

With `Step \d+: ` and `Answer: (-?\d+)`, in tokens of one word or sign each:

    token     Step   1   :    47  +  24  =  71  .  \n  Answer  :    71  <end>
    markup      1    1   1     0  0   0  0   0  1   1     1    1     0    1
"""

import re
from collections.abc import Iterator, Sequence

from stepalign_jax.feedback.reasoning_steps import TraceFormat, closing_tag_pattern

_PUNCTUATION = ".,;:?\"'`“”‘’„«»…、。，；：？"
_IN_NUMBERS = re.compile(r"(?<=\d)[.,:](?=\d)")
_BOX = re.compile(r"(?s)\s*(\\boxed\s*\{).*(\})\s*")


def markup_tokens(
    text: str, spans: Sequence[tuple[int, int]], trace: TraceFormat
) -> list[bool]:
    """Returns whether each token is markup.

    Args:
      text: of a completion.
      spans: the characters that each token writes, see `huggingface.tokenizer.token_spans`.
      trace: how the text is read.
    """
    marked = markup_characters(text, trace)
    return [all(marked[start:end]) for start, end in spans]


def markup_characters(text: str, trace: TraceFormat) -> list[bool]:
    """Returns whether each character of `text` is markup."""
    marked = [char.isspace() or char in _PUNCTUATION for char in text]
    for match in _IN_NUMBERS.finditer(text):
        marked[match.start()] = False
    for start, end in _spans(text, trace):
        marked[start:end] = [True] * (end - start)
    return marked


def _spans(text: str, trace: TraceFormat) -> Iterator[tuple[int, int]]:
    """The places of openings, closing tags, and what stands around answers."""
    openings = list(re.finditer(trace.step_pattern, text))
    yield from (opening.span() for opening in openings)
    for pattern in {closing_tag_pattern(opening.group()) for opening in openings} - {None}:
        yield from (tag.span() for tag in re.finditer(str(pattern), text))
    for answer in re.finditer(trace.answer_pattern, text):
        start, end = answer.span(1)
        if start < 0:  # the group took no part
            continue
        yield answer.start(), start
        yield end, answer.end()
        if box := _BOX.fullmatch(text, start, end):
            yield box.span(1)
            yield box.span(2)
