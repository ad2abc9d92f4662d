# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run says before its first step, of fixed words of all roles.

`test_train.py` has whole runs with it.
"""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runs import ScriptedEngine, small_config, tiny_roles

from stepalign_jax.critics.oracle import Oracle
from stepalign_jax.critics.protocol import CriticReply
from stepalign_jax.critics.replay import Replay
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.feedback.contexts import Context
from stepalign_jax.grading.grader import Grader
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.preflight import preflight
from stepalign_jax.sampling.request import PREFLIGHT_STEP, Purpose

RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71"
WRONG = "Step 1: 3*8=25\nStep 2: 47+25=72\nAnswer: 72"
PROBLEMS = [Problem(f"47+3*8+{n}*0", "71", RIGHT, "jsonl") for n in range(10)]


class Fixed(Oracle):
    """A critic that fails in the ways it is told; None is a critique."""

    def __init__(self, *failures: str | None):
        self.failures, self.addresses = failures, []

    def review(self, attempts: Any, addresses: Any) -> CriticReply:
        self.addresses += addresses
        critiques = [Context(RIGHT, failure) for failure in self.failures]
        return CriticReply(critiques, [20] * len(critiques), [True] * len(critiques))


def evaluation(*shares: float) -> Evaluation:
    return Evaluation({"avg_at_k": np.array(shares)})


def fly(
    tmp_path: Any, condition: str, engine: ScriptedEngine, critic: Any = None, **train: Any
) -> dict[str, Any] | None:
    """Returns the content of preflight.json; None where there is no such file."""
    config = small_config(
        tmp_path, condition, train={"preflight_problems": 6, "num_steps": 9} | train
    )
    model: Any = SimpleNamespace(engine=engine, variables=lambda: {"params": {}})
    measured = {"test": evaluation(0.5, 0.5), "validation": evaluation(1.0, 0.0)}
    run = RunDirectory.of(config)
    run.path.mkdir(parents=True, exist_ok=True)
    with Grader(deadline_secs=5.0, num_workers=1) as grader:
        preflight(config, run, model, tiny_roles(), grader, critic, PROBLEMS, measured)
    return json.loads(run.preflight_file.read_text()) if run.preflight_file.exists() else None


def test_each_role_is_measured_and_printed_once(tmp_path, capsys):
    engine = ScriptedEngine(
        [RIGHT, RIGHT, WRONG, WRONG, WRONG, WRONG],
        [RIGHT] * 5,  # of the teacher: one critique failed
    )
    critic = Fixed("truncated", None, None, None, None, None)
    found = fly(tmp_path, "stepalign", engine, critic)
    assert found is not None and found["warnings"] == []
    assert found["solver"]["accuracy"]["mean"] == pytest.approx(2 / 6)
    assert found["solver"]["test"]["mean"] == found["solver"]["validation"]["mean"] == 0.5
    assert found["critic"]["outcomes"] == {"ok": 5, "truncated": 1}
    assert found["contexts"] == found["critic"]["outcomes"]
    assert found["teacher"]["problems"] == 5
    assert found["teacher"]["accuracy"]["mean"] == 1
    # On the same five problems, of which the solver has one.
    assert found["teacher"]["above_solver"]["mean"] == pytest.approx(4 / 5)
    # 9 steps of 2 problems with 2 samples each are 6 times these 6 rollouts.
    length = found["solver"]["mean_tokens"]
    assert found["run"]["tokens"] == {"sample": round(36 * length), "critique": 36 * 20}
    assert found["run"]["seconds"].keys() == {"sample", "critique"}
    out, err = capsys.readouterr()
    words = " ".join(out.split())
    assert words.startswith("pre-flight: 6 training problems, one rollout each solver 33.3 [")
    assert "test Avg@2 50.0 [50.0, 50.0], validation Avg@2 50.0 [0.0, 100.0]" in words
    assert "critic 5 of 6 critiques can be used; 1 truncated (the token budget ended" in words
    assert "teacher 100.0 [100.0, 100.0] % right under contexts of stepalign, +80.0 [" in words
    assert f"run 9 steps with about {36 * length:,.0f} tokens of rollouts and 720" in words
    assert max(map(len, out.splitlines())) <= 80 and "warning" not in err
    # Nothing is drawn where training, or an evaluation, draws.
    solver, teacher = (call["requests"] for call in engine.calls)
    addresses = [request.address for request in (*solver, *teacher)] + critic.addresses
    assert {address.step for address in addresses} == {PREFLIGHT_STEP}
    assert {r.address.purpose for r in teacher} == {Purpose.EVALUATION}
    assert {r.address.purpose for r in solver} == {Purpose.SOLVER}
    # A run that goes on has it already: the engine has no more words.
    assert fly(tmp_path, "stepalign", engine, critic) == found
    assert capsys.readouterr().out == ""


def test_a_teacher_that_knows_no_more_is_warned_of(tmp_path, capsys):
    # Better on two problems, worse on one: that may be chance.
    engine = ScriptedEngine([RIGHT, WRONG] * 3, [RIGHT, RIGHT, WRONG, WRONG, RIGHT, RIGHT])
    found = fly(tmp_path, "refsol", engine)
    assert found is not None and "critic" not in found
    (warning,) = found["warnings"]
    assert warning.startswith(
        "nothing to distil is shown by 6 problems: under contexts of refsol the teacher is +16"
    )
    assert f"warning: {warning}\n" in capsys.readouterr().err


def test_failing_critiques_are_warned_of_by_name(tmp_path):
    names = ("truncated", "truncated", "truncated", "empty", None, None)
    engine = ScriptedEngine([WRONG] * 6, [RIGHT] * 2)
    found = fly(tmp_path, "stepalign", engine, Fixed(*names))
    assert found is not None
    (warning,) = found["warnings"]
    assert warning.startswith("4 of 6 contexts failed, and such rollouts are masked: 3 trunc")
    assert "1 empty" in warning and warning.endswith("; raise critic.max_new_tokens")
    none = ScriptedEngine([WRONG] * 6, [])
    found = fly(tmp_path / "none", "stepalign", none, Fixed(*["empty"] * 6))
    assert found is not None and len(found["warnings"]) == 1
    assert found["teacher"] == {"problems": 0, "accuracy": None, "above_solver": None}


def test_where_no_teacher_is_asked_in_training_none_is_asked_before(tmp_path, capsys):
    engine = ScriptedEngine([RIGHT] + [WRONG] * 5)  # it has no words of a teacher
    critic = Fixed("truncated", *[None] * 5)
    found = fly(tmp_path, "sft", engine, critic)
    assert found is not None and "teacher" not in found and found["warnings"] == []
    assert found["contexts"] == {"ok": 5, "truncated": 1}
    assert "teacher" not in capsys.readouterr().out


@pytest.mark.parametrize(("problems_per_step", "warned"), [(1, True), (4, False)])
def test_groups_with_both_outcomes_are_foretold(tmp_path, problems_per_step, warned, capsys):
    # 2 samples of a problem of which one of two was right: both outcomes are sure. Of a group
    # of 3 they are in 1 - 2/8 of the cases.
    engine, sizes = ScriptedEngine([WRONG] * 6), {"samples_per_problem": 3}
    found = fly(tmp_path, "grpo", engine, problems_per_step=problems_per_step, **sizes)
    assert found is not None
    mixed = {"size": 3, "mixed": 0.75, "mixed_per_step": 0.75 * problems_per_step}
    assert found["groups"] == mixed
    assert [w[:22] for w in found["warnings"]] == ["a step has 0.75 groups"] * warned
    assert found["run"]["tokens"].keys() == {"sample"}
    assert "groups 75.0 % of 3 rollouts each" in " ".join(capsys.readouterr().out.split())


def test_a_replay_is_not_asked_about_rollouts_that_it_does_not_have(tmp_path, capsys):
    replay = Replay.__new__(Replay)  # would fail on the first question
    wrapped = SimpleNamespace(inner=replay)
    found = fly(tmp_path, "stepalign", ScriptedEngine([WRONG] * 6), wrapped)
    assert found is not None and not found.keys() & {"critic", "teacher", "contexts"}
    assert "critic   replayed" in capsys.readouterr().out


def test_it_can_be_off(tmp_path):
    assert fly(tmp_path, "stepalign", ScriptedEngine(), preflight_problems=0) is None
