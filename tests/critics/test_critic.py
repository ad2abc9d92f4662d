# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Critiques that are asked for: of the oracle, and of a model whose words are fixed here."""

import dataclasses

import jax
import numpy as np
import pytest
from support.runs import TINY, ScriptedEngine, tiny_roles

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.load import load_config
from stepalign_jax.critics.engine_critic import (
    Asked,
    Critic,
    ask_model,
    ask_oracle,
    exact_share,
    oracle_critique,
)
from stepalign_jax.feedback.critique import Critique
from stepalign_jax.feedback.roles import Roles, addresses
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.parallel.offload import FrozenWeights
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.engine import Purpose
from stepalign_jax.tiny.tokenizer import encode

PROBLEM = Problem("47+3*8", "71", "so 3*8 gives 24; so 47+24 gives 71; Total 71", "arithmetic")
OTHER = Problem("5+2*4-3", "10", None, "arithmetic")
WORDS = Problem("What is 6*7?", "42", None, "jsonl")
RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71"
WRONG = "Step 1: 3*8=24\nStep 2: 47+24=61\nAnswer: 61"
OTHER_RIGHT = "Step 1: 2*4=8\nStep 2: 5+8=13\nStep 3: 13-3=10\nAnswer: 10"
OTHER_BACKWARD = "Step 1: 2*4=8\nStep 2: 5-3=2\nStep 3: 2+8=10\nAnswer: 10"
OTHER_WRONG = "Step 1: 2*4=8\nStep 2: 5+8=3\nStep 3: 3-3=0\nAnswer: 0"
SEED, BASE = 7, {"stands": "for the base"}


def grade_equal(answers: list[str | None], golds: list[str]) -> list[bool]:
    return [a == g for a, g in zip(answers, golds, strict=True)]


def ask(
    engine: ScriptedEngine,
    problems: list[Problem],
    attempts: list[str],
    *,
    sees: str,
    roles: Roles | None = None,
    max_positions: int = 512,
) -> Asked:
    critic = "{problem}\nExpected: {answer}\nAttempt:\n{attempt}"
    if sees == "reference":
        critic += "\n{reference}"
    return ask_model(
        Critic(
            engine=engine,  # pyright: ignore[reportArgumentType]
            weights=FrozenWeights(BASE),
            roles=roles or tiny_roles(critic=critic),
            mesh=make_mesh(load_config(TINY).parallel, jax.devices()[:1]),
            max_positions=max_positions,
            takes_turns=False,
        ),
        dataclasses.replace(load_config(TINY).critic, sees=sees, temperature=0.5),
        problems,
        attempts,
        addresses=addresses(problems, 1, 3),
        seed=SEED,
        grade=grade_equal,
    )


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
    assert oracle_critique(problem, attempt) == critique
    assert ask_oracle([problem], [attempt]) == [Critique(critique, None)]


def test_the_oracle_cannot_judge_words():
    assert oracle_critique(WORDS, "42") is None
    with pytest.raises(UserError, match="oracle needs problems that check their own"):
        ask_oracle([PROBLEM, WORDS], [RIGHT, "42"])


def test_exact_share_by_hand():
    problems = [PROBLEM, PROBLEM, OTHER, OTHER, WORDS]
    attempts = [RIGHT, WRONG, OTHER_WRONG, OTHER_WRONG, "43"]
    good, bad = Critique(RIGHT, None), Critique(WRONG, None)
    failed = Critique(OTHER_RIGHT, "too_long")
    # Of three wrong attempts one has the oracle's critique: words and right attempts are out.
    critiques = [bad, good, Critique(OTHER_BACKWARD, None), failed, bad]
    assert exact_share(problems, attempts, critiques) == pytest.approx(1 / 3)
    critiques[3] = dataclasses.replace(failed, failure=None)
    assert exact_share(problems, attempts, critiques) == pytest.approx(2 / 3)
    assert exact_share(problems[:1], attempts[:1], [bad]) is None
    assert exact_share([WORDS], ["43"], [bad]) is None


def test_each_critique_of_a_model_gets_the_failure_it_deserves():
    attempts = [WRONG, RIGHT, WRONG, WRONG, WRONG]
    texts = [RIGHT, RIGHT + "...", WRONG, "", "Answer: 71"]
    engine = ScriptedEngine(texts)
    critiques, lengths, finished = ask(engine, [PROBLEM] * 5, attempts, sees="answer")
    failures = [critique.failure for critique in critiques]
    assert failures == [None, "truncated", "wrong_answer", "empty", "unparsable"]
    assert [c.text for c in critiques] == [RIGHT, RIGHT, WRONG, "", "Answer: 71"]
    assert finished.tolist() == [True, False, True, True, True]
    stops = [1, 0, 1, 1, 1]
    words = [len(encode(text.removesuffix("..."))) for text in texts]
    assert (lengths - words).tolist() == stops


def test_a_critic_that_sees_the_question_alone_is_not_checked_against_the_answer():
    engine = ScriptedEngine([WRONG])
    (critique,) = ask(engine, [PROBLEM], [WRONG], sees="question").critiques
    assert critique == Critique(WRONG, None)
    prompt = tiny_roles().tokenizer.decode(engine.calls[0]["prompts"][0])
    assert "Expected" not in prompt and WRONG in prompt


def test_a_problem_without_a_reference_is_not_asked_about():
    problems, attempts = [OTHER, PROBLEM, OTHER, PROBLEM], [OTHER_WRONG, WRONG, "", RIGHT]
    engine = ScriptedEngine([RIGHT, RIGHT])
    critiques, lengths, _ = ask(engine, problems, attempts, sees="reference")
    assert len(lengths) == 2
    assert [c.failure for c in critiques] == ["no_reference", None, "no_reference", None]
    (call,) = engine.calls
    np.testing.assert_array_equal(call["addresses"], addresses(problems, 1, 3)[[1, 3]])
    decoded = [tiny_roles().tokenizer.decode(prompt) for prompt in call["prompts"]]
    assert [WRONG in text for text in decoded] == [True, False]
    assert all(str(PROBLEM.reference) in text for text in decoded)


def test_nobody_to_ask():
    engine = ScriptedEngine([])
    critiques, lengths, _ = ask(engine, [OTHER], [OTHER_WRONG], sees="reference")
    assert lengths.size == 0
    assert critiques == [Critique("", "no_reference")]
    assert engine.calls[0]["addresses"].shape == (0, 4)


def test_the_critic_is_the_base_and_draws_its_own_noise():
    engine = ScriptedEngine([RIGHT])
    ask(engine, [PROBLEM], [WRONG], sees="answer")
    (call,) = engine.calls
    assert call["variables"] == {"params": BASE}
    assert (call["seed"], call["purpose"]) == (SEED, Purpose.CRITIC)
    settings, config = call["settings"], load_config(TINY).critic
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.5, 0, 1.0)
    assert settings.max_new_tokens == config.max_new_tokens
    assert settings.batch_size == config.batch_size


def test_an_attempt_that_leaves_no_room_for_the_critique_is_not_asked_about():
    short, long = tiny_roles().critic(PROBLEM, RIGHT, "answer") or [], RIGHT + "\nStep 3: 1+1=2"
    room = len(short) + load_config(TINY).critic.max_new_tokens
    engine = ScriptedEngine([RIGHT])
    found = ask(engine, [PROBLEM] * 2, [long, RIGHT], sees="answer", max_positions=room)
    assert found.critiques == [Critique("", "prompt_too_long"), Critique(RIGHT, None)]
    np.testing.assert_array_equal(
        engine.calls[0]["addresses"], addresses([PROBLEM] * 2, 1, 3)[[1]]
    )


def test_a_template_that_opens_the_thought_makes_its_end_be_looked_for(monkeypatch):
    roles = tiny_roles(critic_thinking=True)
    monkeypatch.setattr(Roles, "critic_opens_thinking", lambda self: True)
    engine = ScriptedEngine([RIGHT + "...", RIGHT])
    found = ask(engine, [PROBLEM] * 2, [WRONG] * 2, sees="answer", roles=roles)
    assert [c.failure for c in found.critiques] == ["truncated_thinking"] * 2


def test_addresses_name_step_problem_and_sample():
    found = addresses([PROBLEM, OTHER], 3, 5)
    assert found.shape == (6, 4) and found.dtype == np.uint32
    assert found[:, 0].tolist() == [5] * 6
    assert found[:, 2].tolist() == [0, 1, 2] * 2
    assert len(set(found[:3, 1].tolist())) == len(set(found[3:, 1].tolist())) == 1
    assert found[0, 1] != found[3, 1]
    np.testing.assert_array_equal(found[3:], addresses([OTHER], 3, 5))  # not its place
