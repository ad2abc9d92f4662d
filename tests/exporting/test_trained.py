# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What is read of a checkpoint: its solver, its teacher, its last rollouts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.models import assert_same_bits
from support.run_files import rollout_row
from support.runs import small_config, tiny_roles

from stepalign_jax.base.files import write_jsonl
from stepalign_jax.config.learning import EmaTeacher, InitialTeacher, LiveTeacher, TeacherConfig
from stepalign_jax.exporting.trained import Trained, load_teacher, load_trained, probe_texts
from stepalign_jax.huggingface.language_model import open_language_model
from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.checkpoint import Checkpoints
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.training.state import (
    follow,
    initial_trainable,
    make_state,
    teacher_variables,
)


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


SPEC = LoraSpec(2, 4.0, ("q_proj", "down_proj"))


@pytest.mark.parametrize(("lora", "from_adapter"), [(None, False), (SPEC, False), (SPEC, True)])
@pytest.mark.parametrize("teacher", [InitialTeacher(), EmaTeacher(decay=0.5), LiveTeacher()])
def test_the_teacher_of_a_checkpoint_is_the_one_that_training_had(
    tmp_path: Path, teacher: TeacherConfig, lora: LoraSpec | None, from_adapter: bool
):
    config = replace(small_config(tmp_path), teacher=teacher)
    run, mesh = RunDirectory(tmp_path / "run"), make_mesh(config.parallel)
    model = open_language_model("packaged:tiny", dtype=jnp.float32, mesh=mesh)
    adapter = None
    if lora is not None:
        if from_adapter:
            fresh = init_lora(model.sizes, lora, jax.random.key(7))
            adapter = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.5, fresh)
        model = model.with_adapter(lora, adapter)
    model.load()
    begun = initial_trainable(model.base, model.sizes, lora, adapter, seed=3)
    state = make_state(begun, optax.sgd(0.1), teacher, starts_from_adapter=from_adapter)
    moved = jax.tree.map(lambda leaf: leaf + 0.25, begun)  # as a step would
    own = follow(state.teacher, moved, teacher)
    state = replace(state, step=jnp.int32(1), trainable=moved, teacher=own)
    checkpoints = Checkpoints(run.checkpoints, num_to_keep=1)
    checkpoints.save(1, state, data_state={})
    checkpoints.close()

    trained = Trained(run, config, model, step=1)
    solver = model.variables() | load_trained(trained)
    assert_same_bits(solver, {"params": model.base} | moved)
    had = teacher_variables(state, model.base, teacher)
    assert_same_bits(load_teacher(trained, solver), had)
