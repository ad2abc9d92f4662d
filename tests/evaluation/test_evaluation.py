# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One evaluation worked by hand, repeated by a real engine, and two compared in pairs."""

import dataclasses
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support.runs import ScriptedEngine, small_config, tiny_roles

from stepalign_jax.config.schema import EvaluationConfig
from stepalign_jax.evaluation.evaluate import Evaluation, evaluate, gains
from stepalign_jax.evaluation.statistics import bootstrap_interval
from stepalign_jax.grading.grader import Grader
from stepalign_jax.problems.problem import Problem
from stepalign_jax.problems.sources import load_problems
from stepalign_jax.runs.setup import open_solver
from stepalign_jax.sampling.request import Purpose, sample_addresses

PROBLEMS = [Problem(f"{n}+0*1", str(n), None, "arithmetic") for n in (71, 5, 9)]
# Samples of each problem, and its greedy completion.
SAMPLED = [
    *("Answer: 71", "Answer: 61", "Step 1: Answer: 071"),  # the majority is right
    *("Answer: 4", "Answer: 4", "Step 1: 0*1=..."),  # never right, once cut
    *("Answer: 8", "Answer: 9", "9"),  # a tie, and no answer
]
GREEDY = ["Answer: 71", "Answer: 4", "Answer: 9"]


@pytest.fixture
def grader():
    with Grader(deadline_secs=5.0, num_workers=1) as grader:
        yield grader
        assert not grader.process_ids  # integers are compared without one


@pytest.fixture
def settings(tmp_path) -> EvaluationConfig:
    return dataclasses.replace(small_config(tmp_path).evaluation, num_samples=3)


def test_the_bar_counts_the_greedy_completions_too(grader, settings, monkeypatch):
    seen: list[Any] = []

    class Counted(ScriptedEngine):
        def sample(self, variables: Any, requests: Any, **options: Any) -> Any:
            options["progress"](len(requests))
            return super().sample(variables, requests, **options)

    @contextmanager
    def counting(total: int, label: str) -> Any:
        seen.append((total, label))
        yield seen.append

    monkeypatch.setattr("stepalign_jax.evaluation.evaluate.counting", counting)
    engine: Any = Counted(SAMPLED, GREEDY)
    rest = {"seed": 3, "label": "by hand", "kept": None}
    evaluate(engine, {"params": {}}, tiny_roles(), grader, PROBLEMS, settings, **rest)
    assert seen == [(12, "by hand"), 9, 12]


def test_an_evaluation_by_hand(grader, settings):
    engine = ScriptedEngine(SAMPLED, GREEDY)
    found = evaluate(
        engine,  # pyright: ignore[reportArgumentType]
        {"params": {}},
        tiny_roles(),
        grader,
        PROBLEMS,
        settings,
        seed=3,
        label="by hand",
        kept=None,
    )
    expected = {
        "avg_at_k": [2 / 3, 0, 1 / 3],
        "pass_at_k": [1, 0, 1],
        "maj_at_k": [1, 0, 1 / 2],
        "greedy": [1, 0, 1],
        "mean_tokens": [(4 + 4 + 6) / 3, (3 + 3 + 5) / 3, (3 + 3 + 2) / 3],
        "truncated": [0, 1 / 3, 0],
        "unparsed": [0, 1 / 3, 1 / 3],
    }
    assert found.per_problem.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found.per_problem[name], values, err_msg=name)


def test_what_is_asked_of_the_engine(grader, settings):
    engine = ScriptedEngine(SAMPLED, GREEDY)
    roles = tiny_roles()
    evaluate(
        engine,  # pyright: ignore[reportArgumentType]
        {"params": {}},
        roles,
        grader,
        PROBLEMS,
        settings,
        seed=3,
        label="",
        kept=None,
    )
    sampled, greedy = engine.calls
    prompts = [roles.solver(problem) for problem in PROBLEMS]
    assert [request.prompt for request in greedy["requests"]] == prompts
    assert [request.prompt for request in sampled["requests"]] == [
        prompt for prompt in prompts for _ in range(3)
    ]
    ids = [problem.id for problem in PROBLEMS]
    at = sample_addresses(ids, 3, seed=3, purpose=Purpose.EVALUATION, step=0)
    assert [request.address for request in sampled["requests"]] == at
    assert [request.address for request in greedy["requests"]] == at[::3]
    temperatures = [{r.params.temperature for r in call["requests"]} for call in engine.calls]
    assert temperatures == [{settings.temperature}, {0.0}] and settings.temperature > 0


def test_the_same_weights_and_seed_give_the_same_evaluation(tmp_path, grader):
    config = small_config(tmp_path)
    model, roles = open_solver(config)
    model.load()
    problems = load_problems(config.problems, "test")

    def run(problems: list[Problem], seed: int) -> dict[str, list[float]]:
        parts = (model.engine, model.variables(), roles, grader, problems, config.evaluation)
        return evaluate(*parts, seed=seed, label="again", kept=None).as_lists()

    first = run(problems, 0)
    assert run(problems, 0) == first
    # A problem's samples do not depend on the others, nor on their order.
    backwards = run(problems[::-1], 0)
    assert backwards == {name: values[::-1] for name, values in first.items()}
    other = run(problems, 1)
    assert other != first and other["greedy"] == first["greedy"]


def test_gains_compare_each_problem_with_itself(settings):
    settings = dataclasses.replace(settings, num_resamples=200)
    difficulty = np.array([0.0, 0.2, 0.4, 0.8])
    before = Evaluation({"avg_at_k": difficulty, "mean_tokens": np.array([9.0, 8, 7, 6])})
    after = Evaluation({"avg_at_k": difficulty + 0.125, "mean_tokens": np.full(4, 6.0)})
    found = gains(before, after, settings, seed=0)
    # Every problem gains alike, so nothing is uncertain, however unlike the problems are.
    assert found["avg_at_k"] == pytest.approx({"mean": 0.125, "low": 0.125, "high": 0.125})
    assert found["mean_tokens"]["mean"] == -1.5
    assert found["mean_tokens"]["low"] < -1.5 < found["mean_tokens"]["high"] <= 0
    alone = before.intervals(settings, seed=0)["avg_at_k"]
    assert alone["low"] < alone["mean"] < alone["high"]


def test_intervals_follow_the_config(settings):
    values = np.array([0.0, 0.25, 1.0, 0.5, 0.5])
    found = Evaluation({"avg_at_k": values}).intervals(settings, seed=4)
    expected = bootstrap_interval(
        values, num_resamples=settings.num_resamples, confidence=settings.confidence, seed=4
    )
    assert found == {"avg_at_k": expected.as_dict()}


def test_lists_round_trip():
    evaluation = Evaluation({"avg_at_k": np.array([1 / 3, 0.0]), "greedy": np.array([1.0, 0])})
    back = Evaluation.from_lists(evaluation.as_lists())
    assert back.as_lists() == evaluation.as_lists()
    assert all(values.dtype == np.float64 for values in back.per_problem.values())
