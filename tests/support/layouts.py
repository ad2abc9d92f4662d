# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A toy that eight devices can cut in every way: its programs, samples and gradients."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from support.models import TIED, enlarged, random_adapter
from support.updates import DIVERGENCE, OPTIMIZER, TEACHERS

from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.model.lora import LoraSpec, abstract_lora
from stepalign_jax.model.qwen3 import Qwen3, abstract_params, init_params
from stepalign_jax.parallel.mesh import (
    active_mesh,
    make_mesh,
    num_shards,
    param_shardings,
    unboxed,
    use_mesh,
)
from stepalign_jax.sampling import decode, layout, programs
from stepalign_jax.sampling.engine import Engine
from stepalign_jax.sampling.request import Address, Request, SamplingParams
from stepalign_jax.training import programs as training
from stepalign_jax.training.packing import pack, pack_prompts
from stepalign_jax.training.state import abstract_state, make_state, state_shardings
from stepalign_jax.training.step import Method

# Eight key heads, so that tensor may be 8; a vocabulary that no other size comes near, and that
# top-k of 512 need not sort.
CONFIG = dataclasses.replace(TIED, num_layers=1, num_heads=16, num_kv_heads=8, vocab_size=8_192)
FEW_HEADS = dataclasses.replace(CONFIG, num_kv_heads=2)  # eight devices do not divide them
SPEC = LoraSpec(
    rank=4, alpha=8.0,
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)  # fmt: skip
# Every (data, fsdp, tensor) of eight devices.
SHAPES = [
    (data, fsdp, 8 // (data * fsdp))
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if data * fsdp <= 8
]
SLOTS, CACHED, PREFILL = 16, 128, 24  # cache slots, and those that a prefill fills
# Of an optimizer step; widths of its rows by program.
ROWS, PROMPT, CONTEXT, COMPLETION = 16, 9, 30, 7
WIDTHS = {"score": 48, "update": 16}


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    data, fsdp, tensor = shape
    config = ParallelConfig(data=data, fsdp=fsdp, tensor=tensor)
    return make_mesh(config, jax.devices()[: data * fsdp * tensor])


def compiled_sampling(config: Any, mesh: Mesh, lora: Any = SPEC) -> dict[str, Any]:
    """The programs of sampling by name, compiled."""
    model = programs.decode_model(config, "float32", lora)
    with use_mesh(mesh):
        rows = 2 * layout.batch_shards(config)
        sizes = {"num_slots": SLOTS, "width": CACHED}
        prepared: Any = (model, active_mesh(), tuple(abstract(config)), 0)
        prepare: Any = layout.preparation(*prepared)
        calls = {
            "prepare": (prepare, (stacked_collections(config, mesh),)),
            "prefill": (
                decode.prefill,
                programs.prefill_arguments(model, mesh, num_rows=rows, width=PREFILL),
            ),
            "prefill behind a prefix": (
                decode.prefill,
                programs.prefill_arguments(
                    model, mesh, num_rows=rows, width=PREFILL, prefix=64
                ),
            ),
            "copy_rows": (
                decode.copy_rows,
                programs.copy_arguments(model, mesh, **sizes, num_rows=rows, filled=PREFILL),
            ),
            "resize": (
                decode.resize_layer, programs.resize_arguments(model, mesh, **sizes, to=256)
            ),
            "decode": (
                decode.decode_chunk, programs.decode_arguments(model, mesh, **sizes)
            ),
        }  # fmt: skip
        return {name: f.lower(*arguments).compile() for name, (f, arguments) in calls.items()}


def stacked_collections(config: Any, mesh: Mesh) -> Any:
    """Shapes and shardings of params and adapter, as training has them."""
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(  # noqa: E731
        leaf.shape, jnp.float32, sharding=sharding
    )
    return {
        name: jax.tree.map(place, unboxed(boxed), param_shardings(mesh, boxed))
        for name, boxed in abstract(config).items()
    }


def abstract(config: Any) -> Any:
    """Params and adapter, boxed with the names of their axes."""
    return {"params": abstract_params(config), "lora": abstract_lora(config, SPEC)}


class Step(NamedTuple):
    """The programs of an optimizer step and their arguments, on a mesh.

    Attributes:
      programs: jitted.
      state: before it.
      base: params.
      teacher: the teacher's sequences.
      batch: the solver's.
    """

    programs: Any
    state: Any
    base: Any
    teacher: Any
    batch: Any


def make_step(mesh: Mesh, lora: LoraSpec | None) -> Step:
    """A step of one micro-batch with data, laid out over a mesh; call it within `use_mesh`."""

    def make(trainable: Any) -> Any:
        return make_state(trainable, OPTIMIZER, TEACHERS["initial"], starts_from_adapter=False)

    empty = abstract_state(mesh, CONFIG, lora, make)
    method = Method(
        Qwen3(CONFIG, jnp.float32, lora=lora), OPTIMIZER, DIVERGENCE, TEACHERS["initial"]
    )
    trainable = {"params": PARAMS} if lora is None else {"lora": ADAPTER}
    state = jax.device_put(make(jax.tree.map(jnp.asarray, trainable)), state_shardings(empty))
    base = jax.device_put(PARAMS, param_shardings(mesh, abstract_params(CONFIG)))
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, COMPLETION + 1, ROWS)
    tokens = rng.integers(3, CONFIG.vocab_size, (ROWS, COMPLETION)).astype(np.int32)
    rollouts = Rollouts(tokens, np.zeros(tokens.shape, np.float32), lengths, lengths > 0)
    prompts = [rng.integers(3, CONFIG.vocab_size, PROMPT).tolist() for _ in range(ROWS)]
    contexts = [[*prompt, *range(CONTEXT)] for prompt in prompts]
    ones = np.ones(tokens.shape, np.float32)
    [batch] = pack(prompts, rollouts, lengths > 0, ones, ones[:, 0], num_parts=1, mesh=mesh)
    teacher = pack_prompts(batch.layout, contexts, rollouts, mesh=mesh)
    made = training.make_programs(method, shardings=state_shardings(empty))
    return Step(made, state, base, teacher, batch)


def compiled_step(mesh: Mesh, lora: LoraSpec | None) -> dict[str, Any]:
    """The teacher's scoring and the update, compiled."""
    with use_mesh(mesh):
        step = make_step(mesh, lora)
        state, base, batch = step.state, step.base, step.batch
        score = step.programs.teacher_hidden.lower(state, base, step.teacher).compile()
        hidden = score(state, base, step.teacher)
        update = step.programs.whole.lower(state, base, batch.solver, batch.targets, hidden)
        return {"score": score, "update": update.compile()}


def step_numbers(mesh: Mesh, lora: LoraSpec | None) -> Any:
    """(gradient, losses) of a step, in host memory; losses by rollout's token."""
    with use_mesh(mesh):
        step = make_step(mesh, lora)
        hidden = training.score_teacher(step.programs, step.state, step.base, [step.teacher])
        state, metrics, [scores] = training.update(
            step.programs, step.state, step.base, [step.batch], hidden
        )
        packed, index = step.batch.layout, step.batch.layout.index
        losses = np.zeros((ROWS, COMPLETION), np.float32)
        losses[index] = np.asarray(scores.loss)[packed.counts.reshape(-1)]
        assert num_shards(mesh) == packed.counts.shape[0]
        return jax.device_get((state.opt_state, losses, metrics["loss"]))


def sampled(mesh: Mesh, requests: list[Request], config: Any = CONFIG) -> Rollouts:
    """Completions by the adapted model, with weights laid out for training."""
    params = PARAMS if config is CONFIG else enlarged(init_params(config, KEY), 10)
    variables = {"params": params, "lora": random_adapter(config, SPEC)}
    with use_mesh(mesh):
        variables = jax.device_put(variables, param_shardings(mesh, abstract(config)))
        engine = Engine(config, "float32", SPEC, stop_ids=(1,), pad_id=0)
        return engine.sample(variables, requests, batch_size=SLOTS - 1)


def make_requests(number: int, max_new_tokens: int) -> list[Request]:
    """Of every kind of draw, with prompts of three widths, some shared, behind one prefix."""
    rng = np.random.default_rng(1)
    kinds = [(1.0, 0, 1.0), (0.0, 0, 1.0), (0.7, 20, 0.9), (1.2, 0, 0.95)]
    prefix = rng.integers(3, CONFIG.vocab_size, 130).tolist()
    prompts = [
        prefix + rng.integers(3, CONFIG.vocab_size, length).tolist()
        for length in rng.integers(3, 40, number // 2)
    ]
    return [
        Request(
            prompts[row // 2],
            Address(5, 1, 2, 1_000 + row // 2, row % 2, 0),
            SamplingParams(*kinds[row % len(kinds)], max_new_tokens, ()),
        )
        for row in range(number)
    ]


def unequal_tokens(found: Rollouts, expected: Rollouts) -> tuple[int, int]:
    """How many tokens differ behind equal prefixes, and how many were compared."""
    unequal = compared = 0
    for row, length in enumerate(expected.lengths):
        differs = np.flatnonzero(found.tokens[row, :length] != expected.tokens[row, :length])
        unequal += len(differs) > 0
        compared += int(differs[0]) + 1 if len(differs) else int(length)
    return unequal, compared


KEY = jax.random.key(0)
PARAMS = jax.device_get(enlarged(init_params(CONFIG, KEY), 10))
ADAPTER = random_adapter(CONFIG, SPEC)
