# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Reasoning steps: hand-worked traces in both formats, and properties of the spans."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign_jax.feedback.reasoning_steps import ReasoningStep, parse_reasoning_steps

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
