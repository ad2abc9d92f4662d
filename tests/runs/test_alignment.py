# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The self-check before the first step, on log-probabilities written by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runs import small_config, tiny_roles

from stepalign_jax.base.errors import UserError
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs import alignment
from stepalign_jax.runs.alignment import Artefact, check_alignment, find_artefacts
from stepalign_jax.tiny.tokenizer import END, VOCABULARY

SIZE = len(VOCABULARY)
STOP, LINE, ONE, TWO = (VOCABULARY[piece] for piece in (END, "\n", "1", "2"))


def sure(*tokens: int, mass: float = 0.9) -> np.ndarray:
    """[T, V] log-probabilities with so much on one token each."""
    rows = np.full((len(tokens), SIZE), (1 - mass) / (SIZE - 1))
    rows[np.arange(len(tokens)), tokens] = mass
    return np.log(rows).astype(np.float32)


def test_artefacts_by_hand():
    tokenizer, rollout = tiny_roles().tokenizer, [ONE, TWO, LINE, ONE]
    found = find_artefacts(tokenizer, sure(STOP, LINE, LINE, TWO), rollout)
    # The third is what the rollout has, the fourth is no token of a template.
    assert [(a.position, a.token, a.rollout) for a in found] == [(0, STOP, ONE), (1, LINE, TWO)]
    assert found[0] == Artefact(0, STOP, pytest.approx(0.9), ONE)
    assert find_artefacts(tokenizer, sure(STOP, mass=0.4), rollout) == []


def check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, teacher: list[np.ndarray], *solver: int
) -> dict[str, Any]:
    """The check of a solver that is sure of these tokens, whatever stands before them."""
    ours, roles = np.stack([sure(*solver)] * 2), tiny_roles()
    problem = Problem("47+3*8", "71", None, "t")

    def read(_program: Any, variables: Any, prompts: Any, completion: Any, *, mesh: Any) -> Any:
        assert prompts == [roles.solver(problem), roles.teacher(problem, "")]
        assert len(completion) == alignment.NUM_TOKENS
        if "teacher" in variables:  # the whole rollout is known by then
            assert completion == list(solver)
        return np.stack(teacher) if "teacher" in variables else ours

    monkeypatch.setattr(alignment, "whole_logprobs", read)
    monkeypatch.setattr(alignment, "make_logprobs_program", lambda module: None)
    monkeypatch.setattr(alignment, "teacher_variables", lambda *_: {"teacher": 1})
    model: Any = SimpleNamespace(base={}, module=lambda _: None, mesh=None, stop_ids=(STOP,))
    state: Any = SimpleNamespace(trainable={})
    return check_alignment(small_config(tmp_path), model, state, roles, problem)


def test_a_teacher_that_waits_for_its_template_is_named(monkeypatch, tmp_path, capsys):
    rollout = (ONE, TWO, TWO, ONE)
    found = check(monkeypatch, tmp_path, [sure(*rollout), sure(LINE, *rollout[1:])], *rollout)
    assert found == {
        "same_prompt_kl": 0.0,
        "template_artefacts": [
            {"position": 0, "token": "\n", "probability": pytest.approx(0.9), "rollout": "1"}
        ],
    }
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: template artefact: at position 0 of a rollout the teacher")
    assert r"expects '\n' with probability 0.90, where the solver writes '1'" in said
    assert "skip_first:1" in said


def test_nothing_is_said_where_both_read_alike(monkeypatch, tmp_path, capsys):
    rollout = (ONE, STOP, ONE, ONE)
    # Behind the solver's stop token there is no rollout.
    found = check(monkeypatch, tmp_path, [sure(*rollout), sure(*rollout[:3], LINE)], *rollout)
    assert found["template_artefacts"] == [] and capsys.readouterr().err == ""


def test_a_difference_behind_the_same_prompt_is_refused(monkeypatch, tmp_path):
    rollout, other = (ONE, TWO, TWO, ONE), sure(ONE, TWO, TWO, ONE, mass=0.88)
    with pytest.raises(UserError, match=r"diverge by 0\.0021 nats behind the same prompt"):
        check(monkeypatch, tmp_path, [other, other], *rollout)
