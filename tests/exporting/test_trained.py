# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which rollouts the cost of rounding is measured on."""

from types import SimpleNamespace
from typing import Any

from support.run_files import rollout_row
from support.runs import small_config, tiny_roles

from stepalign_jax.base.files import write_jsonl
from stepalign_jax.exporting.trained import Trained, probe_texts
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory


def test_the_last_rollouts_before_the_checkpoint_are_read(tmp_path):
    run, row = RunDirectory(tmp_path), rollout_row()
    for step in (0, 1, 3, 4):  # that of step 2 is gone
        rows = [row | {"tokens": tokens} for tokens in ([step, 1], [], [step, 2])]
        write_jsonl(run.rollouts_file(step), rows)
    model: Any = SimpleNamespace(tokenizer=tiny_roles().tokenizer)
    trained = Trained(run, small_config(tmp_path), model, step=4)
    found = probe_texts(trained, 3)
    assert [text.completion for text in found] == [[3, 1], [3, 2], [1, 1]]
    prompt = tiny_roles().solver(Problem(row["problem"], row["answer"], None, ""))
    assert all(text.prompt == prompt for text in found)
    assert len(probe_texts(trained, 99)) == 6
    assert probe_texts(trained, 0) == []


def test_a_long_completion_is_cut(tmp_path):
    run = RunDirectory(tmp_path)
    write_jsonl(run.rollouts_file(0), [rollout_row() | {"tokens": list(range(300))}])
    model: Any = SimpleNamespace(tokenizer=tiny_roles().tokenizer)
    (text,) = probe_texts(Trained(run, small_config(tmp_path), model, step=1), 4)
    assert text.completion == list(range(256))
