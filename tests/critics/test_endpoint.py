# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A critic behind a server that answers, and misbehaves, as it is told."""

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import tiny_roles
from support.stub_server import (
    KEY,
    MODEL,
    SECRET,
    WAYS,
    StubServer,
    endpoint_critic,
    oracle_answer,
    serving,
)

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.hashing import stable_hash32
from stepalign_jax.critics import client, endpoint
from stepalign_jax.critics.client import Limiter, read_reply
from stepalign_jax.critics.endpoint import Endpoint
from stepalign_jax.critics.store import CritiqueStore, read_store, totals
from stepalign_jax.feedback.contexts import FAILURES, Attempt, Context
from stepalign_jax.feedback.prompts import critic_prompt
from stepalign_jax.problems.arithmetic import arithmetic_problems, correct_trace
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.request import Purpose, sample_addresses

PROMPTS = tiny_roles().prompts
PROBLEM = Problem("47+3*8", "71", None, "arithmetic", correct_trace)
WRONG = "Step 1: 3*8=24\nStep 2: 47+24=61\nAnswer: 61"
RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71"

OUTCOMES = {
    "ok": "ok",
    "slow": "timeout",
    "half_sent": "unavailable",
    "malformed_json": "malformed",
    "status_429": "unavailable",
    "status_500": "unavailable",
    "refusal": "refused",
    "empty": "empty",
    "wrong_model": "wrong_model",
    "truncated": "truncated",
    "unicode_rubbish": "malformed",
    "connection_reset": "unavailable",
    "drip": "timeout",
}


@pytest.fixture(autouse=True)
def settings_of_the_environment(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_PAUSE_SECS", 0.01)


def settings(server, **changes):
    return endpoint_critic(server.url, **changes)


def grade_equal(answers, golds):
    return [a == g for a, g in zip(answers, golds, strict=True)]


def opened(server, store, **changes):
    return Endpoint(settings(server, **changes), PROMPTS, grade_equal, store, "")


def questions(number):
    """Rollouts of different problems, every one with an error in its answer."""
    problems = arithmetic_problems("training", number, 3, 4)
    return [Attempt(p, correct_trace(p.text, "")[:-1] + "x") for p in problems]


def addresses(attempts, step=0):
    ids = [attempt.problem.id for attempt in attempts]
    return sample_addresses(ids, 1, seed=3, purpose=Purpose.SOLVER, step=step)


def review(critic, attempts, step=0):
    return critic.review(attempts, addresses(attempts, step))


def prompt_of(attempt):
    return critic_prompt(PROMPTS, attempt.problem, attempt.text, "answer")


def way_of(prompt):
    return ("ok", *WAYS)[stable_hash32(prompt) % (len(WAYS) + 1)]


def flood(tmp_path, number, at_once, per_minute, timeout):
    """Asks so many questions of a server that answers in all its ways; checks what came."""
    attempts = questions(number)
    with serving(StubServer(way_of)) as server:
        own = tmp_path / "critiques.jsonl"
        critic = opened(
            server, CritiqueStore(own), concurrency=at_once, requests_per_minute=per_minute,
            timeout_secs=timeout, max_retries=1,
        )  # fmt: skip
        reply = review(critic, attempts)
    ways = [way_of(body["messages"][0]["content"]) for body in server.bodies]
    assert set(ways) == set(OUTCOMES)
    # Every question has one outcome of the closed set, and it is the one that it deserves.
    assert len(reply.outcomes) == number == len(reply.critiques)
    assert set(reply.outcomes) <= {"ok", *FAILURES}
    expected = [OUTCOMES[way_of(prompt_of(a))] for a in attempts]
    assert Counter(reply.outcomes) == Counter(expected)
    assert list(reply.outcomes) == expected
    # The limits, as the server saw them.
    assert server.peak <= at_once
    assert server.peak >= at_once // 2  # they were under way at once
    again = [w for w in ways if OUTCOMES[w] in ("timeout", "unavailable", "malformed")]
    assert reply.usage.asked == len(ways) == number + len(again) // 2
    if per_minute:
        span = server.arrivals[-1] - server.arrivals[0]
        assert len(ways) - 1 <= span * per_minute / 60
    rows = read_store(own)
    assert len(rows) == number
    stored = totals(rows)[critic.name]
    assert stored["requests"] == number
    assert reply.usage.cost == pytest.approx(stored["cost"]) and stored["cost"] > 0
    assert SECRET in server.headers[0]  # it was sent
    assert not [f for f in tmp_path.rglob("*") if SECRET.encode() in f.read_bytes()]


@pytest.mark.long
def test_300_questions_of_a_server_that_fails_in_twelve_ways(tmp_path):
    flood(tmp_path, 300, at_once=50, per_minute=6000, timeout=4.0)


@pytest.mark.slow
def test_5000_questions_of_which_200_at_once(tmp_path):
    flood(tmp_path, 5000, at_once=200, per_minute=0, timeout=15.0)


def test_an_answer_is_a_critique_like_any_other(tmp_path):
    with serving(StubServer()) as server:
        critic = opened(server, CritiqueStore(None))
        reply = review(critic, [Attempt(PROBLEM, WRONG)])
        assert reply.critiques == [Context(RIGHT, None)] and list(reply.outcomes) == ["ok"]
        assert reply.lengths == [len(RIGHT)] and reply.finished == [True]
        (body,) = server.bodies
        prompt = body["messages"][0]["content"]
        assert body["messages"] == [{"role": "user", "content": prompt}]
        assert (body["model"], body["temperature"], body["max_tokens"]) == (MODEL, 0.0, 64)
        assert "seed" not in body
        cost = (2.0 * len(prompt) + 8.0 * len(RIGHT)) / 1e6
        assert reply.usage.cost == pytest.approx(cost)
        assert WRONG in prompt and "71" in prompt
        server.answer = lambda prompt: WRONG
        other = opened(server, CritiqueStore(None), sees="question")
        assert review(other, [Attempt(PROBLEM, WRONG)]).critiques == [Context(WRONG, None)]
        assert "71" not in server.bodies[-1]["messages"][0]["content"]
        checked = opened(server, CritiqueStore(None))
        assert review(checked, [Attempt(PROBLEM, WRONG)]).outcomes == ["wrong_answer"]


def test_a_bar_counts_the_answers_of_a_server_that_is_waited_for(monkeypatch):
    seen = []

    @contextlib.contextmanager
    def counting(total, label):
        seen.append((total, label))
        yield seen.append

    monkeypatch.setattr(endpoint, "counting", counting)
    with serving(StubServer()) as server:
        critic = Endpoint(settings(server), PROMPTS, grade_equal, CritiqueStore(None), "asked")
        review(critic, questions(3))
    assert seen == [(3, "asked"), 1, 2, 3]


def test_what_thinks_is_stripped_of_its_thoughts():
    for text in (f"<think>hm</think>{RIGHT}", f"hm, hm</think>\n{RIGHT}"):
        with serving(StubServer(answer=lambda prompt, text=text: text)) as server:
            reply = review(opened(server, CritiqueStore(None)), [Attempt(PROBLEM, WRONG)])
        assert reply.critiques == [Context(RIGHT, None)]


def test_what_passes_is_tried_again():
    ways = iter(["status_429", "status_500", "connection_reset", "ok"])
    with serving(StubServer(lambda prompt: next(ways))) as server:
        reply = review(
            opened(server, CritiqueStore(None), max_retries=3), [Attempt(PROBLEM, WRONG)]
        )
    assert list(reply.outcomes) == ["ok"] and reply.usage.asked == 4


def test_a_run_that_goes_on_asks_only_what_failed(tmp_path):
    path, attempts = tmp_path / "critiques.jsonl", questions(40)
    failing = {a.problem.text for a in attempts[:5]}
    broken = {a.problem.text for a in attempts[5:8]}

    def way(prompt):
        text = prompt.partition("\n")[0]
        return "status_500" if text in failing else "truncated" if text in broken else "ok"

    with serving(StubServer(way)) as server:
        first = review(opened(server, CritiqueStore(path)), attempts)
        assert Counter(first.outcomes) == {"ok": 32, "unavailable": 5, "truncated": 3}
        asked = len(server.bodies)
        # The kill cuts the last row, which is that of an answer or of a failure.
        path.write_bytes(path.read_bytes()[:-25])
        lost = {row.key for row in read_store(path)}
        failing.clear()
        second = review(opened(server, CritiqueStore(path)), attempts)
        assert Counter(second.outcomes) == {"ok": 37, "truncated": 3}
        assert asked == 40 and len(lost) == 39
        again = [b["messages"][0]["content"].partition("\n")[0] for b in server.bodies[40:]]
        assert 5 <= len(again) <= 6 and len(set(again)) == len(again)
        third = review(opened(server, CritiqueStore(path)), attempts)
        assert third.usage == second.usage._replace(asked=0, from_store=40)
        assert third._replace(usage=None) == second._replace(usage=None)
        # Another prompt, model or temperature is another question.
        for change in ({"sees": "question"}, {"max_new_tokens": 63}, {"temperature": 0.1}):
            other = opened(server, CritiqueStore(path), **change)
            assert review(other, attempts[:1]).usage.asked == 1


def test_runs_that_share_a_store_ask_once(tmp_path):
    attempts, shared = questions(6), tmp_path / "shared"
    with serving(StubServer()) as server:
        one = CritiqueStore(tmp_path / "one.jsonl", shared, "one")
        review(opened(server, one), attempts[:4])
        two = CritiqueStore(tmp_path / "two.jsonl", shared, "two")
        reply = review(opened(server, two), attempts)
    assert (reply.usage.asked, reply.usage.from_store) == (2, 4)
    assert {row.question for row in read_store(shared)} == {
        row.question for row in read_store(tmp_path / "two.jsonl")
    }
    (paid,) = totals(read_store(tmp_path / "two.jsonl")).values()
    assert paid["requests"] == 2


def test_equal_rollouts_are_asked_once_and_samples_apart():
    attempts = [Attempt(PROBLEM, WRONG)] * 3
    with serving(StubServer()) as server:
        reply = review(opened(server, CritiqueStore(None)), attempts)
        assert reply.critiques == [Context(RIGHT, None)] * 3 and len(server.bodies) == 1
        assert len(reply.outcomes) == 3
        review(opened(server, CritiqueStore(None), temperature=0.7), attempts)
    seeds = [body["seed"] for body in server.bodies[1:]]
    assert len(set(seeds)) == 3


def test_a_problem_without_the_reference_that_is_shown_is_not_asked_about():
    prompts = dataclasses.replace(PROMPTS, critic=PROMPTS.critic + "\n{reference}")
    with serving(StubServer()) as server:
        critic = Endpoint(
            settings(server, sees="reference"), prompts, grade_equal, CritiqueStore(None), ""
        )
        assert critic.example_prompt(PROBLEM) == ""
        assert review(critic, [Attempt(PROBLEM, WRONG)]).outcomes == ["no_reference"]
        assert server.bodies == []


def test_the_self_test_says_when_greedy_answers_differ(capsys):
    texts = iter(["a", "b", "a", "a"])
    with serving(StubServer(answer=lambda prompt: next(texts))) as server:
        opened(server, CritiqueStore(None)).load()
        assert "2 different answers to one question that it was asked 4 times" in (
            capsys.readouterr().err
        )
        server.answer = lambda prompt: "a"
        opened(server, CritiqueStore(None)).load()
        texts = iter("abcd")
        server.answer = lambda prompt: next(texts)
        opened(server, CritiqueStore(None), temperature=0.5).load()
        assert capsys.readouterr().err == ""
        assert len(server.bodies) == 12


@pytest.mark.parametrize(
    ("way", "words"),
    [("status_401", "4 rejected"), ("refusal", "4 refused"), ("malformed_json", "4 malformed")],
)
def test_a_server_that_answers_nothing_is_refused_before_training(way, words):
    with (
        serving(StubServer(lambda prompt: way)) as server,
        pytest.raises(UserError, match=f"answered none of 4 test questions.*{words}") as no,
    ):
        opened(server, CritiqueStore(None)).load()
    assert SECRET not in str(no.value)


def test_a_missing_key_or_package_is_one_sentence(monkeypatch):
    monkeypatch.delenv(KEY)
    with pytest.raises(UserError, match=f"the environment has no such variable.*export {KEY}="):
        opened(StubServer(), CritiqueStore(None))
    opened(StubServer(), CritiqueStore(None), key_variable="")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'stepalign_jax\[endpoint\]'"):
        opened(StubServer(), CritiqueStore(None))


def test_a_server_that_echoes_the_key_does_not_put_it_on_disk(tmp_path):
    path = tmp_path / "critiques.jsonl"
    with serving(StubServer(answer=lambda prompt: f"{RIGHT} {SECRET}")) as server:
        reply = review(opened(server, CritiqueStore(path)), [Attempt(PROBLEM, WRONG)])
    assert SECRET not in reply.critiques[0].text
    assert SECRET not in path.read_text() and "[key]" in path.read_text()


def test_no_minute_holds_more_requests_than_it_may():
    now, sent = [0.0], []

    async def sleep(seconds):
        # A clock that stalls now and then, as a busy machine's does.
        now[0] += seconds + (0.7 if len(sent) % 7 == 3 else 0.0)

    async def send():
        limiter = Limiter(30, clock=lambda: now[0], sleep=sleep)
        for _ in range(200):
            await limiter.wait()
            sent.append(now[0])

    asyncio.run(send())
    for first in sent:
        assert sum(first <= time < first + 60 for time in sent) <= 30
    assert sent[-1] < 200 * 2 * 1.2  # and hardly fewer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "usage", "model", "refusal",
                         "finish_reason", "prompt_tokens", "completion_tokens"]), inner,
    ),
)  # fmt: skip


@given(st.binary() | JSON.map(lambda v: json.dumps(v).encode()))
def test_no_body_of_a_reply_is_too_odd(body):
    answer = read_reply(body, MODEL)
    assert answer.outcome in {"ok", *FAILURES}
    answer.text.encode()
    assert answer.tokens >= 0 and answer.prompt_tokens >= 0


def test_the_oracle_reads_the_miniatures_prompt():
    prompt = f"{PROBLEM.text}\nExpected: 71\nAttempt:\n{WRONG}"
    assert oracle_answer(prompt) == RIGHT
