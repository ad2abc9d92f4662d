# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which tokens are form: written out by hand, and for texts of any kind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import tiny_roles

from stepalign_jax.feedback.markup import markup_characters, markup_tokens
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.tiny.tokenizer import END, VOCABULARY, encode

WORDS = TraceFormat(r"Step \d+: ", r"Answer: (-?\d+)")
TAGS = TraceFormat(r"<step_\d+>", r"(?s)<answer>(.*?)(?:</answer>|(?=<answer>)|\Z)")


def shown(text: str, trace: TraceFormat) -> str:
    """The text with `_` for what is markup."""
    marked = markup_characters(text, trace)
    return "".join("_" if mark else char for char, mark in zip(text, marked, strict=True))


@pytest.mark.parametrize(
    ("text", "trace", "expected"),
    [
        ("Step 1: 3*8=24\nAnswer: -71", WORDS, "________3*8=24_________-71"),
        # A word of the opening elsewhere is a word.
        ("Step by step: 5", WORDS, "Step_by_step__5"),
        ("so 3.5, or 1,000. 2:1; f(x)=-x!", WORDS, "so_3.5__or_1,000__2:1__f(x)=-x!"),
        ("<step_1>a-b</step_1>", TAGS, "________a-b_________"),
        ("<step_1>a</step><step_2>b</step_1>", TAGS, "________a_______" + "________b_________"),
        ("<answer>\n\\boxed{7}\n</answer>", TAGS, "_" * 16 + "7" + "_" * 11),
        ("<answer>\\boxed{\\frac{1}{2}}", TAGS, "_" * 15 + "\\frac{1}{2}_"),
        ("<answer>x or \\boxed{7}</answer>", TAGS, "________x_or_\\boxed{7}_________"),
        # A tag that closes nothing is a text like any other.
        ("a</step_1>", TAGS, "a</step_1>"),
        ("数，学。", TAGS, "数_学_"),
        ("", TAGS, ""),
    ],
)
def test_characters_by_hand(text, trace, expected):
    assert shown(text, trace) == expected


def test_a_token_is_markup_if_all_of_its_characters_are():
    text = "Step 1: a.b"
    #       |  Step  | 1:a  |  a  |  ".b"  | nothing
    spans = [(0, 4), (5, 9), (8, 9), (9, 11), (11, 11)]
    assert markup_tokens(text, spans, WORDS) == [True, False, False, False, True]


def test_tokens_of_the_miniature():
    roles = tiny_roles()
    tokens = [*encode("Step 1: 47+24=71\nAnswer: 71"), VOCABULARY[END]]
    form = [1, *[0] * 8, 1, 1, 0, 0, 1]
    assert roles.markup(tokens) == [bool(mark) for mark in form]
    assert roles.markup([]) == []


@given(st.text(alphabet="<>/step_1answr \n.,:3-é数{}\\boxd"))
def test_any_text_has_a_mark_per_character(text):
    marked = markup_characters(text, TAGS)
    assert len(marked) == len(text)
    assert all(mark for mark, char in zip(marked, text, strict=True) if char.isspace())
