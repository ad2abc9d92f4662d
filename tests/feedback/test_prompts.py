# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Prompts: one-pass rendering, what the critic is shown, and mistakes found early."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.names import nearest
from stepalign_jax.config.schema import PromptsConfig
from stepalign_jax.feedback.prompts import (
    check_problem_budget,
    check_templates,
    critic_prompt,
    render,
    solver_prompt,
    teacher_prompt,
)
from stepalign_jax.problems.problem import Problem

PROMPTS = PromptsConfig(
    solver="{problem}\nPut the answer in \\boxed{}.",
    teacher="{problem}\n<hint>\n{context}\n</hint>",
    critic=(
        "{problem}\nAnswer: {answer}\nSolution: {reference}\nAttempt:\n{attempt}\nCorrect it."
    ),
    reasoning_step_pattern=r"Step \d+: ",
    answer_pattern=r"Answer: (.*)",
    solver_thinking=False,
    teacher_thinking="on",
    critic_thinking=False,
    max_problem_tokens=8,
    max_context_tokens=8,
)
PROBLEM = Problem(r"What is \frac{a}{b} of {problem}?", "24", "so {answer} gives {x}", "jsonl")


def edited(**changes: str) -> PromptsConfig:
    return dataclasses.replace(PROMPTS, **changes)


def test_render_replaces_once_and_leaves_other_braces():
    template = "{problem} {{problem}} \\boxed{} \\boxed{42} { problem } {attempt}"
    text = render(template, problem="{attempt} {{problem}}", attempt="{nothing}")
    assert text == "{attempt} {{problem}} {problem} \\boxed{} \\boxed{42} { problem } {nothing}"


@given(st.text(), st.text(), st.text(alphabet="ab{}\n\\"))
def test_render_keeps_sections_to_the_letter(problem: str, attempt: str, context: str):
    sections = {"problem": problem, "attempt": attempt, "context": context}
    text = render("<{problem}|{attempt}|{context}|{problem}>", **sections)
    assert text == f"<{problem}|{attempt}|{context}|{problem}>"


@pytest.mark.parametrize(
    ("template", "nearest"), [("{problme}", "{problem}"), ("{answers}", "{answer}")]
)
def test_render_refuses_an_unknown_placeholder(template: str, nearest: str):
    with pytest.raises(UserError, match=nearest):
        render(template, problem="1", answer="2")


def test_render_refuses_a_missing_section():
    with pytest.raises(UserError, match=r"\{context\} has no section"):
        render("{problem} {context}", problem="1")


def test_nearest_name_finds_something_for_any_word():
    assert nearest("refsoll", ["grpo", "refsol"]) == "refsol"
    assert nearest("zzz", ["grpo"]) == "grpo"


def test_solver_and_teacher_see_their_sections_only():
    assert solver_prompt(PROMPTS, PROBLEM) == PROBLEM.text + "\nPut the answer in \\boxed{}."
    expected = PROBLEM.text + "\n<hint>\nSo {problem}\n</hint>"
    assert teacher_prompt(PROMPTS, PROBLEM, "So {problem}") == expected
    # The control without a context keeps the wording, and an empty place in it.
    assert teacher_prompt(PROMPTS, PROBLEM, "") == PROBLEM.text + "\n<hint>\n\n</hint>"


@pytest.mark.parametrize(
    ("sees", "shown"),
    [
        ("question", []),
        ("answer", ["Answer: 24"]),
        ("reference", ["Answer: 24", "Solution: so {answer} gives {x}"]),
    ],
)
def test_the_critic_sees_what_the_config_says(sees: str, shown: list[str]):
    lines = [PROBLEM.text, *shown, "Attempt:", "Step 1: {answer}", "Correct it."]
    assert critic_prompt(PROMPTS, PROBLEM, "Step 1: {answer}", sees) == "\n".join(lines)


def test_a_dropped_last_line_leaves_the_lines_before_it():
    prompts = edited(critic="{problem} {attempt}\n{answer}")
    assert critic_prompt(prompts, PROBLEM, "a", "question") == f"{PROBLEM.text} a\n"


def test_a_missing_reference_gives_no_critic_prompt():
    problem = dataclasses.replace(PROBLEM, reference=None)
    assert critic_prompt(PROMPTS, problem, "a", "reference") is None
    assert critic_prompt(PROMPTS, problem, "a", "answer") is not None


@pytest.mark.parametrize("sees", [None, "question", "answer", "reference"])
def test_good_templates_pass(sees: str | None):
    check_templates(PROMPTS, sees=sees)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "Solve."}, r"prompts.solver must contain \{problem\}"),
        ({"solver": "{problem} {answer}"}, r"prompts.solver may not contain \{answer\}"),
        ({"teacher": "{problem}"}, r"prompts.teacher must contain \{context\}"),
        ({"teacher": "{context}"}, r"prompts.teacher must contain \{problem\}"),
        ({"teacher": "{problem} {contxt}"}, r"contxt.*nearest.*\{context\}"),
        ({"teacher": "{problem} {{context}}"}, r"prompts.teacher must contain \{context\}"),
        ({"critic": "{problem}"}, r"prompts.critic must contain \{attempt\}"),
        ({"critic": "{attempt}"}, r"prompts.critic must contain \{problem\}"),
        ({"critic": "{problem} {answer}\n{attempt}"}, "a line of its own"),
        ({"critic": "{problem} {attempt}\n{answer} {reference}"}, "a line of its own"),
        ({"reasoning_step_pattern": "Step ("}, "reasoning_step_pattern.*not a regular"),
        ({"reasoning_step_pattern": "(Step)?"}, "matches the empty text"),
        ({"answer_pattern": "Answer: .*"}, "has 0 groups"),
        ({"answer_pattern": "(Answer): (.*)"}, "has 2 groups"),
        ({"answer_pattern": "(.*)"}, "matches the empty text"),
    ],
)
def test_bad_templates_are_refused(changes: dict[str, str], message: str):
    with pytest.raises(UserError, match=message):
        check_templates(edited(**changes))


def test_what_the_critic_sees_has_to_be_in_its_template():
    with pytest.raises(UserError, match=r"sees is 'answer'.*\{answer\}"):
        check_templates(edited(critic="{problem} {attempt}"), sees="answer")
    with pytest.raises(UserError, match=r"sees is 'reference'.*\{reference\}"):
        check_templates(edited(critic="{problem} {attempt}\n{answer}"), sees="reference")
    check_templates(edited(critic="{problem} {attempt}\n{reference}"), sees="reference")
    with pytest.raises(UserError, match="nearest valid name is 'answer'"):
        check_templates(PROMPTS, sees="answers")


def test_a_problem_over_its_budget_is_refused_by_name():
    check_problem_budget(PROBLEM, "problem 3 of train", 8, 8)
    sentence = r"problem 3 of train, 'What is .* 9 tokens.*max_problem_tokens=8"
    with pytest.raises(UserError, match=sentence):
        check_problem_budget(PROBLEM, "problem 3 of train", 9, 8)
