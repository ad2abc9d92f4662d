# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run started from is evaluated once for each thing that decides it."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.runs import small_config

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, write_json
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.evaluate import METRICS, Evaluation
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs import start
from stepalign_jax.runs.directory import RunDirectory, open_run
from stepalign_jax.runs.inputs import KEPT_BY_FILTER, fingerprint_inputs, fingerprint_problems

TINY = resolve_checkpoint("packaged:tiny")
PROBLEMS = [Problem("1+2", "3", None, "jsonl"), Problem("2+2", "4", None, "jsonl")]


def found(share: float) -> Evaluation:
    lists = {name: [share] * 2 for name in METRICS} | {"num_samples": [2.0] * 2}
    return Evaluation.from_lists(lists)


@pytest.fixture
def config(tmp_path) -> Config:
    return small_config(tmp_path / "runs")


@pytest.fixture
def run(config) -> RunDirectory:
    """A run that has measured 0.25 on its test problems before training."""
    run = open_run(config)
    inputs = fingerprint_inputs(config, TINY, None, {"test": PROBLEMS})
    write_json(run.inputs_file, {"fingerprints": inputs, "changes": []})
    write_json(run.evaluation_file("before"), found(0.25).as_lists())
    return run


class Asked:
    """Evaluates runs' starts; each measurement gives 0.5."""

    def __init__(self) -> None:
        self.num_measured = 0

    def __call__(
        self,
        run: RunDirectory,
        config: Config,
        *,
        on: str = "test",
        problems: Any = PROBLEMS,
        directory: Path = TINY,
    ) -> float:
        return start.evaluate_start(run, config, directory, on, problems, self._measure).mean(
            "avg_at_k"
        )

    def _measure(self) -> Evaluation:
        self.num_measured += 1
        return found(0.5)


@pytest.fixture
def asked() -> Asked:
    return Asked()


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    new = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in sections.items()
    }
    return dataclasses.replace(config, **new)


def test_the_runs_own_evaluation_is_taken_where_nothing_differs(run, config, asked, capsys):
    assert asked(run, config) == 0.25 and asked.num_measured == 0
    assert capsys.readouterr().err == (
        f"note: the base was evaluated before, in {run.evaluation_file('before')}\n"
    )
    other = changed(
        config,
        evaluation={"batch_size": 9, "confidence": 0.5, "num_resamples": 7},
        prompts={"critic": "{problem}"},
    )
    assert asked(run, other) == 0.25 and asked.num_measured == 0


@pytest.mark.parametrize(
    "sections",
    [
        {"evaluation": {"temperature": 0.3}},
        {"evaluation": {"max_new_tokens": 9}},
        {"evaluation": {"grading_secs": 0.1}},
        {"prompts": {"solver": "Solve {problem}"}},
        {"prompts": {"answer_pattern": "(.*)"}},
        {"model": {"compute_dtype": "bfloat16"}},
    ],
)
def test_what_decides_it_is_measured_once_more(run, config, asked, sections):
    other = changed(config, **sections)
    assert [asked(run, other), asked(run, other)] == [0.5, 0.5]
    assert asked.num_measured == 1
    assert asked(run, config) == 0.25  # the run's own is still there


def test_another_seed_set_or_name_is_measured(run, config, asked, tmp_path):
    asked(run, dataclasses.replace(config, seed=1))
    asked(run, config, problems=[PROBLEMS[0], dataclasses.replace(PROBLEMS[1], answer="5")])
    asked(run, config, on="gsm8k")
    shutil.copytree(TINY, tmp_path / "model")
    asked(run, config, directory=tmp_path / "model")  # a copy is the same
    assert asked.num_measured == 3
    (tmp_path / "model" / "chat_template.jinja").write_text("another")
    assert asked(run, config, directory=tmp_path / "model") == 0.5
    assert asked.num_measured == 4


def test_k_is_that_of_every_problem(run, config, asked):
    more = changed(config, evaluation={"num_samples": 3})
    with pytest.raises(UserError, match=r"start_test_\w+\.json: problem 1 of 2 has 2 samples"):
        asked(run, more)  # measured and kept,
        asked(run, more)  # and not of three samples
    path = run.evaluation_file("before")
    write_json(path, read_json(path) | {"num_samples": [2, 1]})
    with pytest.raises(UserError, match=r"before\.json: problem 2 of 2 has 1 samples, not k=2"):
        asked(run, config)


def test_behind_the_difficulty_filter_the_problems_that_it_kept_count(run, config, asked):
    inputs = read_json(run.inputs_file)
    inputs["fingerprints"] |= fingerprint_problems({"test": PROBLEMS}, KEPT_BY_FILTER)
    inputs["fingerprints"] |= fingerprint_problems({"test": PROBLEMS * 2}, "problems")
    write_json(run.inputs_file, inputs)
    assert asked(run, config) == 0.25
    assert asked(run, config, problems=PROBLEMS[::-1]) == 0.5


def test_a_run_that_does_not_say_what_it_began_with_is_measured(run, config, asked):
    run.inputs_file.unlink()
    assert asked(run, config) == 0.5


def test_a_run_that_cannot_be_written_is_evaluated_all_the_same(
    run, config, asked, monkeypatch, capsys
):
    def refuse(path: Path, _: Any) -> None:
        raise UserError(f"cannot write {path}")

    monkeypatch.setattr(start, "write_json", refuse)
    assert asked(run, config, on="gsm8k") == 0.5
    assert "again next time: cannot write" in capsys.readouterr().err
