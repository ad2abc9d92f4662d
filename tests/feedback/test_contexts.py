# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Conditions: the table, and the context that each gives each rollout."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepalign_jax.base.errors import UserError
from stepalign_jax.feedback import contexts as module
from stepalign_jax.feedback.contexts import (
    CONDITIONS,
    FAILURES,
    Attempt,
    Context,
    condition,
    count_failures,
    fit_budget,
    get_condition,
)
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.problems.problem import Problem

TRACE = TraceFormat(r"Step \d+: ", r"Answer: (-?\d+)")


def make_attempts(names: list[str]) -> list[Attempt]:
    return [
        Attempt(Problem(name, f"{name} answer", f"{name} reference", "jsonl"), f"try {name}")
        for name in names
    ]


def make_critiques(names: list[str], failed: set[int]) -> list[Context]:
    return [
        Context(f"{row} of {name}", "empty" if row in failed else None)
        for row, name in enumerate(names)
    ]


def contexts_of(name: str, attempts: list[Attempt], critiques: list[Context]) -> list[Context]:
    contexts = get_condition(name).contexts
    assert contexts is not None
    return contexts(attempts, critiques, TRACE)


def others(names: list[str], failed: set[int]) -> list[Context]:
    return contexts_of("other_problem", make_attempts(names), make_critiques(names, failed))


def test_the_conditions_and_who_asks_the_critic():
    asks = {name: found.needs_critiques for name, found in CONDITIONS.items()}
    assert asks == {
        "stepalign": True,
        "refsol": False,
        "grpo": False,
        "no_context": False,
        "other_problem": True,
        "sft": True,
        "rejection": True,
        "answer_only": False,
        "critique_full": True,
        "critique_omit": True,
        "paraphrased_prefix": True,
        "random_step": True,
        "shifted": True,
    }
    assert [name for name, found in CONDITIONS.items() if found.contexts is None] == ["grpo"]
    untaught = [name for name, found in CONDITIONS.items() if not found.asks_teacher]
    assert untaught == ["grpo", "sft", "rejection"]


def test_a_function_becomes_a_condition(monkeypatch):
    monkeypatch.setattr(module, "CONDITIONS", {})

    @condition("hint", needs_critiques=False)
    def hint(attempts, _critiques, _trace):
        return [Context(attempt.problem.answer, None) for attempt in attempts]

    assert get_condition("hint") == ("hint", hint, False, None)


def test_an_unknown_condition_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"'stepaline' is unknown.*'stepalign'"):
        get_condition("stepaline")


def test_each_context():
    attempts, critiques = make_attempts(["a", "b"]), make_critiques(["a", "b"], {1})
    attempts.append(Attempt(Problem("c", "1", None, "jsonl"), "try c"))
    critiques.append(Context("2 of c", None))
    assert contexts_of("stepalign", attempts, critiques) == critiques
    assert contexts_of("refsol", attempts, []) == [
        Context("a reference", None),
        Context("b reference", None),
        Context("", "no_reference"),
    ]
    assert contexts_of("no_context", attempts, []) == [Context("", None)] * 3


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


def test_fit_budget_fails_and_never_cuts():
    contexts = [Context("abc", None), Context("abcd", None), Context("abcde", "empty")]
    fitted = fit_budget(contexts, len, 3)
    assert [context.failure for context in fitted] == [None, "too_long", "empty"]
    assert [context.text for context in fitted] == ["abc", "abcd", "abcde"]


def test_count_failures_has_every_name():
    counts = count_failures([Context("", "empty"), Context("", "empty"), Context("", None)])
    assert counts.pop("empty") == 2
    assert set(counts) == set(FAILURES) - {"empty"} and not any(counts.values())
