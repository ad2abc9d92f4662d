# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The Inspect log: what is asked before the library is needed, and what the library reads."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.hand_scored import scored_texts
from support.runs import refusal, small_config, tiny_roles

from stepalign_jax import export
from stepalign_jax.analysis.told import told_by_scores
from stepalign_jax.base.files import write_jsonl
from stepalign_jax.exporting.inspect_log import sample_metadata
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import open_run

ROLES = tiny_roles()
PROBLEMS = [Problem(f"What is 3*8+{n}?", "71", None, "test") for n in (47, 48)]
TEXTS = ["Step 1: 3*8=24\nStep 2: 24+47=71\nAnswer: 71", "Step 1: 3*8=24\nAnswer: 24"]


@pytest.fixture
def run(tmp_path):
    run = open_run(small_config(tmp_path / "runs"))
    row = {
        "problem": PROBLEMS[0].text,
        "answer": "71",
        "rollout": TEXTS[0],
        "tokens": ROLES.plain(TEXTS[0]),
        "correct": True,
        "context": "Step 1: 3*8=24",
        "failure": None,
        "advantage": [0.25] * len(ROLES.plain(TEXTS[0])),
    }
    write_jsonl(run.rollouts_file(2), [row, row | {"correct": False}])
    return run


def scored():
    usable = np.array([[True, False], [True, True]])
    correct = np.array([True, False])
    contexts = ("stepalign", "refsol")
    return scored_texts(ROLES, PROBLEMS, TEXTS, contexts, usable=usable, correct=correct)


def test_without_the_library_the_extra_is_named(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    arguments = ["--run", str(run.path), "--to", str(tmp_path / "x.eval")]
    said = refusal(export.main, [*arguments, "--rollouts=inspect"], monkeypatch, capsys)
    assert "pip install 'stepalign_jax[inspect]'" in said
    assert not (tmp_path / "x.eval").exists()


def test_metadata_is_json_and_has_every_number_of_the_analysis():
    found = scored()
    for rollout, told in enumerate(told_by_scores(found, ROLES)):
        metadata = json.loads(json.dumps(sample_metadata(told), allow_nan=False))
        own = found.of(rollout)
        assert metadata["token_ids"] == found.tokens[own].tolist()
        entropy = np.array(metadata["solver_entropy"], np.float32)
        assert entropy.tobytes() == found.solver_entropy[own].tobytes()
        usable = [n for i, n in enumerate(found.contexts) if found.usable[i, rollout]]
        assert list(metadata["advantages"]) == list(metadata["kl"]) == usable
        for name in usable:
            index = found.contexts.index(name)
            for key, values in (("advantages", found.advantage), ("kl", found.kl)):
                read = np.array(metadata[key][name], np.float32)
                assert read.tobytes() == values[index, own].tobytes()


@pytest.mark.slow
def test_inspect_reads_the_rollouts_of_training(run, tmp_path):
    logs = pytest.importorskip("inspect_ai.log", reason="needs the extra `inspect`")
    target = tmp_path / "rollouts.eval"
    export.main(["--run", str(run.path), "--to", str(target), "--rollouts", "inspect"])
    log = logs.read_eval_log(str(target))
    assert (log.status, log.eval.task) == ("success", run.path.name)
    assert [sample.id for sample in log.samples] == ["step_00002/0", "step_00002/1"]
    first = log.samples[0]
    assert (first.input, first.target) == (PROBLEMS[0].text, "71")
    assert first.output.completion == TEXTS[0]
    assert [sample.scores["correct"].value for sample in log.samples] == ["C", "I"]
    assert first.metadata["advantages"] == {
        "stepalign": [0.25] * first.output.usage.output_tokens
    }
    assert log.results.scores[0].metrics["accuracy"].value == 0.5
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.slow
def test_inspect_reads_every_number_of_an_analysis(run, tmp_path):
    logs = pytest.importorskip("inspect_ai.log", reason="needs the extra `inspect`")
    found = scored()
    found.save(tmp_path / "scores")
    target = tmp_path / "scored.eval"
    export.main(
        ["--run", str(run.path), "--to", str(target), "--rollouts", "inspect",
         "--scores", str(tmp_path / "scores")]
    )  # fmt: skip
    by_id = {sample.id: sample for sample in logs.read_eval_log(str(target)).samples}
    for rollout, told in enumerate(told_by_scores(found, ROLES)):
        sample, own = by_id[told.id], found.of(rollout)
        assert sample.metadata == json.loads(json.dumps(sample_metadata(told)))
        content = sample.output.choices[0].logprobs.content
        logprobs = np.array([entry.logprob for entry in content], np.float32)
        assert logprobs.tobytes() == found.solver_logprobs[own].tobytes()
        top = np.array([[t.logprob for t in entry.top_logprobs] for entry in content])
        assert top.astype(np.float32).tobytes() == found.solver_top_logprobs[own].tobytes()
    # And its command line does, in a process of its own.
    command = [Path(sys.executable).with_name("inspect"), "log", "dump", target]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    assert json.loads(dumped.stdout)["samples"][0]["target"] == "71"
