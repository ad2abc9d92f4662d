# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How a state begins: its solver, its teacher, from nothing or from an adapter, and where."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import assert_same_bits, random_adapter
from support.updates import (
    CONFIG,
    DIVERGENCE,
    MODEL,
    PARAMS,
    SPEC,
    TEACHERS,
    copy,
    make_part,
)

from stepalign_jax.config.learning import Constant, OptimizerConfig
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.huggingface.peft_adapters import load_adapter, save_adapter
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.training import programs as run
from stepalign_jax.training.optimizer import make_optimizer
from stepalign_jax.training.state import (
    TrainState,
    abstract_state,
    initial_trainable,
    make_state,
    state_shardings,
    teacher_variables,
)
from stepalign_jax.training.step import Method

ADAPTER = random_adapter(CONFIG, SPEC)
OPTIMIZER = make_optimizer(
    OptimizerConfig(
        learning_rate=1e-3, schedule=Constant(), warmup_steps=0,
        b1=0.9, b2=0.95, weight_decay=0.0, clip_norm=1.0,
    ),
    num_steps=10,
)  # fmt: skip


def start(adapter: Any = ADAPTER, *, teacher: str = "initial") -> TrainState:
    trainable = initial_trainable(PARAMS, CONFIG, SPEC, adapter, seed=0)
    known = adapter is not None
    return make_state(trainable, OPTIMIZER, TEACHERS[teacher], starts_from_adapter=known)


@pytest.mark.parametrize(
    ("kind", "has_tree"), [("initial", True), ("ema", True), ("live", False)]
)
def test_solver_and_teacher_start_as_the_adapter(kind, has_tree):
    state = start(teacher=kind)
    assert_same_bits(state.trainable, {"lora": ADAPTER})
    assert_same_bits(state.teacher, {"lora": ADAPTER} if has_tree else {})
    teacher = teacher_variables(state, PARAMS, TEACHERS[kind])
    assert_same_bits(teacher, {"params": PARAMS, "lora": ADAPTER})


@pytest.mark.parametrize(("kind", "has_tree"), [("initial", False), ("ema", True)])
def test_a_fresh_adapter_needs_no_copy_for_a_frozen_teacher(kind, has_tree):
    assert bool(start(None, teacher=kind).teacher) == has_tree


def test_what_is_trained_is_always_a_copy():
    for lora, adapter in ((None, None), (SPEC, ADAPTER)):
        source = PARAMS if lora is None else adapter
        trainable = initial_trainable(PARAMS, CONFIG, lora, adapter, seed=0)
        [tree] = trainable.values()
        assert_same_bits(tree, source)
        for leaf, original in zip(jax.tree.leaves(tree), jax.tree.leaves(source), strict=True):
            assert leaf is not original
    # Two seeds, two fresh adapters.
    a, b = (initial_trainable(PARAMS, CONFIG, SPEC, None, seed=n)["lora"] for n in (0, 1))
    assert not np.array_equal(*(x["layers"]["attention"]["q_proj"]["a"] for x in (a, b)))


PROGRAMS = run.make_programs(
    Method(MODEL, OPTIMIZER, DIVERGENCE, TEACHERS["initial"]), shardings=None
)


def one_step(state: TrainState) -> tuple[TrainState, Any]:
    programs, part = PROGRAMS, make_part()
    hidden = run.score_teacher(programs, state, PARAMS, [part.teacher])
    return run.update(programs, state, PARAMS, [part], hidden)[:2]  # pyright: ignore[reportArgumentType]


def test_the_frozen_teacher_stays_the_adapter_that_the_run_started_from():
    new, metrics = one_step(start())
    assert float(metrics["loss"]) > 0
    assert_same_bits(new.teacher, {"lora": ADAPTER})
    moved = jax.tree.map(lambda a, b: (a != b).any(), new.trainable, new.teacher)
    assert all(jax.tree.leaves(moved))


def test_an_exported_adapter_trains_on_exactly(tmp_path):
    """A trained adapter and its file give the same state and the same next update."""
    trained = one_step(start())[0].trainable
    save_adapter(tmp_path, SPEC, trained["lora"], base_name="toy")
    reloaded = start(load_adapter(tmp_path, CONFIG)[1])
    direct = make_state(copy(trained), OPTIMIZER, TEACHERS["initial"], starts_from_adapter=True)
    assert_same_bits(reloaded, direct)
    assert_same_bits(one_step(reloaded), one_step(direct))


def test_a_state_without_data_has_the_leaves_of_one_with_data():
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])

    def make(trainable: Any) -> TrainState:
        return make_state(trainable, OPTIMIZER, TEACHERS["ema"], starts_from_adapter=False)

    abstract = abstract_state(mesh, CONFIG, SPEC, make)
    state = start(None, teacher="ema")
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract)
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    # Moments and the average lie as the weights that they follow.
    shardings = state_shardings(abstract)
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    moments = specs.opt_state[1][0].mu
    assert moments == specs.trainable == specs.teacher
    assert specs.trainable["lora"]["layers"]["attention"]["q_proj"]["a"] == jax.P(
        None, "fsdp", None
    )
    assert specs.step == jax.P()
    assert jnp.shape(jax.device_put(state, shardings).step) == ()
