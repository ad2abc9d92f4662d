# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Control contexts, by hand and on what the oracle writes of broken traces."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign_jax.feedback.contexts import FAILURES, Attempt, Context, get_condition
from stepalign_jax.feedback.controls import first_difference
from stepalign_jax.feedback.mathematics import reworded
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.problems.arithmetic import (
    correct_trace,
    derive,
    first_error,
    format_trace,
    order_of,
    parse_terms,
)
from stepalign_jax.problems.problem import Problem

TRACE = TraceFormat(r"Step \d+: ", r"Answer: (-?\d+)")
TAGS = TraceFormat(r"<step_\d+>", r"(?s)<answer>(.*?)</answer>")
SUM = Problem("47+3*8-12", "59", None, "arithmetic")
RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nStep 3: 71-12=59\nAnswer: 59"
WRONG = "Step 1: 3*8=24\nStep 2: 47+24=61\nStep 3: 61-12=49\nAnswer: 49"
NAMES = ("critique_full", "critique_omit", "paraphrased_prefix", "random_step", "shifted")


def context(
    name: str, rollout: str, critique: str = RIGHT, trace: TraceFormat = TRACE
) -> Context:
    contexts = get_condition(name).contexts
    assert contexts is not None
    (found,) = contexts([Attempt(SUM, rollout)], [Context(critique, None)], trace)
    return found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("answer_only", "59"),
        ("critique_full", f"{WRONG}\n{RIGHT}"),
        ("critique_omit", "Step 2: 47+24=71\nStep 3: 71-12=59\nAnswer: 59"),
        ("paraphrased_prefix", RIGHT.replace("3*8=24", "24=3*8")),
        ("random_step", WRONG.replace("3*8=24", "24=3*8")),
        ("shifted", RIGHT.replace("=71", "=61")),
    ],
)
def test_each_control_by_hand(name, text):
    assert context(name, WRONG) == Context(text, None)


def test_a_rollout_without_an_error_has_nothing_to_omit_or_to_shift():
    assert context("critique_omit", RIGHT) == context("shifted", RIGHT) == Context(RIGHT, None)
    other = context("paraphrased_prefix", RIGHT).text
    assert other == RIGHT.replace("3*8=24", "24=3*8").replace("47+24=71", "71=47+24").replace(
        "71-12=59", "59=71-12"
    )


def test_what_a_control_cannot_be_made_of_has_a_name():
    last = RIGHT.replace("=59", "=58")
    assert context("shifted", last).failure == "no_later_step"
    assert context("shifted", WRONG.partition("Step 2")[0]).failure == "no_later_step"
    first = WRONG.replace("3*8=24", "3*8=25")
    assert context("random_step", first).failure == "no_right_step"
    words = "<step_1>Think.</step_1><step_2>{}</step_2><answer>1</answer>"
    attempt, critique = words.format("a=2"), words.format("a=1")
    for name in ("random_step", "paraphrased_prefix"):
        assert context(name, attempt, critique, TAGS).failure == "not_reworded"


def test_failed_critiques_stay_failed():
    failed = Context("nothing", "truncated")
    for name in NAMES:
        contexts = get_condition(name).contexts
        assert contexts is not None
        assert contexts([Attempt(SUM, WRONG)], [failed], TRACE) == [failed]


def test_tags_stay_around_what_is_said_in_other_words():
    rollout = (
        "<step_1>\nSo $x = 3+4$.\n</step_1>\n<step_2>\nb=2\n</step_2>\n<answer>\n2\n</answer>"
    )
    critique = rollout.replace("b=2", "b=3")
    found = context("paraphrased_prefix", rollout, critique, TAGS)
    assert found == Context(critique.replace("x = 3+4", "3+4 = x"), None)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("47+24=71", "71=47+24"),
        ("So $x = 3 + 4$ and x is 7.", "So $3 + 4 = x$ and x is 7."),
        ("f(x) = x^2 + 1.", "x^2 + 1 = f(x)."),
        (r"hence \frac{1}{2} = 0.5.", r"hence 0.5 = \frac{1}{2}."),
        ("a=b=c", "b=a=c"),
        ("no equation, and = none", None),
    ],
)
def test_sides_change_places(text, other):
    assert reworded(text) == other


def test_the_random_step_is_one_of_the_right_ones_and_not_always_the_same():
    places = set()
    for number in range(40):
        steps = f"Step 1: {number}+1={number + 1}\nStep 2: 2+2=4\nStep 3: 3+3=6\nStep 4: "
        rollout, critique = steps + "9-1=7\nAnswer: 7", steps + "9-1=8\nAnswer: 8"
        lines = context("random_step", rollout, critique).text.splitlines()
        changed = [
            i
            for i, (a, b) in enumerate(zip(lines, rollout.splitlines(), strict=True))
            if a != b
        ]
        assert len(changed) == 1
        places.update(changed)
    assert places == {0, 1, 2}


@given(st.integers(0, 10**6))
def test_the_first_difference_to_the_oracle_is_the_first_error(seed):
    """Planted: a result is changed, and what follows goes on from it."""
    rng = random.Random(seed)
    terms = parse_terms("47+3*8-12+5-9")
    operations = derive(terms, order_of(len(terms), forward=True))
    place = rng.randrange(len(operations))
    wrong = operations[place]._replace(
        result=operations[place].result + rng.choice((-10, 1, 10))
    )
    text = format_trace([*operations[:place], wrong, *operations[place + 1 :]])
    problem = "47+3*8-12+5-9"
    found = first_difference(TRACE.steps(text), TRACE.steps(correct_trace(problem, text)))
    assert found == place == first_error(problem, text)


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_breaks_a_control(rollout, critique):
    for name in NAMES:
        for trace in (TRACE, TAGS):
            assert context(name, rollout, critique, trace).failure in {None, *FAILURES}
