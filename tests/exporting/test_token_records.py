# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Rollouts for other programs: every number comes back as it was."""

import json
import shutil

import numpy as np
import pytest
from support.hand_scored import scored_texts
from support.runs import refusal, small_config, tiny_roles

from stepalign_jax import export
from stepalign_jax.analysis.told import told_by_scores
from stepalign_jax.base.files import read_jsonl, write_jsonl
from stepalign_jax.exporting.prime_rl import token_records
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import open_run

ROLES = tiny_roles()
PROBLEMS = [Problem(f"What is 3*8+{n}?", "71", "Answer: 71", "test") for n in (47, 48)]
TEXTS = ["Step 1: 3*8=24\nStep 2: 24+47=71\nAnswer: 71", "Step 1: 3*8=24\nAnswer: 24"]
CONTEXTS = ("stepalign", "refsol")
# The columns of prime-rl's record, and the fields beside them.
COLUMNS = {
    *("token_ids", "position_ids", "loss_mask", "advantages", "losses", "rewards"),
    *("inference_logprobs", "trainer_logprobs", "entropy", "mismatch_kl"),
    *("log_importance_ratio", "importance_ratio", "prob_delta"),
    *("is_masked", "is_masked_high", "is_masked_low"),
}
FIELDS = {
    *("schema_version", "step", "export_step", "rank", "micro_step", "micro_sequence_idx"),
    *("export_sequence_idx", "run_id", "env_name"),
}


def scored(**arrays):
    usable = np.array([[True, False], [True, True]])
    correct = np.array([True, False])
    arrays = {"usable": usable, "correct": correct, **arrays}
    return scored_texts(ROLES, PROBLEMS, TEXTS, CONTEXTS, **arrays)


def records_of(found, context=None):
    told = told_by_scores(found, ROLES)
    made = token_records(told, run="run", environment="sums", context=context)
    return [json.loads(json.dumps(record, allow_nan=False)) for record in made]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the rollouts of two optimizer steps, one with a context that failed."""
    run = open_run(small_config(tmp_path_factory.mktemp("runs")))
    for step in (0, 3):
        write_jsonl(run.rollouts_file(step), [row(step), row(step, failure="truncated")])
    return run


def row(step, failure=None):
    tokens = [*ROLES.plain(TEXTS[0])]
    return {
        "problem": PROBLEMS[0].text,
        "answer": "71",
        "rollout": TEXTS[0],
        "tokens": tokens,
        "correct": step == 0,
        "context": "Step 1: 3*8=24",
        "failure": failure,
        "advantage": None if failure else [round(-0.00001 * t, 5) for t in range(len(tokens))],
    }


def bits(values):
    return np.array(values, np.float64).astype(np.float32).tobytes()


def test_a_record_has_the_fields_and_aligned_columns():
    for record in records_of(scored()):
        assert record.keys() == FIELDS | COLUMNS
        assert {len(record[name]) for name in COLUMNS} == {len(record["token_ids"])}
        assert record["position_ids"] == list(range(len(record["token_ids"])))


def test_every_score_comes_back_to_the_bit():
    found = scored()
    for rollout, record in enumerate(records_of(found)):
        own, start = found.of(rollout), len(ROLES.solver(PROBLEMS[rollout]))
        assert record["token_ids"][:start] == ROLES.solver(PROBLEMS[rollout])
        assert record["token_ids"][start:] == found.tokens[own].tolist()
        assert record["loss_mask"] == [False] * start + [True] * len(found.tokens[own])
        assert set(record["rewards"]) == {float(found.correct[rollout])}
        pairs = {"trainer_logprobs": found.solver_logprobs, "entropy": found.solver_entropy}
        for name, values in pairs.items():
            assert record[name][:start] == [None] * start
            assert bits(record[name][start:]) == values[own].tobytes()
        for index, context in enumerate(CONTEXTS):
            if not found.usable[index, rollout]:
                assert all(context not in entry for entry in record["losses"])
                continue
            entries = [entry[context] for entry in record["losses"]]
            assert [entry["mask"] for entry in entries] == record["loss_mask"]
            advantage = [entry["advantage"] for entry in entries]
            assert bits(advantage[start:]) == found.advantage[index, own].tobytes()


def test_advantages_are_those_of_the_context_that_is_asked_for():
    found = scored()
    start = len(ROLES.solver(PROBLEMS[0]))
    own = found.of(0)
    for context, index in ((None, 0), ("refsol", 1)):
        record = records_of(found, context)[0]
        assert bits(record["advantages"][start:]) == found.advantage[index, own].tobytes()
    failed = records_of(found, "stepalign")[1]  # whose context could not be used
    assert set(failed["advantages"]) == {None} and not any(failed["loss_mask"])
    first = records_of(found)[1]  # the first that could
    assert first["advantages"][-1] == first["losses"][-1]["refsol"]["advantage"]


def test_what_is_not_finite_or_not_measured_is_null():
    logprobs = scored().solver_logprobs.copy()
    logprobs[-1] = -np.inf
    record = records_of(scored(solver_logprobs=logprobs))[1]
    assert record["trainer_logprobs"][-1] is None is record["advantages"][-1]
    assert set(record["inference_logprobs"]) == set(record["is_masked"]) == {None}


def test_rollouts_of_training_as_they_were_stored(run, tmp_path):
    target = tmp_path / "rollouts.jsonl"
    export.main(["--run", str(run.path), "--to", str(target), "--rollouts", "prime-rl"])
    records = read_jsonl(target)
    assert [record["step"] for record in records] == [0, 0, 3, 3]
    assert [record["export_sequence_idx"] for record in records] == [0, 1, 2, 3]
    start, stored = len(ROLES.solver(PROBLEMS[0])), row(0)
    assert records[0]["token_ids"][start:] == stored["tokens"]
    assert records[0]["advantages"][start:] == stored["advantage"]
    assert records[0]["losses"][-1] == {
        "stepalign": {"advantage": stored["advantage"][-1], "mask": True}
    }
    assert records[0]["rewards"][0] == 1.0 and records[2]["rewards"][0] == 0.0
    assert not any(records[1]["loss_mask"]) and set(records[1]["trainer_logprobs"]) == {None}
    assert {record["run_id"] for record in records} == {run.path.name}
    assert {record["env_name"] for record in records} == {"arithmetic"}


def test_one_step_of_training_alone(run, tmp_path):
    target = tmp_path / "rollouts.jsonl"
    export.main(
        ["--run", str(run.path), "--to", str(target), "--rollouts=prime-rl", "--step=3"]
    )
    assert {record["step"] for record in read_jsonl(target)} == {3}


def test_scores_of_an_analysis_are_read_from_its_directory(run, tmp_path):
    found = scored()
    found.save(tmp_path / "scores")
    target = tmp_path / "rollouts.jsonl"
    arguments = ["--run", str(run.path), "--to", str(target), "--rollouts", "prime-rl"]
    export.main([*arguments, "--scores", str(tmp_path / "scores"), "--context", "refsol"])
    records, expected = read_jsonl(target), records_of(found, "refsol")
    for record, other in zip(records, expected, strict=True):
        names = {"run_id": run.path.name, "env_name": "arithmetic"}
        assert record == {**other, **names}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scores", "DIR"], "--scores goes with --rollouts"),
        (["--rollouts=prime-rl", "--form=adapter"], "--form is of weights"),
        (["--rollouts=prime-rl", "--max-shard-gb=1"], "--max-shard-gb is of weights"),
        (["--rollouts=prime-rl", "--context=grpo"], "there are stepalign"),
        (["--rollouts=prime-rl", "--step=7"], "rollouts of steps 0 to 3"),
        (["--rollouts=inspect", "--context=refsol"], "the log has all contexts"),
        (["--rollouts=prime-rl", "--scores=DIR", "--step=0"], "leave it out with --scores"),
        (["--rollouts=prime-rl", "--scores=DIR"], "cannot read the scores"),
        (["--rollouts=inspect"], "ends in .eval"),
    ],
)
def test_refusals(run, tmp_path, monkeypatch, capsys, options, words):
    options = [option.replace("DIR", str(tmp_path / "none")) for option in options]
    target = tmp_path / "rollouts.jsonl"
    arguments = ["--run", str(run.path), "--to", str(target), *options]
    assert words in refusal(export.main, arguments, monkeypatch, capsys)
    assert not target.exists()


def test_a_file_is_replaced_only_when_asked(run, tmp_path, monkeypatch, capsys):
    target = tmp_path / "rollouts.jsonl"
    target.write_text("mine")
    arguments = ["--run", str(run.path), "--to", str(target), "--rollouts=prime-rl"]
    assert "--overwrite" in refusal(export.main, arguments, monkeypatch, capsys)
    assert target.read_text() == "mine"
    export.main([*arguments, "--overwrite"])
    assert len(read_jsonl(target)) == 4


def test_a_run_without_rollouts_is_refused(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run.path, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty" / "rollouts")
    arguments = ["--run", str(tmp_path / "empty"), "--to", str(tmp_path / "x.jsonl")]
    said = refusal(export.main, [*arguments, "--rollouts=prime-rl"], monkeypatch, capsys)
    assert "no rollouts" in said
