# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""AdamW with a clipped global norm and a scheduled learning rate."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import Cosine, OptimizerConfig

ADAM_EPSILON = 1e-8  # added to the root of the second moment; not a setting


def check_optimizer(config: OptimizerConfig, num_steps: int) -> None:
    """Refuses an optimizer that cannot run for `num_steps` optimizer steps.

    Raises:
      UserError: a number outside its range.
    """
    if not 0 <= config.warmup_steps < max(num_steps, 1):
        raise UserError(
            f"optimizer.warmup_steps is {config.warmup_steps}, but it must be at least 0 and "
            f"below the {num_steps} optimizer steps of the run (train.num_steps)."
        )
    if not config.clip_norm >= 0.0:
        raise UserError(
            f"optimizer.clip_norm is {config.clip_norm}; give a norm above 0, or 0 for none."
        )


def learning_rate_at(config: OptimizerConfig, num_steps: int, step: ArrayLike) -> jax.Array:
    """The learning rate that optimizer step `step`, counted from 0, uses.

    With w = warmup_steps, both schedules rise as learning_rate (step + 1) / (w + 1), so that
    no step is spent at 0, and reach learning_rate at step w. From there `constant` stays, and
    `cosine` falls to final_fraction of it at step num_steps - 1 (if that is past w).

    Args:
      config: the optimizer's settings.
      num_steps: optimizer steps of the whole run.
      step: scalar, may be traced.

    Returns:
      float32 scalar.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum((step + 1.0) / (config.warmup_steps + 1), 1.0)
    if not isinstance(config.schedule, Cosine):
        return config.learning_rate * warmup
    cosine_steps = max(num_steps - 1 - config.warmup_steps, 1)
    progress = jnp.clip((step - config.warmup_steps) / cosine_steps, 0.0, 1.0)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    final = config.schedule.final_fraction
    decay = final + (1.0 - final) * cosine
    return config.learning_rate * warmup * decay


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW for `num_steps` optimizer steps; gradients are clipped before the moments see them.

    The update of step n is -learning_rate_at(n) (m / (sqrt(v) + 1e-8) + weight_decay p) with
    bias-corrected moments; weight decay reaches every leaf. The moments have the dtype of the
    trainable weights, which are float32.

    Raises:
      UserError: settings that check_optimizer refuses.
    """
    check_optimizer(config, num_steps)
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
