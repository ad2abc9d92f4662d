# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What `critiques` of the config puts around a critic: noise, checks, retries, the store."""

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import small_config, tiny_roles

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.hashing import digest
from stepalign_jax.config.critics import ReplayCritic
from stepalign_jax.config.schema import CritiquesConfig, OracleCritic
from stepalign_jax.critics.noisy import Noisy, is_spoilt, spoil
from stepalign_jax.critics.opening import open_wrapped_critic
from stepalign_jax.critics.oracle import Oracle
from stepalign_jax.critics.protocol import CriticReply, Surroundings, innermost, outcomes
from stepalign_jax.critics.recording import Recording
from stepalign_jax.critics.store import (
    CritiqueStore,
    StoredCritique,
    read_store,
    totals,
)
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.feedback.validate import measure
from stepalign_jax.problems.arithmetic import arithmetic_problems, correct_trace
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.inputs import fingerprint_inputs
from stepalign_jax.sampling.request import Purpose, sample_addresses

PROMPTS = tiny_roles().prompts
TRACE = TraceFormat(PROMPTS.reasoning_step_pattern, PROMPTS.answer_pattern)
PROBLEM = Problem("47+3*8-12", "59", None, "arithmetic", correct_trace)
ROLLOUT = "Step 1: 3*8=24\nStep 2: 47+24=61\nStep 3: 61-12=49\nAnswer: 49"
RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nStep 3: 71-12=59\nAnswer: 59"
NOISES = ("wrong_verdict", "shifted_error", "paraphrase", "off_topic")


def critiques_config(**changes: Any) -> CritiquesConfig:
    return dataclasses.replace(small_config(Path("unused")).critiques, **changes)


def grade_equal(answers, golds):
    return [a == g for a, g in zip(answers, golds, strict=True)]


def surroundings(store: CritiqueStore) -> Surroundings:
    model: Any = None
    return Surroundings(model, PROMPTS, 40, grade_equal, (), "", None, store)


def wrong_attempts(number):
    problems = arithmetic_problems("training", number, 3, 4)
    return [Attempt(p, correct_trace(p.text, "")[:-1] + "x") for p in problems]


def addresses(attempts, step=0):
    ids = [attempt.problem.id for attempt in attempts]
    return sample_addresses(ids, 1, seed=3, purpose=Purpose.SOLVER, step=step)


class Scripted:
    """Says the next script's texts, one per attempt; "!name" is a failure."""

    def __init__(self, *scripts):
        self.scripts, self.asked = list(scripts), []

    def load(self):
        """Nothing."""

    def example_prompt(self, problem):
        return "prompt"

    def review(self, attempts, at):
        self.asked.append([a.retry for a in at])
        texts = self.scripts.pop(0)
        critiques = [
            Context("", t[1:]) if t.startswith("!") else Context(t, None) for t in texts
        ]
        assert len(critiques) == len(attempts)
        return CriticReply(critiques, [len(t) for t in texts], [True] * len(texts))


# Noise


@pytest.mark.parametrize("noise", NOISES)
def test_each_noise_by_hand(noise):
    attempt, (at,) = Attempt(PROBLEM, ROLLOUT), addresses([Attempt(PROBLEM, ROLLOUT)])
    text = spoil(attempt, RIGHT, at, noise, TRACE)
    assert text == spoil(attempt, RIGHT, at, noise, TRACE) != RIGHT
    ours, theirs = TRACE.steps(RIGHT), TRACE.steps(text)
    assert len(ours) == len(theirs)
    found = measure(attempt, text, TRACE)
    if noise == "wrong_verdict":
        assert text == ROLLOUT
    if noise == "shifted_error":
        assert found.first_error == 0 and text.endswith("Answer: 59")
    if noise == "paraphrase":
        assert text == RIGHT.replace("3*8=24", "24=3*8") and found.first_error == 1
    if noise == "off_topic":
        assert all(a.text != b.text for a, b in zip(ours, theirs, strict=True))
        assert found.answer not in (None, "59")


@pytest.mark.parametrize("noise", ("wrong_verdict", "shifted_error"))
def test_a_right_rollout_is_called_wrong(noise):
    attempt, (at,) = Attempt(PROBLEM, RIGHT), addresses([Attempt(PROBLEM, RIGHT)])
    assert measure(attempt, spoil(attempt, RIGHT, at, noise, TRACE), TRACE).first_error == 2


def test_an_error_at_the_start_can_only_shift_to_the_right():
    wrong = ROLLOUT.replace("3*8=24", "3*8=34")
    attempt, (at,) = Attempt(PROBLEM, wrong), addresses([Attempt(PROBLEM, wrong)])
    text = spoil(attempt, RIGHT, at, "shifted_error", TRACE)
    assert text != RIGHT and text.startswith("Step 1: 3*8=24\n")


def test_the_share_is_drawn_by_address_and_larger_shares_hold_smaller_ones():
    attempts = wrong_attempts(400)
    at = addresses(attempts)
    spoilt = {s: {i for i, a in enumerate(at) if is_spoilt(a, s)} for s in (0, 0.25, 0.5, 1)}
    assert spoilt[0] == set() and len(spoilt[1]) == 400
    assert spoilt[0.25] < spoilt[0.5] and 70 < len(spoilt[0.25]) < 130
    critic = Noisy(Oracle(), "wrong_verdict", 0.5, TRACE)
    whole = critic.review(attempts, at).critiques
    assert {i for i, c in enumerate(whole) if c.text == attempts[i].text} == spoilt[0.5]
    # Whatever else is asked, an address gives the same critique; another step another draw.
    assert critic.review(attempts[7:9], at[7:9]).critiques == whole[7:9]
    assert critic.review(attempts, addresses(attempts, step=1)).critiques != whole


def test_a_failed_critique_is_not_spoilt():
    attempt = Attempt(PROBLEM, ROLLOUT)
    critic = Noisy(Scripted(["!truncated"]), "off_topic", 1.0, TRACE)
    reply = critic.review([attempt], addresses([attempt]))
    assert reply.critiques == [Context("", "truncated")]


# Checks and retries


def accepting(inner, monkeypatch, **changes):
    monkeypatch.setattr("stepalign_jax.critics.opening.open_critic", lambda *_: inner)
    store = surroundings(CritiqueStore(None))
    return open_wrapped_critic(OracleCritic(), critiques_config(**changes), store)


def test_nothing_is_wrapped_around_a_critic_by_default(monkeypatch):
    inner = Scripted()
    assert accepting(inner, monkeypatch) is inner


def test_what_failed_is_asked_again_with_another_sample_and_then_masked(monkeypatch):
    attempts = [Attempt(PROBLEM, ROLLOUT)] * 4
    quoting = RIGHT.replace("Step 2: ", "Step 2: not 47+24=61 but ")
    inner = Scripted(
        [RIGHT, quoting, "!empty", "!no_reference"], [quoting, RIGHT], ["!wrong_answer"]
    )
    critic = accepting(inner, monkeypatch, checks=("quoted_error",), max_retries=2)
    reply = critic.review(attempts, addresses(attempts))
    assert reply.critiques == [
        Context(RIGHT, None),
        Context("", "wrong_answer"),
        Context(RIGHT, None),
        Context("", "no_reference"),
    ]
    assert inner.asked == [[0] * 4, [1, 1], [2]]
    assert Counter(reply.outcomes) == {
        "ok": 2, "quoted_error": 2, "empty": 1, "no_reference": 1, "wrong_answer": 1,
    }  # fmt: skip
    assert len(reply.outcomes) == len(reply.lengths) == len(reply.finished) == 7
    assert innermost(critic) is inner and critic.example_prompt(PROBLEM) == "prompt"


def test_a_noise_of_everyone_is_caught_by_checks_or_not(monkeypatch):
    attempts = wrong_attempts(20)
    changes = {"noise": "paraphrase", "noise_share": 1.0}
    critic = accepting(Oracle(), monkeypatch, min_copy_fidelity=1.0, **changes)
    assert set(critic.review(attempts, addresses(attempts)).outcomes) == {"low_fidelity"}
    critic = accepting(Oracle(), monkeypatch, checks=("quoted_error",), **changes)
    assert set(critic.review(attempts, addresses(attempts)).outcomes) == {"ok"}


def test_an_unknown_check_is_refused_when_the_critic_is_opened(monkeypatch):
    with pytest.raises(UserError, match=r"critiques\.checks has no check 'spelling'"):
        accepting(Scripted(), monkeypatch, checks=("spelling",))


# The store, and its replay


def recorded(path, attempts, step=0):
    inner = Scripted([RIGHT, *["!unparsable"] * (len(attempts) - 1)])
    critic = Recording(inner, OracleCritic(), PROMPTS, CritiqueStore(path))
    return critic.review(attempts, addresses(attempts, step))


def open_replay(path, critic="", require_all=False, accepts="trace"):
    config = ReplayCritic(
        store=str(path), critic=critic, accepts=accepts, require_all=require_all
    )
    return open_wrapped_critic(config, critiques_config(), surroundings(CritiqueStore(None)))


def replay(path, attempts, at=None, **how):
    return open_replay(path, **how).review(attempts, at or addresses(attempts))


def test_the_store_of_a_replay_is_an_input_of_the_run(tmp_path):
    path = tmp_path / "critiques.jsonl"
    recorded(path, [Attempt(PROBLEM, ROLLOUT), *wrong_attempts(2)])

    def store():
        config: Any = SimpleNamespace(trainable=None)
        return fingerprint_inputs(config, tmp_path, open_replay(path), {})["critic store"]

    before, content = store(), path.read_text()
    assert store() == before
    path.write_text(content.replace('"text": "', '"text": "no ', 1))
    assert store() != before


def test_any_critic_can_be_recorded_and_replayed(tmp_path):
    path = tmp_path / "critiques.jsonl"
    attempts = [Attempt(PROBLEM, ROLLOUT), *wrong_attempts(2)]
    reply = recorded(path, attempts)
    assert list(reply.outcomes) == ["ok", "unparsable", "unparsable"]
    again = replay(path, attempts)
    assert again.critiques == reply.critiques and list(again.outcomes) == list(reply.outcomes)
    # The same rollout at another place is the same question.
    assert replay(path, attempts[:1], addresses(attempts[:1], step=9)).outcomes == ["ok"]
    # A run that goes on says the same again, which is not written twice.
    recorded(path, attempts)
    assert len(read_store(path)) == 3
    (taken,) = totals(read_store(path)).values()
    assert (taken["requests"], taken["failed"]) == (3, 2)
    assert taken["tokens"] == sum(reply.lengths)


def test_a_missing_critique_is_a_failure_or_ends_the_run(tmp_path):
    path = tmp_path / "critiques.jsonl"
    attempts = [Attempt(PROBLEM, ROLLOUT), *wrong_attempts(2)]
    recorded(path, attempts[:2])
    assert replay(path, attempts).critiques[2] == Context("", "missing")
    assert replay(path, attempts[:2], require_all=True).outcomes == ["ok", "unparsable"]
    with pytest.raises(UserError, match=r"lacks 1 of 3 critiques of step 0.*require_all"):
        replay(path, attempts, require_all=True)


def row(**changes):
    texts = (PROBLEM.text, ROLLOUT)
    plain = StoredCritique(
        key="k", question=digest(*texts), critic="a#1", step=0, sample=0, retry=0, text=RIGHT,
        outcome="ok", judged=False, sees_answer=True, prompt_tokens=1, tokens=2, seconds=0.5,
        cost=0.25, shared=False,
    )  # fmt: skip
    return plain._replace(**changes)


def write(path, *rows):
    store = CritiqueStore(path)
    for each in rows:
        store.add(each)
    return path


def test_a_store_of_several_critics_is_asked_for_one_by_name(tmp_path):
    attempts = [Attempt(PROBLEM, ROLLOUT)]
    path = write(tmp_path / "c.jsonl", row(), row(key="l", critic="b#2", text=ROLLOUT))
    with pytest.raises(UserError, match=r"holds critiques by a#1, b#2: choose with --critic"):
        replay(path, attempts)
    with pytest.raises(UserError, match=r"critic.critic=c is not in .* by a#1, b#2"):
        replay(path, attempts, critic="c")
    assert replay(path, attempts, critic="a#1").critiques == [Context(RIGHT, None)]
    # Its answer is checked again, by this run's rules.
    assert replay(path, attempts, critic="b#2").outcomes == ["wrong_answer"]
    assert replay(path, attempts, critic="b#2", accepts="any").outcomes == ["ok"]
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="holds no critiques yet"):
        replay(tmp_path / "empty.jsonl", attempts)


def test_the_rollouts_own_row_comes_before_that_of_an_equal_one(tmp_path):
    attempts = [Attempt(PROBLEM, ROLLOUT)]
    other = RIGHT.replace("Step 3: ", "Step 3:  ")
    path = write(
        tmp_path / "c.jsonl",
        row(),
        row(key="l", step=1, text="", outcome="timeout"),
        row(key="m", step=2, text=other),
    )
    found = [replay(path, attempts, addresses(attempts, step=s)) for s in (0, 1, 2, 3)]
    texts = [reply.critiques[0].text for reply in found]
    assert texts[0] == RIGHT and texts[2] == other and texts[3] in (RIGHT, other)
    assert found[1].outcomes == ["timeout"]


def test_a_row_that_a_kill_cut_anywhere_is_dropped_and_the_next_is_whole(tmp_path):
    path = write(tmp_path / "c.jsonl", row(), row(key="l", text="ü" * 30))
    whole = path.read_bytes()
    end = whole.index(b"\n") + 1
    for cut in range(end, len(whole), 7):
        path.write_bytes(whole[:cut])
        store = CritiqueStore(path)
        assert store.find("k") == row() and store.find("l") is None
        store.add(row(key="m"))
        assert [r.key for r in read_store(path)] == ["k", "m"]


def test_ten_thousand_critiques_open_in_a_moment(tmp_path):
    path = tmp_path / "c.jsonl"
    rows = (row(key=str(i))._asdict() for i in range(10_000))
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    started = time.process_time()
    assert CritiqueStore(path).find("9999") is not None
    assert time.process_time() - started < 2.0  # a tenth of it where the machine is quiet


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"step": 0}\n')
    with pytest.raises(UserError, match="is no store of critiques of this version"):
        read_store(path)
    with pytest.raises(UserError, match="holds no stores of critiques"):
        (tmp_path / "none").mkdir()
        read_store(tmp_path / "none")


def test_outcomes_name_failures():
    assert outcomes([Context("x", None), Context("", "empty")]) == ["ok", "empty"]
