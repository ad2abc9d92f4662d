# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Compute in fp16 with fp32 trainables, for GPUs that have no bf16."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import VARIANTS, apply, enlarged
from support.updates import (
    CONFIG,
    DIVERGENCE,
    LORA,
    PARAMS,
    ROWS,
    SPEC,
    TEACHERS,
    copy,
    make_part,
)

from stepalign_jax.config.learning import Constant, OptimizerConfig
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3, init_params, unstack_layers
from stepalign_jax.training.optimizer import make_optimizer
from stepalign_jax.training.programs import make_programs, score_teacher, update
from stepalign_jax.training.state import TrainState, make_state
from stepalign_jax.training.step import Method

TOKENS = np.random.default_rng(0).integers(0, 24, (3, 14)).astype(np.int32)
HALF = jnp.float16


def hidden_of(config: Any, dtype: Any, params: Any, **fields: Any) -> jax.Array:
    model = Qwen3(config, dtype, **fields)
    return jax.jit(lambda params: apply(model, {"params": params}, TOKENS)[0])(params)


@pytest.mark.parametrize("name", VARIANTS)
def test_hidden_states_are_fp16_and_near_those_of_fp32(name):
    params = enlarged(init_params(VARIANTS[name], jax.random.key(0)), 4)
    half = hidden_of(VARIANTS[name], HALF, params)
    exact = hidden_of(VARIANTS[name], jnp.float32, params)
    assert half.dtype == HALF and half.shape == exact.shape
    error = float(jnp.abs(half - exact).max() / jnp.abs(exact).max())
    assert 1e-5 < error < 0.005  # rounding shows, so compute is in fp16, and stays small


def test_activations_beyond_the_largest_fp16_number_do_no_harm():
    """Trained Qwen models have such channels; a layer writes them, later layers carry them."""
    config = VARIANTS["qwen3"]
    params = enlarged(init_params(config, jax.random.key(0)), 4)
    # What the first layer's mlp adds is far past 65,504, in one channel alone.
    mlp = params["layers"]["mlp"]
    mlp["up_proj"]["kernel"] = mlp["up_proj"]["kernel"].at[0].mul(30)
    mlp["down_proj"]["kernel"] = mlp["down_proj"]["kernel"].at[0, :, 3].mul(1e5)
    exact = hidden_of(config, jnp.float32, params)
    half = hidden_of(config, HALF, params)
    assert np.abs(_residual(config, params)).max() > 2 * 65504
    assert bool(jnp.isfinite(half).all())
    assert float(jnp.abs(half - exact).max() / jnp.abs(exact).max()) < 0.005


def _residual(config: Any, params: Any) -> np.ndarray:
    """The residual stream after the last layer, in fp32: what the final norm is given."""
    model = Qwen3(config, jnp.float32, scan_layers=False)
    last = f"layer_{config.num_layers - 1}"

    @jax.jit
    def run(params: Any) -> Any:
        unrolled = {"params": unstack_layers(params, config.num_layers)}
        return model.apply(
            unrolled, TOKENS, capture_intermediates=lambda module, _: module.name == last,
            mutable=["intermediates"],
        )  # fmt: skip

    captured = run(params)[1]["intermediates"]
    ((stream, _),) = captured[last]["__call__"]
    return np.asarray(stream)


# Without clipping, so that the moments show the gradient.
ADAMW = OptimizerConfig(
    learning_rate=3e-4, schedule=Constant(), warmup_steps=0,
    b1=0.9, b2=0.95, weight_decay=0.0, clip_norm=0.0,
)  # fmt: skip
TRAINABLES = {"full": {"params": PARAMS}, "lora": {"lora": LORA}}


def one_step(dtype: Any, kind: str) -> tuple[TrainState, Any, Any]:
    """(state after one step, metrics, hidden states before it) of a small model."""
    lora: LoraSpec | None = SPEC if kind == "lora" else None
    model = Qwen3(CONFIG, dtype, lora=lora, remat="full")
    optimizer, teacher = make_optimizer(ADAMW, num_steps=2), TEACHERS["initial"]
    programs = make_programs(Method(model, optimizer, DIVERGENCE, teacher), shardings=None)
    trainable = copy(TRAINABLES[kind])
    state = make_state(trainable, optimizer, teacher, starts_from_adapter=False)
    base = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    parts = [make_part(rows=half) for half in (ROWS[:2], ROWS[2:])]
    hidden, _ = apply(model, {"params": base} | trainable, parts[0].solver.tokens)
    taught = score_teacher(programs, state, base, [part.teacher for part in parts])
    return *update(programs, state, base, parts, taught)[:2], hidden  # pyright: ignore[reportArgumentType]


@pytest.mark.long
@pytest.mark.parametrize("kind", TRAINABLES)
def test_a_step_in_fp16_trains_fp32_weights_as_fp32_does(kind):
    state, metrics, hidden = one_step(HALF, kind)
    exact_state, exact_metrics, exact_hidden = one_step(jnp.float32, kind)
    assert (hidden.dtype, hidden.shape) == (HALF, exact_hidden.shape)
    kept = {"trainable": state.trainable, "moments": state.opt_state}
    exact_kept = {"trainable": exact_state.trainable, "moments": exact_state.opt_state}
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), kept)
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), exact_kept)
    floats = [leaf for leaf in jax.tree.leaves(kept) if leaf.ndim]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}
    assert float(metrics["loss"]) == pytest.approx(float(exact_metrics["loss"]), rel=0.02)
    norm = float(metrics["gradient_norm"])
    assert norm == pytest.approx(float(exact_metrics["gradient_norm"]), rel=0.02)
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), state.trainable, TRAINABLES[kind]
    )
    assert min(jax.tree.leaves(moved)) > 0
