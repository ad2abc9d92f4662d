# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""GRPO, the baseline: a reward per rollout, normalised in its group, on every token.

arXiv 2606.11173 is reported (by readers of its full text) to give rollout i the advantage
(r_i - mean(r)) / std(r) on each of its tokens, r being 0 or 1. Which standard deviation it
takes and what it clips were not found; both are stated below as choices of this package.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Shaped

_STD_GUARD = 1e-6
_MAX_LOG_RATIO = 20.0  # e^20 is past any clip; without a bound exp overflows to a NaN gradient


def group_advantages(rewards: Shaped[Array, "P G"]) -> Float32[Array, "P G"]:
    """(r - mean) / (std + 1e-6) within each group; std divides by G (the population's).

    TRL divides by G - 1 and adds 1e-4, so that our advantages are sqrt(G / (G - 1)) times
    TRL's: 6.9 % larger at G = 8, 41 % at G = 2. The paper's formula does not say which.

    Args:
      rewards: numbers or bools, of G rollouts of each of P problems.

    Returns:
      Constants; exactly 0 in a group whose rewards are all equal (so also for
      G = 1), where rounding of the mean would otherwise be divided by the guard.
    """
    rewards = jax.lax.stop_gradient(rewards.astype(jnp.float32))
    centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True))
    all_equal = jnp.all(rewards == rewards[:, :1], axis=-1, keepdims=True)
    return jnp.where(all_equal, 0.0, centred / (std + _STD_GUARD))


def grpo_token_loss(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, " B"],
    clip: float,
) -> Float32[Array, "B T"]:
    """-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) per token, to be minimised.

    ratio = exp(logprobs - old_logprobs); both must be of the same tokens at one temperature.
    No gradient flows where the clip is the smaller side, and there is no KL term. The values
    at padding are as meaningless as their log-probabilities: mask them.

    Args:
      logprobs: under the solver being trained; differentiable.
      old_logprobs: under the solver that sampled; taken as constants.
      advantages: one per rollout; taken as constants.
      clip: epsilon, positive; infinity is no clip.
    """
    old_logprobs = jax.lax.stop_gradient(old_logprobs.astype(jnp.float32))
    log_ratio = logprobs.astype(jnp.float32) - old_logprobs
    ratio = jnp.exp(jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    token_advantages = jax.lax.stop_gradient(advantages.astype(jnp.float32))[:, None]
    clipped_ratio = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return -jnp.minimum(ratio * token_advantages, clipped_ratio * token_advantages)
