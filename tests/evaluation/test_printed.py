# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What `probe` and `evaluate` print and write, of numbers that are fixed here."""

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runs import refusal, small_config, write_config

from stepalign_jax import evaluate, probe
from stepalign_jax.base.files import read_json
from stepalign_jax.config.load import load_config
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.evaluation.probe import CriticFindings
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import open_run

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
        variables=lambda: {"params": np.zeros(2)},
        directory=resolve_checkpoint("packaged:tiny"),
        fingerprint={"model weights": "1f"},
        weights=None,
        engine=None,
    )
    model.with_saved_adapter = lambda directory: model
    for command in (evaluate, probe):
        monkeypatch.setattr(command, "open_solver", lambda config: (model, roles))
        monkeypatch.setattr(command, "load_problems", lambda config, split: PROBLEMS)
        monkeypatch.setattr(command, "select_problems", lambda *_: PROBLEMS[1:])
        monkeypatch.setattr(command, "make_grader", lambda config: nullcontext())
        monkeypatch.setattr(command, "check_problems", lambda *_, **__: None)
        monkeypatch.setattr(command, "use_mesh", lambda mesh: nullcontext())
        monkeypatch.setattr(command, "evaluate", found_evaluation)
        monkeypatch.setattr(
            command, "count_opening", lambda _, split, **__: {"test": "opened"}.get(split, "")
        )


def test_what_evaluate_prints_and_writes(tmp_path, fixed_parts, capsys):
    changes = {"num_samples": 6, "num_validation_samples": 2}
    config = write_config(tmp_path / "c.py", small_config(tmp_path, evaluation=changes))
    evaluate.main(["--config", config])
    first, *table, line, opened = [row for row in capsys.readouterr().out.splitlines() if row]
    assert first == "packaged:tiny: 3 test problems"  # alone: it is the base
    assert table[2].split() == ["Avg@6", "12.5", "[12.5,", "12.5]"]
    assert opened == "opened"
    assert table[7].split()[:3] == ["no", "answer", "75.0"]
    means = {name: 0.125 * i for i, name in enumerate(SHARES, start=1)}
    assert json.loads(line) == {**means, "mean_tokens": 5.0}
    evaluate.main(["--config", config, "--to", str(tmp_path / "found.json")])
    found = read_json(tmp_path / "found.json")["test"]
    assert found["problems"] == ["b", "c", "d"] and found["rows"].keys() == {"base"}
    base = found["rows"]["base"]
    assert base["per_problem"] == found_evaluation().as_lists()
    assert base["intervals"]["mean_tokens"]["mean"] == 5.0
    assert found["inputs"]["num_samples"] == 6 and "gain" not in found


def test_a_run_stands_beside_its_base_on_every_benchmark(
    tmp_path, fixed_parts, monkeypatch, capsys
):
    run = open_run(small_config(tmp_path, evaluation={"num_samples": 6}))
    monkeypatch.setattr(evaluate, "choose_step", lambda *_, **__: 4)
    monkeypatch.setattr(evaluate, "load_trained", lambda _: {"params": np.ones(2)})
    files = {}
    for name, text in {"aime2024": "problem", "gsm8k": "question"}.items():
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text(json.dumps({text: name, "answer": "#### 12"}))
    asked: list[tuple[str, float]] = []

    def measure(_: Any, variables: Any, *rest: Any, label: str, **__: Any) -> Evaluation:
        asked.append((label, float(variables["params"][0])))
        if len(asked) == 3:  # the first table is there before the second set is asked
            assert "1 aime2024 problems" in capsys.readouterr().out
        (problem,) = rest[2]
        assert (problem.text, problem.source) == (problem.source, problem.source)
        trained = variables["params"][0] == 1
        shares = {name: np.array([0.75 if trained else 0.25]) for name in SHARES}
        return Evaluation(
            {**shares, "mean_tokens": np.array([9.0]), "num_samples": np.array([6.0])}
        )

    monkeypatch.setattr(evaluate, "evaluate", measure)
    monkeypatch.setattr(evaluate, "select_problems", None)  # a benchmark is evaluated whole
    on = ",".join(f"{name}={file}" for name, file in files.items())
    argv = ["--run", str(run.path), "--on", on, "--to", str(tmp_path / "found.json")]
    evaluate.main(argv)
    assert asked == [
        (f"evaluate {name}, {row}", value)
        for name in files
        for row, value in (("base", 0.0), ("trained", 1.0))
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"packaged:tiny and {run.path}, step 4: 1 gsm8k problems"
    assert lines[1].split() == ["gsm8k", "base", "trained", "gain"]
    assert lines[3].split()[:2] == ["Avg@6", "25.0"] and "+50.0 [+50.0, +50.0]" in lines[3]
    assert lines[-1] == f"written: {tmp_path / 'found.json'}"
    found = read_json(tmp_path / "found.json")
    assert list(found) == list(files)
    for content in found.values():
        assert content["gain"]["avg_at_k"]["mean"] == 0.5
        rows = content["rows"]
        assert rows["trained"]["source"] == f"{run.path}, step 4"
        assert rows["trained"]["weights"] != rows["base"]["weights"]
    hashes = [content["inputs"]["problems"] for content in found.values()]
    assert len(set(hashes)) == 2
    # The base is not measured again.
    asked.clear()
    evaluate.main(argv)
    assert [label for label, _ in asked] == [f"evaluate {name}, trained" for name in files]
    assert read_json(tmp_path / "found.json") == found


def test_a_model_alone_has_the_prompts_of_the_paper(tmp_path, fixed_parts, monkeypatch, capsys):
    seen: list[Config] = []
    make, file = evaluate.make_grader, tmp_path / "amc.jsonl"
    file.write_text('{"question": "a", "answer": 27.0}')
    monkeypatch.setattr(
        evaluate, "make_grader", lambda config: seen.append(config) or make(config)
    )
    argv = ["--model", "packaged:tiny", "--on", f"amc23={file}"]
    evaluate.main([*argv, "--evaluation.num_samples=2"])
    expected = load_config(
        "stepalign", ["--model.path=packaged:tiny", "--evaluation.num_samples=2"]
    )
    out, err = capsys.readouterr()
    assert seen == [expected] and out.startswith("packaged:tiny: 1 amc23 problems")
    assert err == "note: prompts, sampling and evaluation are those of --config stepalign\n"
    config = write_config(tmp_path / "config.py", small_config(tmp_path))
    evaluate.main([*argv, "--config", config])
    assert seen[1] == small_config(tmp_path) and "note" not in capsys.readouterr().err


def test_an_adapter_stands_beside_its_base(tmp_path, fixed_parts, capsys):
    config = write_config(tmp_path / "config.py", small_config(tmp_path))
    evaluate.main(["--config", config, "--model", "packaged:tiny", "--adapter", "mine"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "packaged:tiny and packaged:tiny with mine: 3 test problems"
    assert lines[1].split() == ["test", "base", "trained", "gain"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "name a config with --config, or a run with --run, or a model with --model"),
        (["--run", "a", "--model", "b"], "a run has its own model"),
        (["--config", "tiny", "--adapter", "b"], "--adapter goes with --model"),
        (["--config", "tiny", "--on", "gsm8k", "--split", "test"], "leave it out with --on"),
        (["--config", "tiny", "--on", "gsm8"], "did you mean 'gsm8k'?"),
    ],
)
def test_options_that_do_not_go_together(argv, sentence, monkeypatch, capsys):
    assert sentence in refusal(evaluate.main, argv, monkeypatch, capsys)


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
