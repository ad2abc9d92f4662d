# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From a config: which problems are hard, which objective a condition has, how many slots."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runs import small_config

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.learning import NegativeLogLikelihood
from stepalign_jax.evaluation import difficulty
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs import setup
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.sampling.kept import Kept

NLL = NegativeLogLikelihood(token_tile=64, token_weights=(), loss_temperature=1.0)


def test_the_choice_of_problems_does_not_depend_on_the_runs_seed(monkeypatch, tmp_path):
    problems = [Problem("easy", "1", None, "jsonl"), Problem("hard", "1", None, "jsonl")]
    asked: list[Any] = []

    def evaluate(*arguments: Any, seed: int, label: str, kept: object) -> Evaluation:
        asked.append((arguments, seed, label))
        assert isinstance(kept, Kept)  # a choice that was stopped goes on
        return Evaluation({"avg_at_k": np.array([1.0, 0.0])})

    monkeypatch.setattr(setup, "evaluate", evaluate)
    model: Any = SimpleNamespace(engine="engine", variables=lambda: "start", fingerprint={})
    roles, grader = "roles", "grader"
    changes = {"base_avg_below": 0.5, "base_avg_samples": 8}
    for seed in (5, 6):
        config = small_config(tmp_path / f"{seed}", seed=seed, problems=changes)
        monkeypatch.setattr(difficulty, "write_json", lambda *_: None)
        chosen = setup.select_problems(config, model, roles, grader, problems, "train")  # pyright: ignore[reportArgumentType]
        assert chosen == problems[1:]
        arguments, used, label = asked.pop()
        assert arguments[:5] == ("engine", "start", roles, grader, problems)
        assert (arguments[5].num_samples, used, label) == (8, difficulty.SEED, "select train")


@pytest.mark.parametrize(
    ("condition", "changes", "words"),
    [
        ("sft", {}, "objective.kind is 'forward_kl', but condition=sft needs nll"),
        ("grpo", {}, "but condition=grpo needs policy_gradient"),
        ("stepalign", {"objective": NLL}, "'nll', but condition=stepalign needs a divergence"),
        ("grpo", {"objective": NLL}, "condition=grpo needs policy_gradient"),
        (
            "rejection",
            {"objective": NLL, "critic": {"accepts": "any"}},
            "critic.accepts is 'any', but condition=rejection trains the solver to say",
        ),
    ],
)
def test_a_condition_and_what_it_trains_by_go_together(tmp_path, condition, changes, words):
    config = small_config(tmp_path, **changes)
    with pytest.raises(UserError, match=words):
        setup.check_condition(dataclasses.replace(config, condition=condition))


@pytest.mark.parametrize("condition", ["stepalign", "grpo", "sft", "rejection"])
def test_each_condition_of_the_miniature_has_its_objective(tmp_path, condition):
    config = small_config(tmp_path, condition)
    assert setup.check_condition(config).name == condition


def test_no_slot_is_opened_that_a_step_leaves_empty(monkeypatch, tmp_path):
    steps = {"problems_per_step": 1, "samples_per_problem": 3}  # of 4 slots
    config = small_config(tmp_path, train=steps)
    assert setup.step_sampling(config).batch_size == 3
    many = small_config(tmp_path, train={"problems_per_step": 9})
    assert setup.step_sampling(many) == many.sampling

    opened: list[Any] = []
    monkeypatch.setattr(setup, "open_wrapped_critic", lambda *given: opened.append(given[0]))
    model: Any = SimpleNamespace()
    grader: Any = SimpleNamespace(grade=None)
    setup.open_run_critic(config, model, grader, (), run=RunDirectory.of(config))
    setup.open_run_critic(config, model, grader, ())  # a probe asks of more than a step has
    assert [critic.batch_size for critic in opened] == [3, 4]
    oracle = small_config(tmp_path, train=steps, critic={"kind": "oracle"})
    setup.open_run_critic(oracle, model, grader, (), run=RunDirectory.of(oracle))
    assert opened[-1] == oracle.critic
