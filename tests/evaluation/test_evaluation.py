# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One evaluation worked by hand, repeated by a real engine, and two compared in pairs."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest
from support.gym import stub_gym  # noqa: F401
from support.runs import ScriptedEngine, small_config, tiny_roles

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import write_json
from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import EvaluationConfig
from stepalign_jax.evaluation.evaluate import METRICS, Evaluation, evaluate, gains
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
        "num_samples": [3, 3, 3],
    }
    assert found.per_problem.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found.per_problem[name], values, err_msg=name)


class ForgetfulEngine(ScriptedEngine):
    """An engine that gives back what `lose` leaves of its completions."""

    def __init__(self, lose: Callable[[Rollouts], Rollouts], *scripts: Sequence[str]):
        super().__init__(*scripts)
        self._lose = lose

    def sample(self, variables: Any, requests: Any, **options: Any) -> Rollouts:
        return self._lose(super().sample(variables, requests, **options))


def first(number: int, rollouts: Rollouts) -> Rollouts:
    return jax.tree.map(lambda part: part[:number], rollouts)


def with_an_empty_one(rollouts: Rollouts) -> Rollouts:
    if len(rollouts.lengths) == 3:  # the greedy ones stay
        return rollouts
    return rollouts.replace(lengths=np.where(np.arange(9) == 4, 0, rollouts.lengths))


@pytest.mark.parametrize(
    ("lose", "sentence"),
    [
        (lambda r: first(8, r), "problem 3 of 3 has 2 samples, not k=3"),
        (with_an_empty_one, "problem 2 of 3 has 2 samples, not k=3"),
        # Of 3 greedy ones one is lost, of 9 samples none.
        (
            lambda r: first(2, r) if len(r.lengths) == 3 else r,
            "problem 3 of 3 has 0 samples, not k=1",
        ),
        # Divided among three problems, two samples each would be an Avg@2 called Avg@3.
        (lambda r: first(6, r), "problem 3 of 3 has 0 samples, not k=3"),
    ],
)
def test_a_problem_with_fewer_samples_is_refused(grader, settings, lose, sentence):
    engine: Any = ForgetfulEngine(lose, SAMPLED, GREEDY)
    parts = (engine, {"params": {}}, tiny_roles(), grader, PROBLEMS, settings)
    with pytest.raises(ValueError, match=sentence):
        evaluate(*parts, seed=3, label="", kept=None)


def whole(**changes: Any) -> dict[str, list[float]]:
    """The lists of an evaluation of two problems with three samples each."""
    return {name: [0.5, 1.0] for name in METRICS} | {"num_samples": [3, 3]} | changes


def test_an_evaluation_is_read_back_with_the_samples_it_has(tmp_path):
    path = tmp_path / "before.json"
    write_json(path, whole())
    assert Evaluation.read_whole(path, 2, 3).as_lists() == whole()
    with pytest.raises(UserError, match="problem 1 of 2 has 3 samples, not k=4: delete it"):
        Evaluation.read_whole(path, 2, 4)
    with pytest.raises(UserError, match="is no evaluation of 3 problems"):
        Evaluation.read_whole(path, 3, 3)
    write_json(path, whole(num_samples=[3, 2]))
    for read in (Evaluation.read, lambda path: Evaluation.read_whole(path, 2, 3)):
        with pytest.raises(UserError, match=r"before\.json: problem 2 of 2 has 2 samples"):
            read(path)
    without = whole()
    del without["num_samples"]
    write_json(path, without)
    with pytest.raises(UserError, match="is no evaluation of 2 problems"):
        Evaluation.read_whole(path, 2, 3)


def test_evaluations_of_unlike_k_do_not_pair(settings):
    few = Evaluation.from_lists(whole(num_samples=[2, 2]))
    with pytest.raises(ValueError, match="samples per problem differ"):
        gains(Evaluation.from_lists(whole()), few, settings, seed=0)
    found = gains(few, few, settings, seed=0)
    assert set(found) == set(few.intervals(settings, seed=0)) == set(METRICS)


def test_a_task_s_own_scorer_judges_and_votes_are_counted_by_text(settings, stub_gym):  # noqa: F811
    scorer = '{"task": "words", "entry": {"answer": "71", "metadata": {}}}'
    scored = Problem("71+0*1", "71", None, "a test", scorer=scorer)
    engine = ScriptedEngine(["Answer: 71", "Answer: 071", "Answer: 71"], ["Answer: 071"])
    with Grader(deadline_secs=20.0, num_workers=1) as grader:
        found = evaluate(
            engine,  # pyright: ignore[reportArgumentType]
            {"params": {}},
            tiny_roles(),
            grader,
            [scored],
            settings,
            seed=3,
            label="by hand",
            kept=None,
        ).per_problem
    # As numbers all four would be right.
    assert found["avg_at_k"].tolist() == [2 / 3] and found["greedy"].tolist() == [0]
    assert found["maj_at_k"].tolist() == [1]


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
