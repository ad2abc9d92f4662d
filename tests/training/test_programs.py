# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Programs compile from sizes alone, and what was compiled so takes a run's own arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import random_adapter
from support.runs import output_on_devices, output_with_tpu_compiler
from support.updates import (
    CONFIG,
    DIVERGENCE,
    OPTIMIZER,
    PARAMS,
    SPEC,
    SURROGATE,
    TEACHERS,
    copy,
)

from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.learning import ObjectiveConfig
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.parallel.mesh import make_mesh, num_shards, use_mesh
from stepalign_jax.training.packing import pack, pack_prompts
from stepalign_jax.training.programs import (
    Programs,
    abstract_base,
    abstract_hidden,
    abstract_sequences,
    abstract_targets,
    make_programs,
)
from stepalign_jax.training.state import TrainState, abstract_state, make_state, state_shardings
from stepalign_jax.training.step import Method

ROWS, PROMPT, COMPLETION = 8, 5, 7


def make(trainable: Any) -> TrainState:
    return make_state(trainable, OPTIMIZER, TEACHERS["ema"], starts_from_adapter=False)


def without_data(mesh: Any, lora: Any, objective: ObjectiveConfig, dtype: Any) -> Any:
    """(programs, arguments of teacher_hidden, arguments of whole), from sizes alone."""
    state = abstract_state(mesh, CONFIG, lora, make)
    base = abstract_base(mesh, CONFIG, dtype)
    num_tokens = max(16, ROWS * COMPLETION // num_shards(mesh)) * num_shards(mesh)
    size = {"rows": ROWS, "num_tokens": num_tokens}
    solver = abstract_sequences(mesh, width=16, **size)
    teacher = abstract_sequences(mesh, width=20, **size)
    targets = abstract_targets(mesh, num_tokens=num_tokens)
    hidden = abstract_hidden(mesh, CONFIG, dtype, num_tokens=num_tokens)
    method = Method(Qwen3(CONFIG, dtype, lora=lora), OPTIMIZER, objective, TEACHERS["ema"])
    programs = make_programs(method, shardings=state_shardings(state))
    taught = None if objective is SURROGATE else hidden
    return programs, (state, base, teacher), (state, base, solver, targets, taught)


def with_data(programs: Programs, mesh: Any, lora: Any, abstract: Any) -> Any:
    """The same arguments from weights and rollouts, the teacher's states among them."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 24, (ROWS, COMPLETION)).astype(np.int32)
    logprobs, lengths = np.full(tokens.shape, -1.0, np.float32), np.full(ROWS, COMPLETION)
    rollouts = Rollouts(tokens, logprobs, lengths, lengths > 0)
    prompts = [rng.integers(3, 24, PROMPT).tolist() for _ in range(ROWS)]
    contexts = [[*prompt, *range(8)] for prompt in prompts]
    ones = np.ones(tokens.shape, np.float32)
    [batch] = pack(prompts, rollouts, lengths > 0, ones, ones[:, 0], num_parts=1, mesh=mesh)
    teacher = pack_prompts(batch.layout, contexts, rollouts, mesh=mesh)
    trainable = {"params": PARAMS} if lora is None else {"lora": random_adapter(CONFIG, lora)}
    state, base = abstract[:2]
    state = jax.device_put(make(copy(trainable)), state_shardings(state))
    base = jax.device_put(PARAMS, jax.tree.map(lambda leaf: leaf.sharding, base))
    hidden = programs.teacher_hidden(state, base, teacher)
    return (state, base, teacher), (state, base, batch.solver, batch.targets, hidden)


def compiled_without_data_runs_on_data(mesh: Any, lora: Any, objective: Any) -> float:
    """A compiled program refuses arguments of another shape, dtype or sharding."""
    with use_mesh(mesh):
        programs, *abstract = without_data(mesh, lora, objective, jnp.float32)
        score, update = (
            function.lower(*arguments).compile()
            for function, arguments in zip(
                (programs.teacher_hidden, programs.whole), abstract, strict=True
            )
        )
        to_score, to_update = with_data(programs, mesh, lora, abstract[0])
        hidden = score(*to_score)
        taught = None if objective is SURROGATE else hidden
        state, metrics, _ = update(*to_update[:-1], taught)
    assert int(state.step) == 1 and int(metrics["tokens_in_loss"]) == ROWS * COMPLETION
    return float(metrics["gradient_norm"])


@pytest.mark.long
def test_on_one_device():
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])
    assert compiled_without_data_runs_on_data(mesh, SPEC, DIVERGENCE) > 0


EIGHT_DEVICES = """
    from training.test_programs import *

    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
    for lora, objective in ((SPEC, DIVERGENCE), (None, SURROGATE)):
        assert compiled_without_data_runs_on_data(mesh, lora, objective) > 0
    print("ran on", mesh.size, "devices")
"""


@pytest.mark.long
def test_on_eight_devices():
    assert output_on_devices(EIGHT_DEVICES, num_devices=8) == "ran on 8 devices"


ON_TPUS = """
    from jax.experimental import topologies
    from training.test_programs import *

    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2), devices=chips.devices)
    with use_mesh(mesh):
        programs, score, update = without_data(mesh, SPEC, DIVERGENCE, jnp.bfloat16)
        programs.teacher_hidden.lower(*score).compile()
        plan = programs.whole.lower(*update).compile().memory_analysis()
    print("compiled for", mesh.size, "chips" if plan.generated_code_size_in_bytes > 0 else "")
"""


@pytest.mark.slow
def test_for_a_tpu_that_is_not_there():
    pytest.importorskip("libtpu")
    assert output_with_tpu_compiler(ON_TPUS) == "compiled for 8 chips"
