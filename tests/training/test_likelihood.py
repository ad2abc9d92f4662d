# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The negative log-likelihood of targets: its value, its gradient, and what it leaves alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.updates import (
    ALL,
    COMPLETIONS,
    PARAMS,
    SOLVER_PROMPTS,
    gradient_of,
    make_part,
    make_state,
    plain_logits,
    plain_logprobs,
    run_step,
    spread,
)

from stepalign_jax.config.learning import NegativeLogLikelihood

LIKELIHOOD = NegativeLogLikelihood(loss_temperature=1.0, token_tile=8, token_weights=())
WEIGHTS = np.where(ALL, np.arange(1, 25).reshape(4, 6) / 8, 0.0).astype(np.float32)


@pytest.mark.long
def test_the_loss_is_the_mean_of_minus_log_pi_in_float64():
    expected = plain_logprobs({"params": PARAMS}, SOLVER_PROMPTS)
    _, metrics, [scores] = run_step(
        make_state(), PARAMS, make_part(weights=WEIGHTS), objective=LIKELIHOOD
    )
    loss = -(WEIGHTS.astype(np.float64) * expected)[ALL].sum() / ALL.sum()
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5) and loss > 1
    np.testing.assert_allclose(spread(scores.loss)[ALL], -expected[ALL], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(spread(scores.solver_logprobs)[ALL], expected[ALL], rtol=1e-4)
    assert (spread(scores.advantage)[ALL] == 1).all()


def test_the_gradient_is_that_of_the_plain_formula():
    def loss(params: Any) -> jax.Array:
        total = jnp.float32(0.0)
        for row, (prompt, completion) in enumerate(
            zip(SOLVER_PROMPTS, COMPLETIONS, strict=True)
        ):
            tokens = jnp.asarray(([*prompt, *completion] + [0] * 16)[:16], jnp.int32)
            logprobs = jax.nn.log_softmax(plain_logits({"params": params}, tokens))
            for t, token in enumerate(completion):
                total -= WEIGHTS[row, t] * logprobs[len(prompt) - 1 + t, token]
        return total / ALL.sum()

    expected = jax.grad(loss)(PARAMS)
    found, _ = gradient_of(make_part(weights=WEIGHTS), objective=LIKELIHOOD)
    for a, b in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(expected), strict=True):
        scale = float(np.abs(np.asarray(b)).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * scale)


def test_masked_targets_get_no_gradient_and_do_not_count():
    counts = ALL.copy()
    counts[2] = False
    one, loss = gradient_of(make_part(counts=counts), objective=LIKELIHOOD)
    rest, rest_loss = gradient_of(make_part(rows=(0, 1, 3)), objective=LIKELIHOOD)
    assert loss == pytest.approx(rest_loss, rel=1e-6)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(rest), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * float(np.abs(b).max()))
    whole, _ = gradient_of(make_part(), objective=LIKELIHOOD)
    assert any(
        not np.allclose(a, b, rtol=1e-3)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(whole), strict=True)
    )


def test_the_loss_of_the_same_targets_falls_over_three_steps():
    state, losses = make_state(), []
    for _ in range(3):
        state, metrics, _ = run_step(state, PARAMS, make_part(), objective=LIKELIHOOD)
        losses.append(float(metrics["loss"]))
    assert losses[0] > losses[1] > losses[2]
