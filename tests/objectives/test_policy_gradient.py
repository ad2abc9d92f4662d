# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""GRPO's advantages and its clipped loss, against numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.objectives.policy_gradient import group_advantages, grpo_token_loss

_advantages = jax.jit(group_advantages)


def test_group_advantages_of_hand_worked_groups():
    rewards = jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    # means 1/4, 1/2, 3/2; population variances 3/16, 1/4, 5/4
    expected = [
        [np.sqrt(3), -1 / np.sqrt(3), -1 / np.sqrt(3), -1 / np.sqrt(3)],
        [1.0, 1.0, -1.0, -1.0],
        [-3 / np.sqrt(5), -1 / np.sqrt(5), 1 / np.sqrt(5), 3 / np.sqrt(5)],
    ]
    np.testing.assert_allclose(_advantages(rewards), expected, rtol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("group", [1, 3, 7])
def test_all_equal_groups_are_exactly_zero(reward, group):
    # the float32 mean of seven 0.1s is not 0.1, so subtraction alone would not do
    advantages = _advantages(np.full((2, group), reward, np.float32))
    np.testing.assert_array_equal(advantages, np.zeros((2, group)))


def test_groups_do_not_mix_and_integer_rewards_do():
    both = _advantages(np.array([[1, 0, 0, 0], [1, 1, 1, 1]]))
    alone = _advantages(np.array([[True, False, False, False]]))
    np.testing.assert_array_equal(both, [*np.asarray(alone), np.zeros(4)])


@jax.jit
@jax.value_and_grad
def _loss_and_gradient(logprob: jax.Array, advantage: jax.Array) -> jax.Array:
    """One token's loss, and its derivative with respect to the log-probability."""
    old = jnp.full((1, 1), -2.0)
    return grpo_token_loss(logprob[None, None], old, advantage[None], 0.2)[0, 0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on-policy: -A grad log pi
        (1.0, -2.0, 2.0, 2.0),
        (1.1, 2.0, -2.2, -2.2),  # inside the clip
        (0.9, -2.0, 1.8, 1.8),
        (1.5, 2.0, -2.4, 0.0),  # clip active: gone far enough up, at 1.2 A
        (0.5, -2.0, 1.6, 0.0),  # clip active: gone far enough down, at 0.8 A
        (0.5, 2.0, -1.0, -1.0),  # outside, but on the wrong side: not clipped
        (1.5, -2.0, 3.0, 3.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, gradient):
    value, found = _loss_and_gradient(np.float32(np.log(ratio) - 2.0), np.float32(advantage))
    np.testing.assert_allclose([value, found], [loss, gradient], rtol=1e-5, atol=1e-6)


def test_each_rollout_has_its_own_advantage_on_all_its_tokens():
    logprobs = jnp.log(jnp.array([[0.5, 0.25, 0.125], [0.5, 0.25, 0.125]]))
    loss = grpo_token_loss(logprobs, logprobs, jnp.array([3.0, -1.0]), 0.2)
    np.testing.assert_allclose(loss, [[-3.0] * 3, [1.0] * 3])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [1e4, -1e4])
def test_wild_log_ratios_stay_finite(advantage, log_ratio):
    value, gradient = _loss_and_gradient(np.float32(log_ratio), np.float32(advantage))
    assert np.isfinite(value) and np.isfinite(gradient)


def test_only_the_solver_gets_a_gradient_and_jit_agrees():
    rng = np.random.default_rng(0)
    new, old = jnp.asarray(rng.normal(-2, 0.2, (2, 3, 4)), jnp.float32)
    advantages = jnp.array([1.0, -1.0, 0.5])

    def loss(new: jax.Array, old: jax.Array, advantages: jax.Array) -> jax.Array:
        return grpo_token_loss(new, old, advantages, 0.2).sum()

    gradients = jax.device_get(jax.jit(jax.grad(loss, (0, 1, 2)))(new, old, advantages))
    assert gradients[0].any() and not gradients[1].any() and not gradients[2].any()
    np.testing.assert_allclose(
        jax.jit(loss)(new, old, advantages), loss(new, old, advantages), rtol=1e-6
    )
    assert grpo_token_loss(new.astype(jnp.bfloat16), old, advantages, 0.2).dtype == jnp.float32
