# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Terms and gradients of the divergences, from logits, against float64 NumPy."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.float64 as float64

from stepalign_jax.config.learning import DivergenceConfig
from stepalign_jax.objectives import divergence as dv
from stepalign_jax.objectives.vocabulary import Vocabulary


def change(name: str = "forward_kl", **fields: Any) -> DivergenceConfig:
    return float64.make_divergence(name, **{"loss_temperature": 1.0, **fields})


PLAIN = change()


@functools.partial(jax.jit, static_argnums=3)
def score(
    solver: jax.Array, teacher: jax.Array, tokens: jax.Array, divergence: DivergenceConfig
) -> tuple[dv.LossScores, jax.Array]:
    whole = Vocabulary(None)
    temperature = divergence.loss_temperature
    sides = [dv.read_logits(x, temperature, whole) for x in (solver, teacher)]
    return dv.loss_and_gradient(*sides, tokens, divergence, whole)


def draw_logits(num_tokens: int = 4, vocab: int = 9) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3)
    solver, teacher = rng.normal(size=(2, num_tokens, vocab)).astype(np.float32)
    return solver, teacher, rng.integers(0, vocab, num_tokens).astype(np.int32)


@pytest.mark.parametrize(("name", "way"), float64.NAMES_AND_WAYS)
def test_values_and_gradients_are_the_float64_ones(name, way):
    solver, teacher, tokens = draw_logits()
    settings = {"beta": 0.3, "element_clip": 0.0, "top_k": 0, **way}
    frozen = float64.log_softmax(solver / 0.8)

    def values(logits: np.ndarray) -> np.ndarray:
        pair = float64.log_softmax(logits / 0.8), float64.log_softmax(teacher / 0.8)
        return float64.values(name, *pair, tokens, frozen, **settings)

    scores, gradient = score(solver, teacher, tokens, change(name, loss_temperature=0.8, **way))
    expected = values(solver)
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(scores.loss, expected, rtol=1e-5, atol=1e-7)
    # No token's divergence depends on another's logits, so one sum holds every gradient.
    expected = float64.central_differences(lambda x: float(values(x).sum()), solver)
    assert np.abs(expected).max() > 1e-2
    assert float64.relative_error(gradient, expected) < 1e-5


def test_hand_worked_values():
    solver, teacher = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.75, 0.25]]))
    log = np.log
    from_teacher = 0.75 * log(1.2) + 0.25 * log(0.25 / 0.375)  # m = 0.625, 0.375
    from_solver = 0.5 * log(0.8) + 0.5 * log(0.5 / 0.375)
    for divergence, expected in (
        (PLAIN, 0.75 * log(1.5) + 0.25 * log(0.5)),
        (change("reverse_kl"), 0.5 * log(2 / 3) + 0.5 * log(2.0)),
        (change("jsd", beta=0.5), 0.5 * (from_teacher + from_solver)),
        (change("sampled_token"), -log(1.5) * log(0.5)),
        (change(element_clip=0.05), 0.05 + 0.25 * log(0.5)),  # below 0: only one side is cut
    ):
        scores, _ = score(solver, teacher, jnp.zeros(1, jnp.int32), divergence)
        np.testing.assert_allclose(scores.loss[0], expected, rtol=1e-5)


def test_scores_at_temperature_one():
    logits, teacher_logits, tokens = draw_logits()
    scores, _ = score(logits, teacher_logits, tokens, change(loss_temperature=3.0))
    rows = np.arange(len(tokens))
    solver, teacher = float64.log_softmax(logits), float64.log_softmax(teacher_logits)
    np.testing.assert_allclose(scores.solver_logprobs, solver[rows, tokens], rtol=1e-5)
    expected = (teacher - solver)[rows, tokens]
    np.testing.assert_allclose(scores.advantage, expected, atol=1e-6)


def test_jsd_limits_are_the_two_kl():
    solver, teacher, tokens = draw_logits()
    low, _ = score(solver, teacher, tokens, change("jsd", beta=1e-3))
    high, _ = score(solver, teacher, tokens, change("jsd", beta=1 - 1e-3))
    p, q = float64.log_softmax(solver), float64.log_softmax(teacher)
    np.testing.assert_allclose(low.loss / 1e-3, float64.kl_terms(q, p).sum(-1), rtol=0.02)
    np.testing.assert_allclose(high.loss / 1e-3, float64.kl_terms(p, q).sum(-1), rtol=0.02)


@pytest.mark.parametrize(("name", "way"), float64.NAMES_AND_WAYS)
def test_far_apart_logits_stay_finite(name, way):
    solver = jnp.array([[300.0, 0.0, 1.0, -2.0, -300.0]])
    scores, gradient = score(solver, -solver, jnp.array([2]), change(name, beta=0.5, **way))
    assert np.isfinite(gradient).all() and all(np.isfinite(s).all() for s in scores)
    if name == "jsd" and not way:
        np.testing.assert_allclose(scores.loss, np.log(2), rtol=1e-6)  # disjoint


def test_sampled_token_is_the_reverse_kl_on_average():
    logits, teacher, _ = draw_logits(num_tokens=1)
    every = np.arange(9, dtype=np.int32)
    sampled = score(
        np.repeat(logits, 9, 0), np.repeat(teacher, 9, 0), every, change("sampled_token")
    )[1]
    reverse = score(logits, teacher, every[:1], change("reverse_kl"))[1][0]
    average = np.exp(float64.log_softmax(logits))[0] @ np.asarray(sampled)
    np.testing.assert_allclose(average, reverse, atol=1e-6)


def test_a_clipped_entry_learns_only_through_the_others():
    solver, teacher = np.array([[0.0, 1.0, 2.0]]), np.array([[3.0, 1.0, 2.0]])
    p, q = np.exp(float64.log_softmax(solver))[0], np.exp(float64.log_softmax(teacher))[0]
    clipped = q * np.log(q / p) > 0.05
    assert clipped.tolist() == [True, False, False]
    _, gradient = score(
        jnp.float32(solver), jnp.float32(teacher), jnp.array([0]), change(element_clip=0.05)
    )
    derivatives = np.where(clipped, 0.0, -q)
    np.testing.assert_allclose(gradient[0], derivatives - p * derivatives.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_merging_the_tail_only_loses(name):
    arrays = draw_logits(num_tokens=20)
    whole = score(*arrays, change(name))
    found = [score(*arrays, change(name, top_k=k)) for k in (1, 3, 6, 8)]
    values = [np.asarray(scores.loss) for scores, _ in (*found, whole)]
    assert all((a <= b + 1e-6).all() for a, b in itertools.pairwise(values))
    assert (values[0] < values[-1] - 1e-3).any()
    # A tail of one entry is that entry.
    np.testing.assert_allclose(values[-2], values[-1], rtol=1e-5)
    np.testing.assert_allclose(found[-1][1], whole[1], atol=1e-6)


def test_entries_that_tie_with_the_last_kept_stay_apart_too():
    solver = draw_logits(num_tokens=1, vocab=4)[0]
    teacher = np.array([[2.0, 1.0, 1.0, 0.0]], np.float32)
    tokens = np.zeros(1, np.int32)
    two, three = (score(solver, teacher, tokens, change(top_k=k)) for k in (2, 3))
    jax.tree.map(np.testing.assert_array_equal, two, three)
    level = score(solver, np.zeros((1, 4), np.float32), tokens, change(top_k=2))  # no tail left
    whole = score(solver, np.zeros((1, 4), np.float32), tokens, PLAIN)
    np.testing.assert_allclose(level[0].loss, whole[0].loss, rtol=1e-6)
    np.testing.assert_allclose(level[1], whole[1], atol=1e-6)
