# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Critics: the oracle, and a model whose words are fixed here."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from support.runs import ScriptedEngine, small_config, tiny_roles

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import OracleCritic, ParallelConfig, SelfCritic
from stepalign_jax.critics.engine_critic import ModelCritic
from stepalign_jax.critics.oracle import Oracle, exact_share, oracle_critique
from stepalign_jax.critics.protocol import CriticReply, open_critic
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.parallel.offload import Resident
from stepalign_jax.problems.arithmetic import correct_trace
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.request import Address, Purpose, sample_addresses
from stepalign_jax.tiny.tokenizer import encode

REFERENCE = "so 3*8 gives 24; so 47+24 gives 71; Total 71"
PROBLEM = Problem("47+3*8", "71", REFERENCE, "arithmetic", correct_trace)
OTHER = Problem("5+2*4-3", "10", None, "arithmetic", correct_trace)
WORDS = Problem("What is 6*7?", "42", None, "jsonl")
RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71"
WRONG = "Step 1: 3*8=24\nStep 2: 47+24=61\nAnswer: 61"
OTHER_RIGHT = "Step 1: 2*4=8\nStep 2: 5+8=13\nStep 3: 13-3=10\nAnswer: 10"
OTHER_BACKWARD = "Step 1: 2*4=8\nStep 2: 5-3=2\nStep 3: 2+8=10\nAnswer: 10"
OTHER_WRONG = "Step 1: 2*4=8\nStep 2: 5+8=3\nStep 3: 3-3=0\nAnswer: 0"
SEED, BASE = 7, {"stands": "for the base"}


def grade_equal(answers: list[str | None], golds: list[str]) -> list[bool]:
    return [a == g for a, g in zip(answers, golds, strict=True)]


class ScriptedModel:
    """What a critic uses of a LanguageModel."""

    def __init__(self, engine: ScriptedEngine, max_positions: int):
        self.engine, self.weights, self.base = engine, Resident(BASE), BASE
        self.mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
        self.sizes = SimpleNamespace(max_positions=max_positions)


def own_critic(**changes: Any) -> SelfCritic:
    critic = small_config(Path("unused")).critic
    assert isinstance(critic, SelfCritic)
    return dataclasses.replace(critic, temperature=0.5, **changes)


def addresses(problems: list[Problem]) -> list[Address]:
    """Those of rollouts of the third optimizer step."""
    ids = [problem.id for problem in problems]
    return sample_addresses(ids, 1, seed=SEED, purpose=Purpose.SOLVER, step=3)


def ask(
    engine: ScriptedEngine,
    problems: list[Problem],
    attempts: list[str],
    *,
    sees: str,
    accepts: str = "trace",
    roles: Roles | None = None,
    max_positions: int = 512,
) -> CriticReply:
    template = "{problem}\nExpected: {answer}\nAttempt:\n{attempt}"
    if sees == "reference":
        template += "\n{reference}"
    model: Any = ScriptedModel(engine, max_positions)
    roles = roles or tiny_roles(critic=template)
    config = own_critic(sees=sees, accepts=accepts)
    critic = ModelCritic(model, roles, config, grade_equal, (), "", None)
    return critic.review(list(map(Attempt, problems, attempts)), addresses(problems))


@pytest.mark.parametrize(
    ("problem", "attempt", "critique"),
    [
        (PROBLEM, RIGHT, RIGHT),
        (PROBLEM, WRONG, RIGHT),
        (PROBLEM, "", RIGHT),
        (OTHER, OTHER_BACKWARD, OTHER_BACKWARD),
        (OTHER, OTHER_WRONG, OTHER_RIGHT),
        (OTHER, "Step 1: 2*4=8\nStep 2: 5-3=3\nAnswer: 11", OTHER_BACKWARD),
    ],
)
def test_the_oracle_copies_what_is_right_and_mends_the_rest(problem, attempt, critique):
    assert oracle_critique(Attempt(problem, attempt)) == critique
    reply = Oracle().review([Attempt(problem, attempt)], [])
    assert reply == CriticReply([Context(critique, None)], [], [])


def test_the_oracle_cannot_judge_words():
    assert oracle_critique(Attempt(WORDS, "42")) is None
    with pytest.raises(UserError, match="oracle needs problems that check their own"):
        Oracle().review([Attempt(PROBLEM, RIGHT), Attempt(WORDS, "42")], [])


def test_the_shipped_critics_are_registered_whoever_asks_first():
    program = (
        "from stepalign_jax.critics.protocol import open_critic\n"
        "print(sorted(kind.__name__ for kind in open_critic.registry))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert output.stdout == (
        "['CheckpointCritic', 'EndpointCritic', 'OracleCritic', 'ReplayCritic', 'SelfCritic', "
        "'object']\n"
    )


def test_a_config_opens_its_own_critic():
    assert isinstance(open_critic(OracleCritic(), None), Oracle)  # pyright: ignore[reportArgumentType]


def test_exact_share_by_hand():
    problems = [PROBLEM, PROBLEM, OTHER, OTHER, WORDS]
    texts = [RIGHT, WRONG, OTHER_WRONG, OTHER_WRONG, "43"]
    attempts = list(map(Attempt, problems, texts))
    good, bad = Context(RIGHT, None), Context(WRONG, None)
    failed = Context(OTHER_RIGHT, "too_long")
    # Of three wrong attempts one has the oracle's critique: words and right attempts are out.
    critiques = [bad, good, Context(OTHER_BACKWARD, None), failed, bad]
    assert exact_share(attempts, critiques) == pytest.approx(1 / 3)
    critiques[3] = dataclasses.replace(failed, failure=None)
    assert exact_share(attempts, critiques) == pytest.approx(2 / 3)
    assert exact_share(attempts[:1], [bad]) is None
    assert exact_share([Attempt(WORDS, "43")], [bad]) is None


def test_each_critique_of_a_model_gets_the_failure_it_deserves():
    attempts = [WRONG, RIGHT, WRONG, WRONG, WRONG]
    texts = [RIGHT, RIGHT + "...", WRONG, "", "Answer: 71"]
    engine = ScriptedEngine(texts)
    critiques, lengths, finished, *_ = ask(engine, [PROBLEM] * 5, attempts, sees="answer")
    failures = [critique.failure for critique in critiques]
    assert failures == [None, "truncated", "wrong_answer", "empty", "unparsable"]
    assert [c.text for c in critiques] == [RIGHT, RIGHT, WRONG, "", "Answer: 71"]
    assert finished == [True, False, True, True, True]
    stops = [1, 0, 1, 1, 1]
    words = [len(encode(text.removesuffix("..."))) for text in texts]
    assert np.subtract(lengths, words).tolist() == stops


def test_a_critic_that_sees_the_question_alone_is_not_checked_against_the_answer():
    engine = ScriptedEngine([WRONG])
    (critique,) = ask(engine, [PROBLEM], [WRONG], sees="question").critiques
    assert critique == Context(WRONG, None)
    prompt = tiny_roles().tokenizer.decode(engine.calls[0]["requests"][0].prompt)
    assert "Expected" not in prompt and WRONG in prompt


def test_a_problem_without_a_reference_is_not_asked_about():
    problems, attempts = [OTHER, PROBLEM, OTHER, PROBLEM], [OTHER_WRONG, WRONG, "", RIGHT]
    engine = ScriptedEngine([RIGHT, RIGHT])
    critiques, lengths, *_ = ask(engine, problems, attempts, sees="reference")
    assert len(lengths) == 2
    assert [c.failure for c in critiques] == ["no_reference", None, "no_reference", None]
    (call,) = engine.calls
    at = [address._replace(purpose=Purpose.CRITIC) for address in addresses(problems)]
    assert [request.address for request in call["requests"]] == [at[1], at[3]]
    decoded = [tiny_roles().tokenizer.decode(request.prompt) for request in call["requests"]]
    assert [WRONG in text for text in decoded] == [True, False]
    assert all(str(PROBLEM.reference) in text for text in decoded)


def test_nobody_to_ask():
    engine = ScriptedEngine([])
    critiques, lengths, *_ = ask(engine, [OTHER], [OTHER_WRONG], sees="reference")
    assert lengths == []
    assert critiques == [Context("", "no_reference")]
    assert engine.calls[0]["requests"] == []


def test_the_critic_is_the_base_and_draws_its_own_noise():
    engine = ScriptedEngine([RIGHT])
    ask(engine, [PROBLEM], [WRONG], sees="answer")
    (call,) = engine.calls
    assert call["variables"] == {"params": BASE}
    ((_, address, params),) = call["requests"]
    assert (address.seed, address.purpose, address.step) == (SEED, Purpose.CRITIC, 3)
    config = own_critic()
    assert (params.temperature, params.top_k, params.top_p) == (0.5, 0, 1.0)
    assert params.max_new_tokens == config.max_new_tokens
    assert call["batch_size"] == config.batch_size


def test_an_attempt_that_leaves_no_room_for_the_critique_is_not_asked_about():
    short, long = tiny_roles().critic(PROBLEM, RIGHT, "answer") or [], RIGHT + "\nStep 3: 1+1=2"
    room = len(short) + own_critic().max_new_tokens
    engine = ScriptedEngine([RIGHT])
    found = ask(engine, [PROBLEM] * 2, [long, RIGHT], sees="answer", max_positions=room)
    assert found.critiques == [Context("", "prompt_too_long"), Context(RIGHT, None)]
    (request,) = engine.calls[0]["requests"]
    assert request.address[2:] == addresses([PROBLEM] * 2)[1][2:]


def test_a_template_that_opens_the_thought_makes_its_end_be_looked_for(monkeypatch):
    roles = tiny_roles(critic_thinking=True)
    monkeypatch.setattr(Roles, "critic_opens_thinking", lambda self: True)
    engine = ScriptedEngine([RIGHT + "...", RIGHT])
    found = ask(engine, [PROBLEM] * 2, [WRONG] * 2, sees="answer", roles=roles)
    assert [c.failure for c in found.critiques] == ["truncated_thinking"] * 2


def test_a_free_comment_is_a_critique_where_the_config_accepts_any():
    comment = "Step 2: 47+24=61\nAnswer: 61"  # what is wrong: no answer of the critic's own
    for accepts, failure in (("trace", "wrong_answer"), ("any", None)):
        engine = ScriptedEngine([comment])
        (found,) = ask(engine, [PROBLEM], [WRONG], sees="answer", accepts=accepts).critiques
        assert found == Context(comment, failure)
