# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses mixed with GRPO's, and gated by entropy, beside float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import float64
from support.updates import (
    ADVANTAGES,
    ALL,
    COMPLETIONS,
    DIVERGENCE,
    PARAMS,
    SOLVER_PROMPTS,
    SURROGATE,
    gradient_of,
    make_part,
    make_state,
    plain_logits,
    run_step,
    spread,
)

from stepalign_jax.training.packing import Targets
from stepalign_jax.training.step import distillation_loss

INPUTS = float64.draw_inputs(7, 13, 5)
REWARDED = np.random.default_rng(1).normal(size=7).astype(np.float32)


def close(found: Any, expected: Any, relative: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * float(np.abs(b).max()))


def mixed(arrays: dict[str, Any], mix: float, name: str) -> tuple[jax.Array, Any]:
    targets = Targets(
        *(jnp.asarray(INPUTS["tokens"])[None], jnp.ones((1, 7), bool)),
        *(jnp.asarray(INPUTS["token_weights"])[None], jnp.asarray(REWARDED)[None]),
    )
    sides = {**INPUTS, **arrays}
    return distillation_loss(
        float64.make_divergence(name, grpo_mix=mix),
        *(jnp.asarray(sides[key]) for key in ("solver_hidden", "teacher_hidden")),
        *(jnp.asarray(sides[key]) for key in ("solver_head", "teacher_head")),
        targets,
    )


def mixed_in_float64(arrays: dict[str, Any], mix: float, name: str) -> float:
    """(1 - m) w KL - m w A pi(y) / pi_old(y), pi_old being that of INPUTS."""
    settings = float64.SETTINGS
    temperature = settings["loss_temperature"]
    frozen, _ = float64.both_logprobs(INPUTS, temperature)
    inputs = {**INPUTS, **arrays}
    own, _ = float64.both_logprobs(inputs, temperature)
    rows = np.arange(7), INPUTS["tokens"]
    rewarded = -REWARDED.astype(np.float64) * np.exp(own[rows] - frozen[rows])
    weights = INPUTS["token_weights"].astype(np.float64)
    divergence = float64.weighted_sum(name, inputs, frozen, settings)
    return (1 - mix) * divergence + mix * float(weights @ rewarded)


@pytest.mark.parametrize("name", ["forward_kl", "sampled_token"])
@pytest.mark.parametrize("mix", [0.3, 1.0])
def test_a_mix_and_its_gradient_are_those_of_float64(name, mix):
    trained = {key: INPUTS[key] for key in ("solver_hidden", "solver_head")}
    (total, scores), gradients = jax.jit(
        jax.value_and_grad(lambda arrays: mixed(arrays, mix, name), has_aux=True)
    )(trained)
    assert float(total) == pytest.approx(mixed_in_float64({}, mix, name), rel=1e-5)
    for key, gradient in gradients.items():
        expected = float64.central_differences(
            lambda x, key=key: mixed_in_float64({key: x}, mix, name), INPUTS[key]
        )
        assert float64.relative_error(gradient, expected) < 1e-5, key
    # What is reported of a token stays the divergence and the advantage over the teacher.
    _, plain = mixed({}, 0.0, name)
    for found, expected in zip(scores, plain, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_mix_in_a_step_is_both_losses_by_their_shares():
    objective = dataclasses.replace(DIVERGENCE, grpo_mix=0.25)
    kl, kl_loss = gradient_of(make_part())
    # Equal rewards leave the divergence's share alone.
    alike = make_part(advantages=[0.0] * len(ADVANTAGES))
    gradient, loss = gradient_of(alike, objective=objective)
    close(gradient, jax.tree.map(lambda leaf: 0.75 * leaf, kl), 1e-6)
    assert loss == pytest.approx(0.75 * kl_loss, rel=1e-6)
    # On policy GRPO's loss is minus the mean advantage over tokens: rows have 6, 3, 5 and 2.
    rewarded, loss = gradient_of(make_part(), objective=objective)
    mean_advantage = (6 * 1.0 - 3 * 1.0 + 5 * 0.5) / 16
    assert loss == pytest.approx(0.75 * kl_loss - 0.25 * mean_advantage, rel=1e-5)
    pairs = zip(jax.tree.leaves(rewarded), jax.tree.leaves(gradient), strict=True)
    assert all(np.abs(a - b).max() > 0 for a, b in pairs)


def solver_entropies() -> np.ndarray:
    """[B, T] in nats from one forward pass per row, in float64."""
    found = np.zeros(ALL.shape)
    for row, (prompt, completion) in enumerate(zip(SOLVER_PROMPTS, COMPLETIONS, strict=True)):
        tokens = np.zeros(16, np.int32)
        tokens[: len(prompt) + len(completion)] = [*prompt, *completion]
        logits = np.asarray(plain_logits({"params": PARAMS}, tokens), np.float64)
        for t in range(len(completion)):
            logs = float64.log_softmax(logits[len(prompt) - 1 + t])
            found[row, t] = -(np.exp(logs) * logs).sum()
    return found


@pytest.mark.parametrize("objective", [DIVERGENCE, SURROGATE])
def test_a_gate_is_the_weight_that_float64_gives(objective):
    entropies = np.sort(solver_entropies()[ALL])
    middle = len(entropies) // 2
    threshold = float(entropies[middle - 1 : middle + 1].mean())
    gate = (solver_entropies() >= threshold) & ALL
    assert gate.sum() == len(entropies) - middle
    names = (f"entropy_gate:{threshold!r}",)
    gated = dataclasses.replace(objective, token_weights=names)
    weights = 0.5 * ALL  # which the gate multiplies
    part = make_part(weights=weights)
    # Equal to that of constant weights: the gate is not differentiated.
    found, loss = gradient_of(part, objective=gated)
    expected, expected_loss = gradient_of(
        make_part(weights=weights * gate), objective=objective
    )
    assert loss == pytest.approx(expected_loss, rel=1e-6) and loss != 0
    close(found, expected, 1e-6)
    # What is reported of a token is its loss before any weight.
    (_, _, [ours]), (_, _, [plain]) = (
        run_step(make_state(), PARAMS, part, objective=of) for of in (gated, objective)
    )
    np.testing.assert_array_equal(spread(ours.loss), spread(plain.loss))
