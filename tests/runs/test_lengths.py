# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Lengths and numbers of problems are checked before a run, for every problem there is."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import small_config, tiny_roles

from stepalign_jax import train
from stepalign_jax.base.errors import UserError
from stepalign_jax.config.load import load_config
from stepalign_jax.config.merge import apply_overrides
from stepalign_jax.huggingface import language_model
from stepalign_jax.problems.problem import Problem
from stepalign_jax.problems.sources import load_problems
from stepalign_jax.runs.setup import check_lengths, check_problems

SHORT = Problem("47+3*8-12", "59", None, "jsonl")
LONG = Problem("12+3-4+5*6-7+8-9+1+2-3", "38", None, "jsonl")
# What stands around a problem: 4 tokens for the solver, 14 more for the teacher.


def check(positions: int, *problems: Problem, split: str = "train", **sections: Any) -> None:
    changes = {"prompts": {"max_context_tokens": 20}} | sections
    config = small_config(Path("unused"), **changes)  # 40 new tokens in both phases
    model: Any = SimpleNamespace(sizes=SimpleNamespace(max_positions=positions))
    roles = tiny_roles(max_context_tokens=20)
    trained = ("train",)
    check_lengths(config, model, roles, {split: problems}, trained=trained, teacher=True)


def lengths(problem: Problem) -> tuple[int, int]:
    roles = tiny_roles()
    return len(roles.solver(problem)), len(roles.teacher(problem, ""))


def test_the_longest_problem_decides_to_the_token():
    _, teacher = lengths(LONG)
    check(teacher + 20 + 40, SHORT, LONG)
    left = 20 + 40 - 1
    with pytest.raises(UserError) as refusal:
        check(teacher + left, SHORT, LONG)
    assert str(refusal.value) == (
        f"problem 2 of train, '{LONG.text}', takes {teacher} of the model's {teacher + left} "
        "positions in the teacher's prompt, so prompts.max_context_tokens=20 and "
        f"sampling.max_new_tokens=40 do not fit into the other {left}: lower them by 1 in all, "
        "or leave the problem out."
    )


def test_evaluated_problems_need_room_for_the_solver_alone():
    solver, _ = lengths(LONG)
    check(solver + 40, SHORT, LONG, split="test")
    with pytest.raises(
        UserError, match=r"problem 2 of validation.* evaluation\.max_new_tokens"
    ):
        check(solver + 39, SHORT, LONG, split="validation")


def test_a_filter_samples_training_problems_as_evaluation_does():
    solver, teacher = lengths(SHORT)
    more = {"evaluation": {"max_new_tokens": 90}}
    check(teacher + 60, SHORT, **more)
    filtered = more | {"problems": {"base_avg_below": 0.5}}
    with pytest.raises(UserError, match=r"evaluation\.max_new_tokens=90"):
        check(max(solver + 89, teacher + 60), SHORT, **filtered)


def test_a_benchmark_is_checked_like_a_split(capsys):
    config = small_config(Path("unused"))
    roles, (solver, _) = tiny_roles(), lengths(LONG)
    grader: Any = SimpleNamespace(
        unparsable=lambda golds: [g for g in golds if g == "x+"], check_scorers=list
    )
    problems = {"aime2024": [LONG, dataclasses.replace(SHORT, answer="x+")]}

    def check_on(positions: int) -> None:
        model: Any = SimpleNamespace(sizes=SimpleNamespace(max_positions=positions))
        check_problems(config, model, roles, grader, problems, teacher=False)

    check_on(solver + 40)
    line = capsys.readouterr().err
    # None is missing: the config does not say how many problems a benchmark has.
    assert line.count("\n") == 1 and "1 of 2 expected answers" in line
    with pytest.raises(UserError, match="problem 1 of aime2024, "):
        check_on(solver + 39)


@pytest.mark.parametrize("variant", ["", "hard", "refsol", "grpo"])
def test_the_miniature_has_room(variant):
    config = load_config(f"tiny:{variant}" if variant else "tiny")
    config = apply_overrides(config, ["--problems.num_train=200"])
    model: Any = SimpleNamespace(sizes=SimpleNamespace(max_positions=512))
    roles = tiny_roles()
    problems = {split: load_problems(config.problems, split) for split in ("train", "test")}
    check_lengths(config, model, roles, problems, trained=("train",), teacher=True)


def problem_files(directory: Path, num_train: int, *more: str) -> dict[str, Any]:
    for split, number in (("train", num_train), ("validation", 2), ("test", 2)):
        texts = [f"{i + 2}+3*8-12" for i in range(number)] + list(more) * (split == "test")
        rows = [f'{{"problem": "{text}", "answer": "1"}}\n' for text in texts]
        (directory / f"{split}.jsonl").write_text("".join(rows))
    numbers = {"num_train": 8, "num_validation": 2, "num_test": 4}
    return {"kind": "jsonl", "path": str(directory), **numbers}


@pytest.mark.parametrize(
    ("num_train", "more", "sentence"),
    [
        (3, (), r"takes train\.problems_per_step=4 different problems, but there are 3"),
        (8, ("+".join(["11"] * 60),), "problem 3 of test, .* over prompts.max_problem_tokens"),
    ],
)
def test_a_run_is_refused_before_weights_are_read(
    tmp_path, monkeypatch, num_train, more, sentence
):
    monkeypatch.setattr(language_model, "load_params", None)
    config = small_config(
        tmp_path / "runs",
        problems=problem_files(tmp_path, num_train, *more),
        train={"problems_per_step": 4, "samples_per_problem": 1},
    )
    with pytest.raises(UserError, match=sentence):
        train.train(config)


def test_a_source_with_fewer_problems_than_asked_for_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(language_model, "load_params", None)
    config = small_config(tmp_path / "runs", problems=problem_files(tmp_path, 5))
    with pytest.raises(TypeError):  # no weights can be read
        train.train(config)
    error = capsys.readouterr().err
    assert "note: there are 5 train problems; problems.num_train asks for 8" in error
    assert "note: there are 2 test problems; problems.num_test asks for 4" in error
    assert "validation" not in error


def test_more_problems_than_there_can_be_are_refused():
    config = load_config("tiny", ["--problems.num_train=999999999"])
    with pytest.raises(UserError, match=r"999999999 arithmetic problems .* at most 1000000"):
        load_problems(config.problems, "train")
