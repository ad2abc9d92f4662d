# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Reasoning steps: hand-worked traces in both formats, and properties of the spans."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign_jax.feedback.reasoning_steps import (
    ReasoningStep,
    label_tokens,
    parse_reasoning_steps,
    token_offsets,
    token_spans,
)

LINES = (r"Step \d+: ", r"Answer: (.*)")
TAGS = (r"<step_\d+>", r"(?s)<answer>(.*?)</answer>")
PATTERNS = st.sampled_from([LINES, TAGS, (r"(?=<step)", r"\\boxed\{(.*)\}"), ("x*", "(y)")])
# Text out of the formats' own pieces, so that openings, answers and tags do meet.
OPENINGS = ["Step 1: ", "Step 22: ", "<step_1>", "<step_"]
ANSWERS = ["Answer: 7", "<answer>", "</answer>", "\\boxed{3}"]
WORDS = ["</step_1>", "</", "\n", " ", "x", "∑é", "3*8=24", "🙂"]
TRACES = st.lists(st.sampled_from(OPENINGS + ANSWERS + WORDS), max_size=12).map("".join)


def spans_and_bodies(text: str, patterns: tuple[str, str]) -> list[tuple[str, str]]:
    found = parse_reasoning_steps(text, *patterns)
    return [(text[s.start : s.end], s.text) for s in found]


def test_line_format():
    text = "Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71"
    assert parse_reasoning_steps(text, *LINES) == [
        ReasoningStep(0, 0, 15, "3*8=24"),
        ReasoningStep(1, 15, 32, "47+24=71"),
    ]


def test_tag_format():
    text = "<step_1>\n a=1 \n</step_1>\n<step_2>b=2</step_2><answer>3</answer>"
    assert spans_and_bodies(text, TAGS) == [
        ("<step_1>\n a=1 \n</step_1>\n", "a=1"),
        ("<step_2>b=2</step_2>", "b=2"),
    ]


@pytest.mark.parametrize(
    ("patterns", "text", "bodies"),
    [
        pytest.param(LINES, "", [], id="empty"),
        pytest.param(LINES, "just 47+24=71", [], id="no opening"),
        pytest.param(LINES, "Well. Step 1: a", ["a"], id="words before the first opening"),
        pytest.param(LINES, "Step 1: a\nStep 2: ", ["a", ""], id="cut off after an opening"),
        pytest.param(LINES, "Step 1: a\nStep 1: b", ["a", "b"], id="number repeated"),
        pytest.param(LINES, "Answer: 5\nStep 1: a\nAnswer: 6", ["a"], id="answer first"),
        pytest.param(TAGS, "<step_1>a<step_2>b<answer>3</answer>", ["a", "b"], id="left open"),
        pytest.param(TAGS, "<step_1>a</step_2><step_2>b</step>", ["a", "b"], id="mixed up"),
        pytest.param(TAGS, "<step_1>a</step_1>b<answer>3", ["ab"], id="words after closing"),
        pytest.param(TAGS, "<step_1>a</step_1><answer>3", ["a"], id="answer cut off"),
        pytest.param(TAGS, "<step_1>a</ste", ["a</ste"], id="closing tag cut off"),
        pytest.param(TAGS, "<step_1>a</step_", ["a"], id="closing tag cut off late"),
        pytest.param(TAGS, "<step_1>x<y and </b>", ["x<y and </b>"], id="other tags kept"),
    ],
)
def test_malformed_traces(patterns: tuple[str, str], text: str, bodies: list[str]):
    assert [body for _, body in spans_and_bodies(text, patterns)] == bodies


@given(st.one_of(TRACES, st.text(max_size=40)), PATTERNS)
def test_spans_are_ordered_and_disjoint_for_any_text(text: str, patterns: tuple[str, str]):
    found = parse_reasoning_steps(text, *patterns)
    assert [s.index for s in found] == list(range(len(found)))
    assert all(0 <= s.start < s.end <= len(text) for s in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    # A missing tag is tolerated; a body never invents words.
    assert all(s.text in text[s.start : s.end] or "</" in text for s in found)


class ByteTokens:
    """Tokens that are arbitrary byte strings, as a byte-level vocabulary has them."""

    def __init__(self, pieces: list[bytes]):
        self.pieces = pieces
        self.ids = list(range(len(pieces)))

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


@st.composite
def byte_tokens(draw: st.DrawFn) -> ByteTokens:
    """A trace cut into tokens at any bytes; an empty token is a skipped special one."""
    data = draw(TRACES).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=2 * len(data))))
    bounds = itertools.pairwise([0, *cuts, len(data)])
    return ByteTokens([data[a:b] for a, b in bounds])


def test_labels_of_a_trace():
    pieces = ["Step 1: ", "3*8", "=24", "\n", "Step 2: ", "1+2=3", "\nAns", "wer: ", "3", ""]
    tokens = ByteTokens([p.encode() for p in pieces])
    found = parse_reasoning_steps("".join(pieces), *LINES)
    offsets = token_offsets(tokens.ids, tokens.decode)
    # The token over "\n" and "Ans" touches one reasoning step; the stop token touches none.
    assert token_spans(offsets, found) == [(0, 4), (4, 7)]
    assert label_tokens(offsets, found) == [0, 0, 0, 0, 1, 1, 1, -1, -1, -1]


def test_tokens_that_share_a_character_all_cover_it():
    tokens = ByteTokens(
        [b"a\xe2", b"\x88", b"\x91b", b"c"]
    )  # a, three bytes of a sum sign, b, c
    assert token_offsets(tokens.ids, tokens.decode) == [(0, 2), (1, 2), (1, 3), (3, 4)]


def test_a_straddling_token_goes_to_the_earlier_reasoning_step():
    found = [ReasoningStep(0, 2, 5, ""), ReasoningStep(1, 5, 6, ""), ReasoningStep(2, 6, 9, "")]
    # Over the start of 0; over the end of 0 and all of 1; the rest of 2; past the end.
    offsets = [(0, 3), (3, 7), (7, 9), (9, 9)]
    assert token_spans(offsets, found) == [(0, 2), (2, 2), (2, 3)]
    assert label_tokens(offsets, found) == [0, 0, 2, -1]


def test_a_decoder_that_looks_back_is_still_exact():
    words = [" one", " two", " three"]  # the first space of a text is dropped
    offsets = token_offsets([0, 1, 2], lambda ids: "".join(words[i] for i in ids).lstrip())
    assert offsets == [(0, 3), (3, 7), (7, 13)]


def test_offsets_never_decrease_whatever_the_decoder_takes_back():
    texts = {1: "ab", 2: "x", 3: "abc"}  # by the number of tokens
    assert token_offsets([0, 1, 2], lambda ids: texts[len(ids)]) == [(0, 2), (2, 2), (2, 3)]


@given(st.lists(st.binary(max_size=4), max_size=12))
def test_offsets_cover_the_text_even_of_invalid_bytes(pieces: list[bytes]):
    tokens = ByteTokens(pieces)
    text = tokens.decode(tokens.ids)
    offsets = token_offsets(tokens.ids, tokens.decode)
    assert len(offsets) == len(pieces)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    for (start, end), (next_start, next_end) in itertools.pairwise(offsets):
        assert start <= next_start <= end <= next_end
    covered = {c for start, end in offsets for c in range(start, end)}
    assert covered == set(range(len(text)))


@given(byte_tokens(), PATTERNS)
def test_token_spans_cover_what_the_characters_cover(
    tokens: ByteTokens, patterns: tuple[str, str]
):
    text = tokens.decode(tokens.ids)
    found = parse_reasoning_steps(text, *patterns)
    offsets = token_offsets(tokens.ids, tokens.decode)
    spans = token_spans(offsets, found)
    bounds = [0, *itertools.chain(*spans), len(offsets)]
    assert bounds == sorted(bounds)
    owner = {c: s.index for s in found for c in range(s.start, s.end)}
    for (start, end), label in zip(offsets, label_tokens(offsets, found), strict=True):
        touched = [owner[c] for c in range(start, max(end, start + 1)) if c in owner]
        assert label == min(touched, default=-1)
