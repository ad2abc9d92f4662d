# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The probe's numbers, worked by hand from fixed words of all three roles."""

from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import ScriptedEngine, small_config, tiny_roles

from stepalign_jax.base.stopping import Stopped
from stepalign_jax.critics.oracle import Oracle
from stepalign_jax.critics.protocol import CriticReply
from stepalign_jax.evaluation.probe import Asker, probe_critic, probe_teacher
from stepalign_jax.feedback.contexts import CONDITIONS, Attempt, Context
from stepalign_jax.grading.grader import Grader
from stepalign_jax.probe import probe
from stepalign_jax.problems.arithmetic import correct_trace
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.kept import Kept
from stepalign_jax.sampling.request import Purpose

COMPARED = [CONDITIONS[name] for name in ("stepalign", "refsol", "no_context", "other_problem")]
RIGHT, WRONG = "Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71", "Step 1: 3*8=25\nAnswer: 25"
OTHER_RIGHT = "Step 1: 2*4=8\nStep 2: 5+8=13\nAnswer: 13"
SUM = Problem("47+3*8", "71", "so 3*8 gives 24; Total 71", "arithmetic", correct_trace)
OTHER = Problem("5+2*4", "13", None, "arithmetic", correct_trace)
PROBLEMS = [SUM, OTHER, SUM, OTHER]
ATTEMPTS = [RIGHT, "Step 1: 2*4=9\nAnswer: 9", WRONG, OTHER_RIGHT]
# Of the two wrong attempts, the second and third, one is corrected to the letter.
CRITIQUES = [
    Context(RIGHT, None),
    Context(OTHER_RIGHT, None),
    Context(RIGHT, "truncated"),  # the right words do not make up for the failure
    Context(OTHER_RIGHT, None),
]


class FixedCritic(Oracle):
    """Answers with CRITIQUES."""

    def review(self, attempts: Any, addresses: Any) -> CriticReply:
        self.asked = attempts, addresses
        return CriticReply(CRITIQUES, [10, 20, 30, 40], [True] * 4)


def asker(engine: ScriptedEngine) -> Asker:
    model: Any = SimpleNamespace(engine=engine, variables=lambda: {"params": {}})
    return Asker(model, tiny_roles(), seed=3, step=0, kept=None)


def test_critic_numbers_by_hand(tmp_path):
    engine, critic = ScriptedEngine(ATTEMPTS), FixedCritic()
    how = small_config(tmp_path).sampling
    found = probe_critic(asker(engine), critic, PROBLEMS, how)
    assert found.attempts == list(map(Attempt, PROBLEMS, ATTEMPTS)) == critic.asked[0]
    assert found.critiques == CRITIQUES
    assert found.exact.tolist() == [True, True, False, True]
    assert found.wrong.tolist() == [False, True, True, False]
    assert found.as_json() == {
        "attempts": 4,
        "wrong_attempts": 2,
        "exact_on_wrong": 1 / 2,
        "exact": 3 / 4,
        "mean_tokens": 25.0,
        "failed": {"truncated": 1},
    }
    requests = engine.calls[0]["requests"]
    assert [request.address for request in requests] == critic.asked[1]
    # Equal problems are different samples.
    places = [(r.address.purpose, r.address.step, r.address.sample) for r in requests]
    assert places == [(Purpose.SOLVER, 0, 0)] * 2 + [(Purpose.SOLVER, 0, 1)] * 2


def test_problems_that_cannot_check_themselves_leave_the_critic_unjudged(tmp_path):
    words = [Problem("What is 6*7?", "42", None, "jsonl")] * 4
    how = small_config(tmp_path).sampling
    engine = ScriptedEngine(ATTEMPTS)
    found = probe_critic(asker(engine), FixedCritic(), words, how).as_json()
    assert (found["exact"], found["exact_on_wrong"], found["wrong_attempts"]) == (None, None, 0)


def test_teacher_accuracy_by_hand(tmp_path):
    """Each condition has an accuracy of its own, so that none stands for another."""
    engine = ScriptedEngine(
        ["Answer: 71", "Answer: 13", "Answer: 9"],  # stepalign: one critique failed
        ["Answer: 71", "Answer: 70"],  # refsol: two problems have no reference
        ["Answer: 1", "Answer: 13", "Answer: 71", "Answer: 13"],  # no_context
        ["Answer: 1", "Answer: 2", "Answer: 71", "Answer: 4"],  # other_problem
    )
    attempts, how = list(map(Attempt, PROBLEMS, ATTEMPTS)), small_config(tmp_path).evaluation
    with Grader(deadline_secs=5.0, num_workers=1) as grader:
        rights = dict(probe_teacher(asker(engine), grader, attempts, CRITIQUES, COMPARED, how))
    found = {name: right.mean() for name, right in rights.items()}
    assert found == pytest.approx(
        {"stepalign": 2 / 3, "refsol": 1 / 2, "no_context": 3 / 4, "other_problem": 1 / 4}
    )
    read = [
        [tiny_roles().tokenizer.decode(r.prompt) for r in c["requests"]] for c in engine.calls
    ]
    at = {r.address.purpose for c in engine.calls for r in c["requests"]}
    assert at == {Purpose.EVALUATION}  # the solver's own noise would repeat its attempts
    assert CRITIQUES[0].text in read[0][0] and CRITIQUES[1].text in read[0][1]
    assert all(str(SUM.reference) in prompt for prompt in read[1])
    assert OTHER_RIGHT in read[3][0]  # of another problem


def test_a_condition_whose_contexts_all_fail_has_no_accuracy(tmp_path):
    engine = ScriptedEngine([], [], ["Answer: 13"], [])
    with Grader(deadline_secs=5.0, num_workers=1) as grader:
        found = probe_teacher(
            asker(engine),
            grader,
            [Attempt(OTHER, OTHER_RIGHT)],
            [Context("", "empty")],
            COMPARED,
            small_config(tmp_path).evaluation,
        )
        rights = {name: right.tolist() for name, right in found}
    assert rights == {"stepalign": [], "refsol": [], "no_context": [1.0], "other_problem": []}


def test_the_teacher_is_asked_under_the_contexts_that_training_would_use(tmp_path):
    """A context over the budget fails in training; so it must here."""
    model: Any = SimpleNamespace(engine=ScriptedEngine([], [], [""], []), variables=dict)
    short = Asker(model, tiny_roles(max_context_tokens=5), seed=3, step=0, kept=None)
    attempts, how = [Attempt(SUM, RIGHT)], small_config(tmp_path).evaluation
    with Grader(deadline_secs=5.0, num_workers=1) as grader:
        critiques = [Context(RIGHT, None)]
        found = dict(probe_teacher(short, grader, attempts, critiques, COMPARED, how))
    assert len(found["stepalign"]) == len(found["refsol"]) == 0 < len(found["no_context"])


@pytest.mark.long
def test_a_stopped_probe_goes_on_and_finds_the_same(tmp_path, monkeypatch, capsys):
    config, add = small_config(tmp_path), Kept.add
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    probe(config, "test", whole)
    added: list[str] = []

    def stop_at(number: int) -> None:
        def add_or_stop(kept: Kept, key: str, completion: Any) -> None:
            add(kept, key, completion)
            added.append(key)
            if len(added) == number:
                raise Stopped("stopped", 130)

        monkeypatch.setattr(Kept, "add", add_or_stop)

    # In the solver's samples, the attempts, the critiques, the teacher's answers.
    for number in (5, 14, 19, 25):
        stop_at(number)
        with pytest.raises(Stopped, match="the same command goes on"):
            probe(config, "test", broken)
    stop_at(0)
    capsys.readouterr()
    probe(config, "test", broken)
    assert broken.read_bytes() == whole.read_bytes()
    # Solver 4 x 2 and 4 greedy, 4 attempts, 4 critiques, 4 answers under each of 4 contexts.
    assert len(added) == len(set(added)) <= 36
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.json", "whole.json"]
