# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Critiques: every failure by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign_jax.feedback.contexts import Context
from stepalign_jax.feedback.critique import require_answers, strip_thinking, validate_critique

STEP, ANSWER = r"Step \d+: ", r"Answer: (.*)"
GOOD = "Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71"


def validate(
    text: str, finished: bool = True, *, thinking_open: bool = False, accepts: str = "trace"
) -> Context:
    return validate_critique(
        text,
        finished,
        accepts=accepts,
        thinking_open=thinking_open,
        step_pattern=STEP,
        answer_pattern=ANSWER,
    )


def grade_equal(answers: list[str | None], expected: list[str]) -> list[bool]:
    return [a == e for a, e in zip(answers, expected, strict=True)]


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("no thoughts", "no thoughts"),
        ("<think>a</think>b", "b"),
        ("<think>a\n</think>b<think>c</think>d", "bd"),
        ("the prompt opened it</think>b", "b"),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("<think>", None),
        ("<think>a</think>b<think>c", None),
    ],
)
def test_strip_thinking(text: str, visible: str | None):
    assert strip_thinking(text) == visible


@given(st.text(alphabet="ab\n", max_size=8), st.text(alphabet="ab\n", max_size=8))
def test_strip_thinking_keeps_what_follows(thoughts: str, text: str):
    assert strip_thinking(f"<think>{thoughts}</think>{text}") == text
    assert strip_thinking(text) == text


@pytest.mark.parametrize(
    ("text", "finished", "failure"),
    [
        (GOOD, True, None),
        (f"<think>Step 9: hm\nAnswer: 0</think>\n\n{GOOD}\n", True, None),
        (GOOD, False, "truncated"),
        ("", False, "truncated"),
        (f"<think>{GOOD}", False, "truncated_thinking"),
        (f"<think>{GOOD}", True, "truncated_thinking"),
        ("", True, "empty"),
        ("<think>hm</think> \n", True, "empty"),
        ("The answer is right.", True, "unparsable"),
        ("Answer: 71", True, "unparsable"),
        ("Step 1: 3*8=24", True, "unparsable"),
        ("Step 1: 3*8=24\nAnswer: ", True, "unparsable"),
        (f"<think>{GOOD}</think>fine", True, "unparsable"),
    ],
)
def test_failures_of_form(text: str, finished: bool, failure: str | None):
    assert validate(text, finished).failure == failure


@pytest.mark.parametrize(
    ("text", "finished", "failure"),
    [
        (f"Step 1: hm\nAnswer: 0</think>\n{GOOD}", True, None),
        (f"hm</think>{GOOD}", False, "truncated"),
        (GOOD, False, "truncated_thinking"),  # without a word of <think> in it
        (GOOD, True, "truncated_thinking"),
        ("", False, "truncated_thinking"),
        ("hm</think>", True, "empty"),
        (f"a</think>{GOOD}<think>b", True, "truncated_thinking"),
    ],
)
def test_failures_where_the_prompt_had_opened_the_thought(text, finished, failure):
    critique = validate(text, finished, thinking_open=True)
    assert critique.failure == failure
    assert critique.text == (GOOD if failure in (None, "truncated") else critique.text)


def test_a_valid_critique_loses_its_thinking_and_a_failed_one_keeps_its_text():
    assert validate(f"<think>hm</think>\n{GOOD}\n") == Context(GOOD, None)
    assert validate(GOOD, finished=False).text == GOOD
    assert validate("<think>hm").text == "<think>hm"


def test_require_answers_fails_only_valid_critiques_with_another_answer():
    critiques = [validate(GOOD), validate(GOOD), validate(""), validate(GOOD, finished=False)]
    checked = require_answers(
        critiques, ["71", "72", "71", "72"], answer_pattern=ANSWER, grade=grade_equal
    )
    failures = [critique.failure for critique in checked]
    assert failures == [None, "wrong_answer", "empty", "truncated"]
    assert [c.text for c in checked] == [c.text for c in critiques]


@pytest.mark.parametrize(
    ("text", "finished", "failure"),
    [
        ("The second step forgets a carry.", True, None),
        ("<think>hm</think>It is 71, not 61.", True, None),
        ("The second", False, "truncated"),
        ("<think>The second", True, "truncated_thinking"),
        ("<think>hm</think> \n", True, "empty"),
    ],
)
def test_where_any_text_is_accepted_it_need_only_be_whole(text, finished, failure):
    assert validate(text, finished, accepts="any").failure == failure
