# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""This package's side of benchmarks/step.py: the functions that `train` calls, timed."""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import step_work as work
from benchmarks.measure import peak_memory_bytes, reset_peak_memory, write_json
from stepalign_jax.base.compilation import use_compilation_cache
from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.learning import Constant, ForwardKl, InitialTeacher, OptimizerConfig
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.weights import load_params
from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.model.qwen3 import Qwen3, abstract_params
from stepalign_jax.parallel.mesh import make_mesh, param_shardings
from stepalign_jax.training.optimizer import make_optimizer
from stepalign_jax.training.packing import MicroBatch, Sequences, pack, pack_prompts
from stepalign_jax.training.programs import Programs, make_programs, score_teacher, update
from stepalign_jax.training.state import TrainState, initial_trainable, make_state
from stepalign_jax.training.step import Method

MESH = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1))
OBJECTIVE = ForwardKl(
    token_tile=128,
    token_weights=(),
    loss_temperature=1.0,
    grpo_mix=0.0,
    element_clip=0.0,
    top_k=0,
)
OPTIMIZER = OptimizerConfig(
    learning_rate=work.LEARNING_RATE,
    schedule=Constant(),
    warmup_steps=0,
    b1=work.B1,
    b2=work.B2,
    weight_decay=0.0,
    clip_norm=work.CLIP,
)


def load(directory: Path, trainable: str, remat: str) -> tuple[Any, TrainState, Programs]:
    """Returns base weights, the state, and the programs of a step, in float32."""
    config = read_sizes(directory)
    shardings = param_shardings(MESH, abstract_params(config))
    base = load_params(directory, config, dtype=jnp.float32, shardings=shardings)
    spec = LoraSpec(work.RANK, work.ALPHA, work.TARGETS) if trainable == "lora" else None
    model = Qwen3(config, jnp.float32, lora=spec, remat=remat)
    # Both sides start from the same adapter, which the frozen teacher does not have.
    adapter = None if spec is None else _adapter(init_lora(config, spec, jax.random.key(0)))
    learning = initial_trainable(base, config, spec, adapter, seed=0)
    optimizer, teacher = make_optimizer(OPTIMIZER, 1000), InitialTeacher()
    state = make_state(learning, optimizer, teacher, starts_from_adapter=False)
    method = Method(model, optimizer, OBJECTIVE, teacher)
    return base, state, make_programs(method, shardings=None)


def _adapter(shapes: Any) -> Any:
    """The adapter of both sides, stacked like `shapes`."""

    def pair(name: str, leaves: Any) -> dict[str, jax.Array]:
        num_layers, num_inputs, _ = leaves["a"].shape
        num_outputs = leaves["b"].shape[2]
        pairs = [work.adapter(i, name, num_inputs, num_outputs) for i in range(num_layers)]
        return {
            name: jnp.asarray(np.stack(stack))
            for name, stack in zip("ab", zip(*pairs, strict=True), strict=True)
        }

    groups = shapes["layers"].items()
    return {
        "layers": {
            group: {n: pair(n, leaves) for n, leaves in g.items()} for group, g in groups
        }
    }


def batch() -> tuple[MicroBatch, Sequences]:
    """The work as one micro-batch, and as the teacher reads it."""
    solver, teacher, completions = work.prompts_and_completions()
    rows, length = completions.shape
    rollouts = Rollouts(
        tokens=completions.astype(np.int32),
        logprobs=np.zeros((rows, length), np.float32),
        lengths=np.full(rows, length, np.int32),
        finished=np.ones(rows, bool),
    )
    [packed] = pack(
        solver.tolist(),
        rollouts,
        np.ones(rows, bool),
        np.ones((rows, length), np.float32),
        np.zeros(rows, np.float32),
        num_parts=1,
        mesh=MESH,
    )
    return packed, pack_prompts(packed.layout, teacher.tolist(), rollouts, mesh=MESH)


def gradients(state: TrainState, trainable: str) -> dict[str, np.ndarray]:
    """The first step's clipped gradients that are compared; Adam's mean is 1 - b1 of them."""
    [means] = [s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(s)]
    layers = means["params" if trainable == "full" else "lora"]["layers"]
    found = {}
    for layer in work.CHECKED_LAYERS:
        for target in work.CHECKED_TARGETS:
            group = "mlp" if target == "down_proj" else "attention"
            for name, leaf in layers[group][target].items():
                gradient = np.asarray(leaf[layer]) / np.float32(1.0 - work.B1)
                found[f"{layer}.{target}.{name}"] = gradient
    return found


def _is_adam(node: Any) -> bool:
    return hasattr(node, "mu")


def product_flops_per_second() -> float:
    """Returns how fast XLA multiplies, see step_work."""
    x = jnp.ones((work.PRODUCT_ROWS, work.PRODUCT_INPUTS))
    weight = jnp.ones((work.PRODUCT_INPUTS, work.PRODUCT_OUTPUTS))
    multiply = jax.jit(jnp.matmul)
    return work.product_flops_per_second(lambda: multiply(x, weight).block_until_ready())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--trainable", choices=("lora", "full"), required=True)
    parser.add_argument("--remat", choices=("none", "full", "dots"), required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    use_compilation_cache()
    base, state, programs = load(arguments.model, arguments.trainable, arguments.remat)
    packed, teacher = batch()

    def step(state: TrainState) -> tuple[TrainState, float, dict[str, float]]:
        started = time.perf_counter()
        hidden = jax.block_until_ready(score_teacher(programs, state, base, [teacher]))
        scored = time.perf_counter()
        state, metrics, _ = update(programs, state, base, [packed], hidden)
        loss = float(metrics["loss"])
        ended = time.perf_counter()
        return state, loss, {"score": scored - started, "update": ended - scored}

    state, loss, first = step(state)
    found = gradients(state, arguments.trainable)
    np.savez(arguments.to.with_suffix(".npz"), **found)  # pyright: ignore[reportArgumentType]
    state, _, _ = step(state)  # memory is touched for the first time
    reset_peak_memory()
    timings = []
    for _ in range(arguments.steps):
        state, _, phases = step(state)
        timings.append(phases)
    found = {
        "loss": loss,
        "first": sum(first.values()),
        "phases": timings,
        "seconds": [sum(phases.values()) for phases in timings],
        "peak": peak_memory_bytes(),
        "product_flops_per_second": product_flops_per_second(),
    }
    write_json(arguments.to, found)


if __name__ == "__main__":
    main()
