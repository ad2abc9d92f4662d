# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The schedule by hand, and AdamW with clipping against float64 NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepalign_jax.config.learning import Constant, Cosine, OptimizerConfig
from stepalign_jax.training.optimizer import learning_rate_at, make_optimizer

CONFIG = OptimizerConfig(
    learning_rate=0.1,
    schedule=Constant(),
    warmup_steps=0,
    b1=0.9,
    b2=0.95,
    weight_decay=0.01,
    clip_norm=0.0,
)
COSINE = Cosine(final_fraction=0.1)


def _config(**changes) -> OptimizerConfig:
    return dataclasses.replace(CONFIG, **changes)


def _rates(config: OptimizerConfig, num_steps: int) -> list[float]:
    rate_at = jax.jit(functools.partial(learning_rate_at, config, num_steps))
    return [float(rate_at(step)) for step in range(num_steps)]


def test_constant_schedule():
    np.testing.assert_allclose(_rates(CONFIG, 3), [0.1] * 3, rtol=1e-6)
    warm = _rates(_config(warmup_steps=3), 6)
    np.testing.assert_allclose(warm, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-6)


def test_cosine_schedule():
    rates = _rates(_config(schedule=COSINE), 5)
    # 0.1 (0.1 + 0.9 (1 + cos(pi n / 4)) / 2)
    half = np.sqrt(0.5)
    expected = [0.1, 0.01 + 0.045 * (1 + half), 0.055, 0.01 + 0.045 * (1 - half), 0.01]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_cosine_schedule_after_a_warm_up():
    config = _config(schedule=Cosine(final_fraction=0.0), warmup_steps=1)
    np.testing.assert_allclose(_rates(config, 4), [0.05, 0.1, 0.05, 0.0], atol=1e-7)
    after_the_end = learning_rate_at(config, 4, 9)
    np.testing.assert_allclose(after_the_end, 0.0, atol=1e-7)


def test_a_run_of_one_step_uses_the_full_rate():
    np.testing.assert_allclose(_rates(_config(schedule=COSINE), 1), [0.1], rtol=1e-6)


def _numpy_adamw(config, params, gradients_by_step, rates):
    """Float64 reference over a dict of arrays; returns the final parameters."""
    params = {k: np.asarray(v, np.float64) for k, v in params.items()}
    first = {k: np.zeros_like(v) for k, v in params.items()}
    second = {k: np.zeros_like(v) for k, v in params.items()}
    for n, (gradients, rate) in enumerate(zip(gradients_by_step, rates, strict=True), start=1):
        gradients = {k: np.asarray(v, np.float64) for k, v in gradients.items()}
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
        scale = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for k, gradient in gradients.items():
            gradient = gradient * scale
            first[k] = config.b1 * first[k] + (1 - config.b1) * gradient
            second[k] = config.b2 * second[k] + (1 - config.b2) * gradient**2
            mean = first[k] / (1 - config.b1**n)
            root = np.sqrt(second[k] / (1 - config.b2**n))
            update = mean / (root + 1e-8) + config.weight_decay * params[k]
            params[k] = params[k] - rate * update
    return params


@pytest.mark.parametrize(("num_steps", "clip_norm"), [(1, 0.0), (4, 0.0), (4, 0.5)])
def test_updates_are_those_of_adamw(num_steps, clip_norm):
    config = _config(schedule=COSINE, clip_norm=clip_norm)
    rng = np.random.default_rng(0)
    shapes = {"a": (2, 3), "b": (4,)}

    def draw() -> dict[str, jax.Array]:
        return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}

    params = start = draw()
    # very different sizes, or a constant clip would cancel out of Adam's ratio
    gradients_by_step = [
        jax.tree.map(lambda g, n=n: g * 5.0**n, draw()) for n in range(num_steps)
    ]
    optimizer = make_optimizer(config, num_steps)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradients in gradients_by_step:
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    rates = _rates(config, num_steps)
    expected = _numpy_adamw(config, start, gradients_by_step, rates)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    jax.tree.map(close, params, expected)


@pytest.mark.parametrize(
    ("clip_norm", "expected"), [(0.0, [3.0, 4.0]), (10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])]
)
def test_the_global_norm_is_clipped_before_the_moments(clip_norm, expected):
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    optimizer = make_optimizer(_config(clip_norm=clip_norm), 10)
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}  # global norm 5
    _, state = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    moments = optax.tree.get(state, "mu")
    seen = np.ravel(jax.tree.leaves(moments)) / (1 - CONFIG.b1)  # after one step from 0
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


def test_the_rate_in_use_is_the_rate_reported_also_under_jit():
    config = _config(schedule=COSINE, warmup_steps=2, weight_decay=0.0, b1=0.0, b2=0.0)
    optimizer = make_optimizer(config, 6)
    params = jnp.zeros(1)
    state = optimizer.init(params)
    used, update = [], jax.jit(optimizer.update)
    for _ in range(6):
        # with b1 = b2 = 0 the update is -rate * sign(gradient)
        updates, state = update(jnp.array([7.0]), state, params)
        used.append(-float(updates[0]))
    np.testing.assert_allclose(used, _rates(config, 6), rtol=1e-5)
