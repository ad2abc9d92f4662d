# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""docs/extending.md, followed word for word: its files are written out and trained with."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepalign_jax import probe, train
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.config.load import load_config
from stepalign_jax.feedback.contexts import CONDITIONS
from stepalign_jax.objectives.token_weights import TOKEN_WEIGHTS
from stepalign_jax.runs import phases
from stepalign_jax.runs.directory import RunDirectory

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILES = dict(re.findall(r"```python file=(\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL))
# One step of two rollouts; the shapes are those of other tests' runs.
SMALL = [
    "--train.num_steps=1",
    "--train.problems_per_step=4",
    "--train.validate_every_steps=0",
    "--optimizer.warmup_steps=0",
    "--evaluation.num_samples=2",
    "--problems.num_train=16",
    "--problems.num_test=4",
    "--sampling.batch_size=4",
    "--sampling.max_new_tokens=40",
    "--evaluation.batch_size=4",
    "--evaluation.max_new_tokens=40",
    "--evaluation.num_resamples=50",
]
THREE = ["--problems.min_reasoning_steps=3", "--problems.max_reasoning_steps=3"]


@pytest.fixture(autouse=True)
def files_of_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Writes them out, and afterwards forgets the conditions and weights they register."""
    registries = (CONDITIONS, TOKEN_WEIGHTS)
    before = [dict(registry) for registry in registries]
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def run(
    tmp_path: Path, name: str, *overrides: str
) -> tuple[RunDirectory, list[dict[str, Any]]]:
    """Trains one step with a file of the page; returns the run and its rollouts."""
    arguments = ["--config", str(tmp_path / name), *SMALL, *overrides]
    train.main(arguments)
    directory = RunDirectory.of(load_config(arguments[1], arguments[2:]))
    return directory, read_jsonl(directory.rollouts_file(0))


def test_a_new_thing_takes_one_file_and_two_lines() -> None:
    uses = {name: text for name, text in FILES.items() if name.startswith("with_")}
    assert len(uses) == 4
    for name, text in uses.items():
        own = name.removeprefix("with_").removesuffix(".py")
        assert f"import {own}" in text or f"from {own} import" in text, name
    assert all(len(text.splitlines()) <= 40 for text in FILES.values())
    assert len(FILES["mine.py"].splitlines()) == 11  # ten lines, and a blank one at their head


def test_a_config_of_ones_own(tmp_path: Path) -> None:
    shipped = load_config("tiny:refsol")
    config = load_config(f"{tmp_path / 'mine.py'}:refsol", ["--seed=1"])
    assert config.name == "mine-tiny-refsol" and config.seed == 1
    assert config.optimizer.learning_rate == shipped.optimizer.learning_rate / 2
    assert config.problems == shipped.problems


@pytest.mark.long
def test_a_context(tmp_path: Path) -> None:
    directory, rows = run(tmp_path, "with_first_fix.py", *THREE)
    fixes = [row["context"] for row in rows if not row["correct"]]
    assert fixes and all(re.fullmatch(r"Step \d: [\d+*-]+=\d+\s*", fix) for fix in fixes)
    assert not any(row["context"] in row["rollout"] for row in rows if row["context"])
    assert read_json(directory.summary_file)["condition"] == "first_fix"
    config = load_config(str(tmp_path / "with_first_fix.py"), [*SMALL, *THREE])
    found = probe.probe(config, "test", None)["teacher_accuracy"]
    assert set(found) >= {"first_fix", "stepalign"}


@pytest.mark.long
def test_a_critic(tmp_path: Path) -> None:
    _, rows = run(tmp_path, "with_hint_critic.py", *THREE, "--critic.opening=Hint: ")
    assert all(re.fullmatch(r"Hint: so .* gives \d+", row["context"]) for row in rows)


@pytest.mark.long
def test_a_source_of_problems(tmp_path: Path) -> None:
    _, rows = run(tmp_path, "with_doubles.py", "--condition=refsol")
    for row in rows:
        number = int(row["answer"]) // 2
        assert number % 3 == 0 and row["context"] == f"so {number}+{number}"


@pytest.mark.long
def test_a_weight_per_token(tmp_path: Path) -> None:
    weighted, rows = run(tmp_path, "with_second_half.py", *THREE)
    plain, same = run(
        tmp_path, "with_second_half.py", *THREE, "--objective.token_weights=", "--name=plain"
    )
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in same]
    losses = [read_jsonl(d.metrics_file)[0]["loss"] for d in (weighted, plain)]
    assert 0 < losses[0] < losses[1]


@pytest.mark.long
def test_a_feedback_design(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Context, critic's prompt and weight in one file; the probe measures that context."""
    asked: list[Any] = []
    weigh = phases.token_weights
    monkeypatch.setattr(
        phases,
        "token_weights",
        lambda names, inputs: asked.append((inputs, weigh(names, inputs))) or asked[-1][1],
    )
    directory, rows = run(tmp_path, "new_line.py", *THREE)
    [(inputs, weights)] = asked
    for row, weight, copied in zip(rows, weights, inputs.copied, strict=True):
        assert "\n" not in row["context"] and row["context"] not in row["rollout"].splitlines()
        assert weight.tolist() == [1.0] * copied + [3.0] * (len(weight) - copied)
    assert len({int(copied) for copied in inputs.copied}) > 1
    assert "Expected" not in read_json(directory.prompts_file)["critic"]
    config = load_config(str(tmp_path / "new_line.py"), [*SMALL, *THREE])
    found = probe.probe(config, "test", None)["teacher_accuracy"]
    assert set(found) >= {"new_line", "stepalign"} and found["new_line"] is not None
