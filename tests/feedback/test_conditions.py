# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Conditions: the table, and what each context gives each rollout."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepalign_jax.base.errors import UserError
from stepalign_jax.feedback.conditions import (
    CONDITIONS,
    CONTEXTS,
    build_contexts,
    get_condition,
)
from stepalign_jax.feedback.critique import FAILURES, Critique
from stepalign_jax.problems.problem import Problem


def make_problems(names: list[str]) -> list[Problem]:
    return [Problem(name, f"{name} answer", f"{name} reference", "jsonl") for name in names]


def make_critiques(names: list[str], failed: set[int]) -> list[Critique]:
    return [
        Critique(f"{row} of {name}", "empty" if row in failed else None)
        for row, name in enumerate(names)
    ]


def others(names: list[str], failed: set[int]) -> list[Critique]:
    condition = get_condition("other_problem")
    return build_contexts(condition, make_problems(names), make_critiques(names, failed))


def test_the_table_is_consistent():
    assert set(CONDITIONS) == {"stepalign", "refsol", "grpo", "no_context", "other_problem"}
    for name, condition in CONDITIONS.items():
        assert condition.name == name and condition.context in CONTEXTS
        assert (condition.objective == "policy_gradient") == (condition.context == "none")
    assert {c.name for c in CONDITIONS.values() if c.needs_critiques} == {
        "stepalign",
        "other_problem",
    }


def test_an_unknown_condition_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"'stepaline' is unknown.*'stepalign'"):
        get_condition("stepaline")


def test_each_context():
    problems, critiques = make_problems(["a", "b"]), make_critiques(["a", "b"], {1})
    problems.append(Problem("c", "1", None, "jsonl"))
    critiques.append(Critique("2 of c", None))
    assert build_contexts(get_condition("stepalign"), problems, critiques) == critiques
    assert build_contexts(get_condition("refsol"), problems, None) == [
        Critique("a reference", None),
        Critique("b reference", None),
        Critique("", "no_reference"),
    ]
    for name in ("no_context", "grpo"):
        assert build_contexts(get_condition(name), problems, None) == [Critique("", None)] * 3


def test_critiques_that_are_missing_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="needs critiques"):
        build_contexts(get_condition("stepalign"), make_problems(["a"]), None)
    with pytest.raises(ValueError, match="1 critiques for 2 rollouts"):
        build_contexts(
            get_condition("stepalign"), make_problems(["a", "b"]), make_critiques(["a"], set())
        )


def test_other_problem_by_hand():
    texts = [context.text for context in others(["a", "a", "b", "b", "c", "c"], {2})]
    # All move on by two; the first row passes over the failed third.
    assert texts == ["3 of b", "3 of b", "4 of c", "5 of c", "0 of a", "1 of a"]


@given(
    st.lists(st.sampled_from("abcd"), max_size=10),
    st.sets(st.integers(min_value=0, max_value=9)),
)
@example(["a", "a", "b", "c"], {0, 1})  # b has to look past the end, back to c
def test_no_rollout_gets_its_own_problems_critique(names: list[str], failed: set[int]):
    contexts = others(names, failed)
    assert contexts == others(names, failed)
    for name, context in zip(names, contexts, strict=True):
        if context.failure is None:
            row, of = context.text.split(" of ")
            assert of == names[int(row)] != name and int(row) not in failed
        else:
            # It fails only if there is nothing to give, and by a name that is counted.
            assert context.failure == "no_other_problem" in FAILURES
            assert all(n == name or r in failed for r, n in enumerate(names))


@given(st.integers(2, 5), st.integers(1, 4))
def test_without_failures_every_critique_is_used_once(num_problems: int, num_samples: int):
    names = [f"p{i}" for i in range(num_problems) for _ in range(num_samples)]
    texts = [context.text for context in others(names, set())]
    assert sorted(texts) == sorted(f"{row} of {name}" for row, name in enumerate(names))
