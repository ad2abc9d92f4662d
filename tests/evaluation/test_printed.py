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
from stepalign_jax.evaluation.probe import CriticFindings
from stepalign_jax.feedback.contexts import Attempt, Context
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
    roles = SimpleNamespace()
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
        monkeypatch.setattr(command, "check_problems", lambda *_, **__: None)
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
    attempts = list(map(Attempt, PROBLEMS[1:], "abc"))
    critiques = [Context("a", None), Context("", "empty"), Context("c", None)]
    exact, wrong = np.array([True, False, False, True]), np.array([True, False, True, False])
    findings = CriticFindings(attempts, critiques, exact, wrong, [10, 25])
    seen: list[list[str]] = []

    def teacher(*_: Any) -> Any:
        for name, right in (("stepalign", np.ones(3)), ("refsol", np.zeros(0))):
            seen.append(capsys.readouterr().out.splitlines())
            yield name, right

    monkeypatch.setattr(
        probe, "open_run_critic", lambda *_, **__: SimpleNamespace(load=lambda: None)
    )
    monkeypatch.setattr(probe, "probe_critic", lambda *_: findings)
    monkeypatch.setattr(probe, "probe_teacher", teacher)
    config = write_config(tmp_path / "config.py", small_config(tmp_path))
    to = tmp_path / "found.json"
    probe.main(["--config", config, "--split", "validation", "--to", str(to)])
    last = capsys.readouterr().out.splitlines()
    # Each is printed before the next is asked for.
    first, second = seen
    assert first[0] == "3 of 4 validation problems"
    assert first[2].split() == ["solver", "percent"]
    assert first[4].split() == ["Avg@2", "12.5", "[12.5,", "12.5]"]
    assert any(line.split()[:2] == ["exact", "50.0"] for line in first)
    assert first[-2].split() == ["teacher", "shown", "percent"]
    assert second == ["stepalign          100.0 [100.0, 100.0]"]
    assert last == [
        "refsol             –",
        "Shares in percent, [intervals] over problems.",
        f"written: {to}",
    ]
    assert all(len(line) <= 80 for line in [*first, *second, *last[:-1]])
    found = read_json(to)
    assert (found["candidates"], found["problems"]) == (4, 3)
    assert found["teacher_accuracy"] == {"stepalign": 1.0, "refsol": None}
    assert found["critic"] == {
        "attempts": 3,
        "wrong_attempts": 2,
        "exact_on_wrong": 0.5,
        "exact": 0.5,
        "mean_tokens": 17.5,
        "failed": {"empty": 1},
    }
    assert found["solver"]["greedy"]["mean"] == 0.5
    assert not to.with_name("found.json.partial").exists()
