# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a critique did to a rollout: by hand, on planted errors, and on any text at all."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepalign_jax.base.errors import UserError
from stepalign_jax.feedback.contexts import FAILURES, Attempt, Context
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.feedback.validate import CHECKS, accept, check_names, measure
from stepalign_jax.problems.arithmetic import (
    arithmetic_problems,
    correct_trace,
    derive,
    first_error,
    format_trace,
    order_of,
    parse_terms,
)
from stepalign_jax.problems.problem import Problem

PLAIN = TraceFormat(r"Step \d+: ", r"Answer: (-?\d+)")
TAGS = TraceFormat(r"<step_\d+>", r"(?s)<answer>(.*?)(?:</answer>|(?=<answer>)|\Z)")
PROBLEM = Problem("47+3*8-12", "59", None, "arithmetic", correct_trace)
ROLLOUT = "Step 1: 3*8=24\nStep 2: 47+24=61\nStep 3: 61-12=49\nAnswer: 49"
RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nStep 3: 71-12=59\nAnswer: 59"


def by(rollout, critique, trace=PLAIN):
    return measure(Attempt(PROBLEM, rollout), critique, trace)


@pytest.mark.parametrize(
    ("rollout", "critique", "case", "first"),
    [
        (RIGHT, RIGHT, "A", None),
        ("Step 1: 3*8=24\nStep 2: 71-12=59\nAnswer: 59", RIGHT, "B", 1),
        ("Step 1: 3*8=24\nStep 2: 47+2", RIGHT, "C", 1),
        ("Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71", RIGHT, "C", 2),
        (RIGHT + "\nStep 4: 59+0=59", RIGHT, "C", 3),
        (ROLLOUT, RIGHT, "D", 1),
        (RIGHT.replace("Answer: 59", "Answer: 95"), RIGHT, "D", None),
        (ROLLOUT, RIGHT.replace("3*8=24", "24=3*8"), "D", 1),
        (ROLLOUT, RIGHT.replace("3*8=24", "so 3*8 gives 24"), "D", 1),
        (
            ROLLOUT.replace("47+24=61", "24-47=61"),
            RIGHT.replace("47+24=71", "47-24=61"),
            "D",
            1,
        ),
        ("", RIGHT, "C", 0),
    ],
)
def test_case_and_first_error_by_hand(rollout, critique, case, first):
    found = by(rollout, critique)
    assert (found.case, found.first_error) == (case, first)


def test_words_without_mathematics_are_compared_as_words():
    rollout = "<step_1>\nThe sum is odd.\n</step_1>\n<answer>\nodd\n</answer>"
    assert by(rollout, rollout.replace("The sum", "the  sum"), TAGS).first_error is None
    assert by(rollout, rollout.replace("odd", "even"), TAGS).first_error == 0


def test_fidelity_of_the_copied_prefix():
    assert by(ROLLOUT, RIGHT).copy_fidelity == 1
    reworded = by(ROLLOUT, RIGHT.replace("3*8=24", "so 3*8 gives 24")).copy_fidelity
    assert reworded is not None and reworded < 0.9
    assert by("", RIGHT).copy_fidelity is None  # nothing was there to copy


@pytest.mark.parametrize(
    ("critique", "quotes"),
    [
        (RIGHT, False),
        (RIGHT.replace("Step 2: ", "Step 2: not 47 + 24=61 but "), True),
        (RIGHT.replace("Step 2: ", "Step 2: 147+24=612 "), False),  # another number's part
        (ROLLOUT, False),  # nothing is called wrong, so nothing wrong is quoted
    ],
)
def test_a_quoted_error(critique, quotes):
    assert by(ROLLOUT, critique).quotes_error is quotes


def test_a_reasoning_step_put_in_quotes_nothing():
    assert not by("Step 1: 3*8=24\nStep 2: 71-12=59\nAnswer: 59", RIGHT).quotes_error


def test_numbers_out_of_nothing():
    assert by(ROLLOUT, RIGHT).invented == ()
    assert by(ROLLOUT, RIGHT.replace("71-12=59", "88-29=59")).invented == ("88", "29")
    # What was computed before may be used again.
    longer = RIGHT.replace("Step 3: ", "Step 3: 71+12=83\nStep 4: 83-24=59\nStep 5: ")
    assert by(ROLLOUT, longer).invented == ()


@pytest.mark.parametrize(
    ("critique", "trace", "foreign"),
    [
        (RIGHT, PLAIN, ()),
        (f"Here you are:\n{RIGHT}", PLAIN, ("Here you are:",)),
        (f"{RIGHT}\nI hope that helps.", PLAIN, ("I hope that helps.",)),
        (RIGHT.replace("59\n", "**59**\n"), PLAIN, ("**", "**")),
        ("<step_1>\n1+1=2\n</step_1>\n<answer>\n2\n</answer>", TAGS, ()),
        ("<step_1>\n1+1=2\n</step_1>\n```\n<answer>2</answer>", TAGS, ("```",)),
        ("<step_1>\n<b>1+1=2</b>\n</step_1>\n<answer>2</answer>", TAGS, ("<b>", "</b>")),
    ],
)
def test_what_is_not_in_the_trace_format(critique, trace, foreign):
    assert by(ROLLOUT if trace is PLAIN else "<step_1>\n1", critique, trace).foreign == foreign


def test_words_of_an_answer_that_the_solver_does_not_see():
    assert not by(ROLLOUT, RIGHT).leaks
    leak = RIGHT.replace("Step 3: ", "Step 3: as the expected answer is 59, ")
    assert by(ROLLOUT, leak).leaks


def test_each_check_fails_under_its_own_name_and_only_if_asked():
    spoilt = {
        "foreign_markup": f"Sure!\n{RIGHT}",
        "quoted_error": RIGHT.replace("Step 2: ", "Step 2: not 47+24=61 but "),
        "answer_leaked": RIGHT.replace("71-12", "by the reference solution 71-12"),
        "invented_number": RIGHT.replace("71-12=59", "88-29=59"),
    }
    assert set(spoilt) == set(CHECKS) <= set(FAILURES)
    attempt = Attempt(PROBLEM, ROLLOUT)
    for name, text in spoilt.items():
        for checks, failure in (((), None), ((name,), name), (tuple(CHECKS), name)):
            found = accept(
                attempt, Context(text, None), PLAIN, checks=checks, min_copy_fidelity=0.0
            )
            assert found == Context(text, failure)
    failed = Context(spoilt["quoted_error"], "truncated")
    assert accept(attempt, failed, PLAIN, checks=tuple(CHECKS), min_copy_fidelity=1) is failed


def test_the_least_fidelity():
    critique = Context(RIGHT.replace("3*8=24", "so 3*8 gives 24"), None)
    low = accept(Attempt(PROBLEM, ROLLOUT), critique, PLAIN, checks=(), min_copy_fidelity=0.95)
    assert low.failure == "low_fidelity"


def test_an_unknown_check_is_refused():
    check_names(tuple(CHECKS))
    with pytest.raises(
        UserError, match="no check 'quoted_eror'; the nearest is 'quoted_error'"
    ):
        check_names(("quoted_eror",))


def planted(rng, problem):
    """A right trace of the problem with one thing spoilt, and what follows from it redone."""
    terms = parse_terms(problem.text)
    steps = derive(terms, order_of(len(terms), forward=rng.random() < 0.7))
    place, kind = rng.randrange(len(steps)), rng.choice(["result", "operand", "gap", "none"])
    if kind == "gap":
        steps = steps[:place] + steps[place + 1 :]
    elif kind != "none":
        off = rng.choice([-10, -1, 1, 10])
        wrong = steps[place]
        field = "result" if kind == "result" else "right"
        steps[place] = wrong._replace(**{field: getattr(wrong, field) + off})
        if rng.random() < 0.5:  # the mistake is carried on, as a solver would
            for i in range(place + 1, len(steps)):
                left = steps[i - 1].result if i > 1 else steps[i].left
                change = steps[i].result - steps[i].left
                steps[i] = steps[i]._replace(left=left, result=left + change)
    return format_trace(steps)


def test_the_first_error_of_planted_mistakes_is_found_in_99_of_100():
    rng, hits, wrong = random.Random(5), 0, 0
    problems = arithmetic_problems("training", 1000, 3, 8)
    for problem in problems:
        rollout = planted(rng, problem)
        critique = correct_trace(problem.text, rollout)
        truth = first_error(problem.text, rollout)
        found = measure(Attempt(problem, rollout), critique, PLAIN)
        hits += found.first_error == truth
        wrong += truth is not None
        assert not found.foreign and not found.leaks
    print(f"first error right on {hits} of 1000 traces, {wrong} of them wrong")  # pytest -rP
    assert 500 < wrong < 950  # both kinds are there
    assert hits >= 990


PIECES = (
    *("Step 1: ", "Step 2: ", "3*8=24", "=", "Answer: 5", "<step_1>", "</step_1>", "<answer>"),
    *("\\boxed{", "\\approx", "```", "\ud800", "\x00", "9" * 5000, "(((", "is", "\n"),
)
TEXT = st.text() | st.lists(st.sampled_from(PIECES)).map("".join)


@settings(max_examples=400)
@given(TEXT, TEXT, st.sampled_from([PLAIN, TAGS]))
def test_no_text_is_too_odd(rollout, critique, trace):
    found = by(rollout, critique, trace)
    assert found.case in "ABCD"
    assert found.first_error is None or 0 <= found.first_error <= len(trace.steps(rollout))
    assert found.copy_fidelity is None or 0 <= found.copy_fidelity <= 1
