# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""AdamW with a clipped global norm and a scheduled learning rate."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from stepalign_jax.config.learning import Constant, Cosine, OptimizerConfig

ADAM_EPSILON = 1e-8  # added to the root of the second moment; not a setting


def learning_rate_at(config: OptimizerConfig, num_steps: int, step: ArrayLike) -> jax.Array:
    """The learning rate that optimizer step `step`, counted from 0, uses.

    With w = warmup_steps, both schedules rise as learning_rate (step + 1) / (w + 1), so that
    no step is spent at 0, and reach learning_rate at step w. From there Constant stays, and
    Cosine falls to final_fraction of it at step num_steps - 1 (if that is past w).

    Args:
      config: the optimizer's settings.
      num_steps: optimizer steps of the whole run.
      step: scalar, may be traced.

    Returns:
      float32 scalar.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum((step + 1.0) / (config.warmup_steps + 1), 1.0)
    match config.schedule:
        case Constant():
            return config.learning_rate * warmup
        case Cosine(final_fraction=final):
            cosine_steps = max(num_steps - 1 - config.warmup_steps, 1)
            progress = jnp.clip((step - config.warmup_steps) / cosine_steps, 0.0, 1.0)
            cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            return config.learning_rate * warmup * (final + (1.0 - final) * cosine)
        case other:
            raise TypeError(f"{type(other).__name__} has no formula here")


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW for `num_steps` optimizer steps; gradients are clipped before the moments see them.

    The update of step n is -learning_rate_at(n) (m / (sqrt(v) + 1e-8) + weight_decay p) with
    bias-corrected moments; weight decay reaches every leaf. The moments have the dtype of the
    trainable weights, which are float32.
    """
    adamw = optax.adamw(
        functools.partial(learning_rate_at, config, num_steps),
        b1=config.b1,
        b2=config.b2,
        eps=ADAM_EPSILON,
        weight_decay=config.weight_decay,
    )
    if config.clip_norm == 0.0:
        return optax.chain(adamw)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
