# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Who says which reasoning step is the first wrong one."""

import numpy as np
from support.runs import tiny_roles

from stepalign_jax.analysis.chosen import Chosen
from stepalign_jax.analysis.first_errors import first_errors
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.grading.grader import Grader
from stepalign_jax.problems.arithmetic import correct_trace, first_error
from stepalign_jax.problems.problem import Problem

RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71"
WRONG = "Step 1: 3*8=24\nStep 2: 47+24=61\nAnswer: 61"
AT_ONCE = "Step 1: 3*8=25\nStep 2: 47+25=72\nAnswer: 72"
SHORT = "Step 1: 3*8=24\nAnswer: 24"
TEXTS = [RIGHT, WRONG, AT_ONCE, SHORT]
CHECKED = Problem("47+3*8", "71", None, "arithmetic", correct_trace)
PLAIN = Problem("47+3*8", "71", None, "jsonl")


def found(problem: Problem, critiques: list[Context]) -> tuple[list[int], list[str]]:
    attempts = [Attempt(problem, text) for text in TEXTS]
    chosen = Chosen([], [], attempts, [], np.zeros(len(TEXTS), bool), [], None)
    with Grader(deadline_secs=5.0, num_workers=1) as grader:
        first, who = first_errors(chosen, critiques, tiny_roles().trace, grader)
    assert first.dtype == np.int32
    return first.tolist(), who


def test_the_oracle_judges_where_problems_check_themselves():
    # Whatever a critic says.
    first, who = found(CHECKED, [Context(AT_ONCE, None)] * 4)
    assert first == [-1, 1, 0, 1] and who == ["oracle"] * 4
    generator = [first_error(CHECKED.text, text) for text in TEXTS]
    assert first == [-1 if index is None else index for index in generator]


def test_else_a_critique_that_ends_in_the_right_answer():
    critiques = [
        Context(RIGHT, None),
        Context(RIGHT, None),
        Context(AT_ONCE, None),  # ends in another answer
        Context(RIGHT, "truncated"),
    ]
    first, who = found(PLAIN, critiques)
    assert first == [-1, 1, -2, -2]
    assert who == ["critique", "critique", "unknown", "unknown"]


def test_nobody_says_where_no_critic_was_asked():
    assert found(PLAIN, []) == ([-2] * 4, ["unknown"] * 4)
