# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What `evaluate` and `probe` print and write, of numbers that are fixed here."""

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runs import small_config, write_config

from stepalign_jax import evaluate, probe
from stepalign_jax.base.files import read_json
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.problems.problem import Problem

SHARES = ("avg_at_k", "pass_at_k", "maj_at_k", "greedy", "truncated", "unparsed")
PROBLEMS = [Problem(text, "1", None, "jsonl") for text in ("a", "b", "c", "d")]


def found_evaluation(*_: Any, **__: Any) -> Evaluation:
    """The same share for all problems, so that an interval is a point; other for each name."""
    values = {name: np.full(3, 0.125 * i) for i, name in enumerate(SHARES, start=1)}
    return Evaluation({**values, "mean_tokens": np.array([3.0, 4.0, 8.0])})


@pytest.fixture
def fixed_parts(monkeypatch):
    """Both commands without a model: the filter leaves three of four problems."""
    roles = SimpleNamespace(check_problems=lambda *_: None)
    model = SimpleNamespace(
        sizes=SimpleNamespace(max_positions=512),
        load=lambda: None,
        mesh=None,
        variables=lambda: {"params": {}},
        weights=None,
        engine=None,
    )
    for command in (evaluate, probe):
        monkeypatch.setattr(command, "open_solver", lambda config: (model, roles))
        monkeypatch.setattr(command, "load_problems", lambda config, split: PROBLEMS)
        monkeypatch.setattr(command, "select_problems", lambda *_: PROBLEMS[1:])
        monkeypatch.setattr(command, "make_grader", lambda config: nullcontext())
        monkeypatch.setattr(command, "name_unparsable_golds", lambda *_: None)
        monkeypatch.setattr(command, "use_mesh", lambda mesh: nullcontext())
        monkeypatch.setattr(command, "evaluate", found_evaluation)


def test_what_evaluate_prints_and_writes(tmp_path, fixed_parts, capsys):
    changes = {"num_samples": 6, "num_validation_samples": 2}
    config = write_config(tmp_path / "c.py", small_config(tmp_path, evaluation=changes))
    evaluate.main(["--config", config])
    first, *table, line = [row for row in capsys.readouterr().out.splitlines() if row]
    assert first == "packaged:tiny: 3 test problems"
    assert table[2].split() == ["Avg@6", "12.5", "[12.5,", "12.5]"]
    assert table[7].split()[:3] == ["no", "answer", "75.0"]
    means = {name: 0.125 * i for i, name in enumerate(SHARES, start=1)}
    assert json.loads(line) == {**means, "mean_tokens": 5.0}
    evaluate.main(["--config", config, "--to", str(tmp_path / "found.json")])
    found = read_json(tmp_path / "found.json")
    assert found["per_problem"] == {
        "problems": ["b", "c", "d"],
        **found_evaluation().as_lists(),
    }
    assert found["intervals"]["mean_tokens"]["mean"] == 5.0


def test_what_probe_prints_and_writes(tmp_path, fixed_parts, monkeypatch, capsys):
    critic = {"attempts": 3, "exact_on_wrong": 0.25, "mean_tokens": 17.5}
    teacher = {"stepalign": 0.625, "refsol": None}
    monkeypatch.setattr(probe, "open_run_critic", lambda *_: SimpleNamespace(load=lambda: None))
    monkeypatch.setattr(probe, "probe_critic", lambda *_: ([], [], critic))
    monkeypatch.setattr(probe, "probe_teacher", lambda *_: teacher)
    config = write_config(tmp_path / "config.py", small_config(tmp_path))
    to = tmp_path / "found.json"
    spread = {"mean": 0.5, "low": 0.25, "high": 0.875}
    monkeypatch.setattr(
        Evaluation, "intervals", lambda *_: {n: spread for n in (*SHARES, "mean_tokens")}
    )
    probe.main(["--config", config, "--split", "validation", "--to", str(to)])
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert words == [
        ["3", "of", "4", "validation", "problems"],
        *(
            ["solver", name, "0.500", "[0.250,", "0.875]"]
            for name in ("avg_at_k", "pass_at_k", "maj_at_k", "greedy", "unparsed")
        ),
        *(["critic", name, str(value)] for name, value in critic.items()),
        ["teacher,", "context", "of", "stepalign", "0.625"],
        ["teacher,", "context", "of", "refsol", "None"],
        ["written:", str(to)],
    ]
    found = read_json(to)
    assert (found["candidates"], found["problems"]) == (4, 3)
    assert (found["critic"], found["teacher_accuracy"]) == (critic, teacher)
    assert found["solver"]["greedy"] == spread
