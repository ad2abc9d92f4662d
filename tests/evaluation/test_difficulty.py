# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The difficulty filter: what it keeps, what it remembers, and what makes it ask again."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import small_config

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import Config, EvaluationConfig
from stepalign_jax.evaluation.difficulty import select_problems
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.huggingface.fingerprint import fingerprint_checkpoint
from stepalign_jax.problems.problem import Problem

# Avg@4 of the initial solver on each problem; the bound of 0.5 is not below itself.
AVERAGES = {"never": 0.0, "seldom": 0.25, "half": 0.5, "often": 0.75, "always": 1.0}
PROBLEMS = [Problem(text, "1", None, "jsonl") for text in AVERAGES]


class Initial:
    """Stands for the initial solver, and counts how often it is evaluated."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], int, str]] = []

    def __call__(
        self, problems: Sequence[Problem], how: EvaluationConfig, label: str, _kept: object
    ) -> Evaluation:
        self.asked.append(([problem.text for problem in problems], how.num_samples, label))
        averages = np.array([AVERAGES[problem.text] for problem in problems])
        # Another metric must not be taken for the average.
        return Evaluation({"avg_at_k": averages, "pass_at_k": np.ones(len(averages))})


def filtering(tmp_path: Path, bound: float = 0.5, **sections: Any) -> Config:
    return small_config(
        tmp_path / "runs",
        problems={"base_avg_below": bound, "base_avg_samples": 4},
        **sections,
    )


def select(config: Config, tmp_path: Path, initial: Initial, problems=PROBLEMS) -> list[str]:
    chosen = select_problems(
        config,
        problems,
        "train",
        fingerprint=lambda: fingerprint_checkpoint(tmp_path),
        evaluate=initial,
    )
    return [problem.text for problem in chosen]


def test_problems_below_the_bound_stay_in_their_order(tmp_path):
    initial = Initial()
    assert select(filtering(tmp_path), tmp_path, initial) == ["never", "seldom"]
    assert initial.asked == [(list(AVERAGES), 4, "select train")]


def test_a_bound_of_zero_keeps_all_and_asks_nobody(tmp_path):
    initial = Initial()
    assert select(filtering(tmp_path, 0.0), tmp_path, initial) == list(AVERAGES)
    assert initial.asked == []


def test_the_choice_is_remembered_for_the_next_run(tmp_path):
    config, initial = filtering(tmp_path), Initial()
    first = select(config, tmp_path, initial)
    other_run = dataclasses.replace(config, name="other", seed=5)
    assert select(other_run, tmp_path, initial) == first
    assert len(initial.asked) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"problems": {"base_avg_below": 0.6, "base_avg_samples": 4}},
        {"problems": {"base_avg_below": 0.5, "base_avg_samples": 8}},
        {"evaluation": {"temperature": 0.3}},
        {"prompts": {"solver": "Solve {problem}"}},
        {"model": {"compute_dtype": "bfloat16"}},
    ],
)
def test_what_decides_the_choice_makes_it_anew(tmp_path, changes):
    initial, config = Initial(), filtering(tmp_path)
    select(config, tmp_path, initial)
    for name, values in changes.items():
        section = dataclasses.replace(getattr(config, name), **values)
        config = dataclasses.replace(config, **{name: section})
    select(config, tmp_path, initial)
    assert len(initial.asked) == 2


def test_other_weights_and_other_problems_make_it_anew(tmp_path):
    initial, config = Initial(), filtering(tmp_path)
    select(config, tmp_path, initial)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    select(config, tmp_path, initial)
    assert select(config, tmp_path, initial, PROBLEMS[1:]) == ["seldom"]
    assert len(initial.asked) == 3
    corrected = [dataclasses.replace(problem, answer="2") for problem in PROBLEMS[1:]]
    select(config, tmp_path, initial, corrected)
    assert len(initial.asked) == 4


def test_other_tokenizer_template_or_stop_ids_make_it_anew(tmp_path):
    initial, config = Initial(), filtering(tmp_path)
    select(config, tmp_path, initial)
    contents = {
        "tokenizer.json": "another",
        "chat_template.jinja": "another",
        "generation_config.json": '{"eos_token_id": 7}',
    }
    for number, (name, content) in enumerate(contents.items(), start=2):
        (tmp_path / name).write_text(content)
        select(config, tmp_path, initial)
        assert len(initial.asked) == number


def test_no_problem_left_is_refused(tmp_path):
    sentence = r"no train problem has initial Avg@4 below problems\.base_avg_below=0\.1"
    with pytest.raises(UserError, match=sentence):
        select(filtering(tmp_path, 0.1), tmp_path, Initial(), PROBLEMS[1:])
