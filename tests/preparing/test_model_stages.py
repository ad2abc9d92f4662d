# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Filters by the solver and the critic: worked by hand, and killed on the packaged model."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from support.runs import ScriptedEngine, small_config, tiny_roles

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.stopping import EXIT_CAN_GO_ON, Stopped
from stepalign_jax.critics.protocol import CriticReply
from stepalign_jax.evaluation.probe import Asker
from stepalign_jax.feedback.contexts import Context
from stepalign_jax.grading.grader import Grader
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.preparing import model_stages as stages_module
from stepalign_jax.preparing.model_stages import Filters, StageOptions, model_stages
from stepalign_jax.preparing.prepared import prepare
from stepalign_jax.preparing.rows import Dropped, Row, Source
from stepalign_jax.preparing.write import SplitRule
from stepalign_jax.problems.arithmetic import arithmetic_problems
from stepalign_jax.sampling.kept import Kept

LONG = "+".join("7" * 200)
ROWS = [
    Row("1+2*3", "7", None),  # kept
    Row("2+2*3", "8", None),  # too easy: one of two samples is right
    Row("3+2*3", "9", None),  # only one of two attempts is a trace with an answer
    Row("4+2*3", "10", None),  # no critique is right and whole
    Row(LONG, "1400", None),
]


def trace(answer: str) -> str:
    return f"Step 1: 2*3=6\nAnswer: {answer}"


EVALUATED = [trace(a) for a in ("1", "2", "8", "0", "1", "1", "1", "1")]
GREEDY = [trace("1")] * 4
# Of problems 1, 3 and 4, two attempts each.
ATTEMPTS = [trace("1"), trace("7"), trace("1"), "Answer: 9", trace("1"), trace("2")]
CRITIQUES = [
    Context(trace("6"), None),
    Context(trace("7"), None),
    Context(trace("10"), "truncated"),
    Context(trace("11"), None),
]


class FixedCritic:
    """Answers with CRITIQUES, and remembers the attempts."""

    def load(self) -> None:
        self.is_loaded = True

    def review(self, attempts: Any, addresses: Any) -> CriticReply:
        self.asked = [attempt.text for attempt in attempts]
        assert len(attempts) == len(addresses)
        return CriticReply(CRITIQUES, [], [])


def filters(tmp_path: Path, engine: ScriptedEngine, critic: Any, **options: Any) -> Filters:
    config = small_config(tmp_path, problems={"base_avg_below": 0.5, "base_avg_samples": 2})
    model: Any = SimpleNamespace(
        engine=engine,
        variables=lambda: {"params": {}},
        load=lambda: None,
        mesh=make_mesh(config.parallel, jax.devices()[:1]),
        fingerprint={"model weights": "1f"},
        sizes=SimpleNamespace(max_positions=512),
    )
    asker = Asker(model, tiny_roles(), 1, 0, None)
    how = StageOptions(
        **{"attempts": 2, "min_format_rate": 0.75, "asks_critic": True} | options
    )
    return Filters(config, how, asker, Grader(deadline_secs=5.0, num_workers=1), critic)


def test_each_filter_by_hand(tmp_path, capsys):
    critic = FixedCritic()
    engine = ScriptedEngine(EVALUATED, GREEDY, ATTEMPTS)
    taken = ["base_avg", "format_rate", "critic_unsolved", "too_long"]
    assert filters(tmp_path, engine, critic).apply(ROWS) == [ROWS[0], *map(Dropped, taken)]
    assert critic.asked == [ATTEMPTS[i] for i in (0, 1, 4, 5)] and critic.is_loaded
    line = "5 problems: 1 kept; too_long 1, base_avg 1, format_rate 1, critic_unsolved 1\n"
    assert capsys.readouterr().out == line


def test_a_share_below_the_bound_is_too_little_and_the_bound_is_not(tmp_path):
    rows, engine = [ROWS[2]], ScriptedEngine(EVALUATED[4:6], GREEDY[:1], ATTEMPTS[2:4])
    assert filters(tmp_path, engine, None, min_format_rate=0.5).apply(rows) == rows
    engine = ScriptedEngine(ATTEMPTS[2:4])  # Avg@2 is remembered
    found = filters(tmp_path, engine, None, min_format_rate=0.51).apply(rows)
    assert found == [Dropped("format_rate")]


def test_a_chunk_of_which_nothing_is_left_asks_nobody_further(tmp_path):
    engine = ScriptedEngine(EVALUATED[2:4], GREEDY[:1])
    assert filters(tmp_path, engine, FixedCritic()).apply(ROWS[1:2]) == [Dropped("base_avg")]


def small_source() -> Source:
    """Six sums of which the packaged model solves some."""
    problems = arithmetic_problems("training", 6, 3, 3)
    rows = [Row(p.text, p.answer, p.reference, where=str(i)) for i, p in enumerate(problems)]
    return Source("sums", ("sums",), lambda _, skip: iter(rows[skip:]), (), {}, "none")


def run(target: Path, config: Any) -> dict[str, Any]:
    stages = model_stages(config, StageOptions(2, 0.75, asks_critic=True))
    return prepare(
        small_source(),
        target,
        rule=SplitRule(0.2, 0.2),
        limits={"train": None, "validation": None, "test": None},
        options={},
        stages=stages,
        overwrite=False,
    )


@pytest.mark.long
def test_a_stopped_preparation_goes_on_and_ends_with_the_same_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(stages_module, "CHUNK", 4)  # two chunks
    settings = {"base_avg_below": 0.9, "base_avg_samples": 2}
    add, added = Kept.add, list[str]()

    def stop_at(number: int) -> None:
        def add_or_stop(kept: Kept, key: str, completion: Any) -> None:
            add(kept, key, completion)
            added.append(key)
            if len(added) == number:
                raise Stopped("stopped", 130)

        monkeypatch.setattr(Kept, "add", add_or_stop)

    config = small_config(tmp_path / "runs", problems=settings)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    counts = {c["what"]: c["number"] for c in run(whole, config)["counts"]}
    # Each filter that needs weights has something to do here.
    assert counts["base_avg"] > 0 and counts["rows_read"] == 6
    config = dataclasses.replace(config, runs_dir=str(tmp_path / "others"))
    for number in (14, 25):  # attempts of the first chunk, and in the second one
        stop_at(number)
        with pytest.raises(Stopped, match="the same command goes on") as stopped:
            run(broken, config)
        assert stopped.value.exit_code == EXIT_CAN_GO_ON and not broken.exists()
    stop_at(0)
    run(broken, config)
    assert len(added) == len(set(added)) > 25  # nothing was drawn twice
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in broken.iterdir())
    assert all((whole / n).read_bytes() == (broken / n).read_bytes() for n in names)


def test_a_critic_whose_words_need_not_end_in_an_answer_is_refused(tmp_path):
    config = small_config(tmp_path, critic={"accepts": "any"})
    with pytest.raises(UserError, match=r"--critic\.accepts=trace, or --skip-critic"):
        model_stages(config, StageOptions(2, 0.75, asks_critic=True))
    stages = model_stages(config, StageOptions(2, 0.75, asks_critic=False))
    assert "critic_unsolved" not in stages.filters
