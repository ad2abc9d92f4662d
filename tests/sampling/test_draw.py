# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One drawn token, against distributions worked out in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.sampling.draw import NUM_CANDIDATES, Filter, make_row_keys, sample_token

SETTINGS = [
    pytest.param(dict(temperature=1.0, top_k=0, top_p=1.0), id="plain"),
    pytest.param(dict(temperature=0.6, top_k=0, top_p=1.0), id="temperature"),
    pytest.param(dict(temperature=1.3, top_k=5, top_p=1.0), id="top_k"),
    pytest.param(dict(temperature=0.8, top_k=0, top_p=0.7), id="top_p"),
    pytest.param(dict(temperature=1.1, top_k=6, top_p=0.8), id="all"),
]
PLAIN: dict[str, Any] = dict(temperature=1.0, top_k=0, top_p=1.0)
GREEDY: dict[str, Any] = {**PLAIN, "temperature": 0.0}


def reference_log_probs(
    logits: np.ndarray, *, temperature: float, top_k: int, top_p: float
) -> np.ndarray:
    """log of the sampling distribution of one row [V], float64, by set arithmetic."""
    scaled = logits.astype(np.float64) / temperature
    kept = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    kept = kept[:top_k] if top_k else kept
    weights = np.exp(scaled - scaled.max())
    total, mass, nucleus = weights[kept].sum(), 0.0, []
    for token in kept:
        nucleus.append(token)
        mass += weights[token] / total
        if mass >= top_p:
            break
    log_probs = np.full(len(scaled), -np.inf)
    log_probs[nucleus] = scaled[nucleus] - np.log(np.exp(scaled[nucleus]).sum())
    return log_probs


def keys_for(batch: int, *, seed: int = 0, purpose: int = 0, **fields: int) -> jax.Array:
    """Row keys of `batch` samples of one problem; fields shift the address."""
    address = [fields.get("step", 3), fields.get("problem", 77), 0, fields.get("retry", 0)]
    addresses = np.tile(np.array(address, np.uint32), (batch, 1))
    addresses[:, 2] = np.arange(batch)
    return make_row_keys(np.uint32(seed), np.uint32(purpose), addresses)


@pytest.mark.parametrize("settings", SETTINGS)
def test_log_probs_equal_an_independent_computation(settings):
    logits = np.random.default_rng(0).normal(0, 3, (64, 40)).astype(np.float32)
    tokens, logprobs, sampling_logprobs = sample_token(
        jnp.asarray(logits), keys_for(64), Filter(**settings)
    )
    for row in range(64):
        plain = reference_log_probs(logits[row], **PLAIN)
        drawn_from = reference_log_probs(logits[row], **settings)
        assert logprobs[row] == pytest.approx(plain[tokens[row]], abs=2e-5)
        assert sampling_logprobs[row] == pytest.approx(drawn_from[tokens[row]], abs=2e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_frequencies_follow_the_distribution(settings):
    num_draws = 20_000
    logits = np.random.default_rng(1).normal(0, 1, 10).astype(np.float32)
    rows = np.tile(logits, (num_draws, 1))
    tokens, _, _ = sample_token(jnp.asarray(rows), keys_for(num_draws), Filter(**settings))
    counts = np.bincount(np.asarray(tokens), minlength=10)
    expected = num_draws * np.exp(reference_log_probs(logits, **settings))
    allowed = expected > 0
    assert counts[~allowed].sum() == 0
    chi_square = ((counts - expected)[allowed] ** 2 / expected[allowed]).sum()
    # 27.9 is the 99.9 % quantile for 9 degrees of freedom, the most there are here.
    assert chi_square < 27.9


def test_temperature_zero_takes_the_argmax_whatever_the_key():
    logits = np.random.default_rng(2).normal(0, 1, (32, 40)).astype(np.float32)
    logits[0, [7, 19]] = 9.0  # equals: the lower id
    for seed in range(3):
        tokens, _, sampling_logprobs = sample_token(
            jnp.asarray(logits), keys_for(32, seed=seed), Filter(**GREEDY)
        )
        assert np.array_equal(tokens, logits.argmax(axis=-1))
        assert not np.any(sampling_logprobs)


def test_top_k_of_one_is_greedy_even_among_equals():
    logits = np.round(np.random.default_rng(3).normal(0, 1, (256, 12))).astype(np.float32)
    tokens, _, sampling_logprobs = sample_token(
        jnp.asarray(logits), keys_for(256), Filter(1.5, 1, 1.0)
    )
    assert np.array_equal(tokens, logits.argmax(axis=-1))
    assert not np.any(sampling_logprobs)


@pytest.mark.parametrize(
    ("top_p", "admissible"),
    [(0.3, {2}), (0.55, {2, 0}), (0.85, {2, 0, 3}), (0.99, {0, 1, 2, 3})],
)
def test_top_p_draws_all_of_the_admissible_set_and_nothing_else(top_p, admissible):
    logits = np.log(np.tile(np.array([0.3, 0.05, 0.5, 0.15], np.float32), (2_000, 1)))
    tokens, _, _ = sample_token(jnp.asarray(logits), keys_for(2_000), Filter(1.0, 0, top_p))
    # The rarest admissible token has mass 0.05: all 2,000 draws miss it once in 10^44.
    assert set(np.asarray(tokens).tolist()) == admissible


def primitives(vocab_size: int, settings: dict[str, Any]) -> list[str]:
    """Every sort and selection in a draw, as the trace writes them."""
    draw = lambda logits, keys: sample_token(logits, keys, Filter(**settings))  # noqa: E731
    trace = str(jax.make_jaxpr(draw)(jnp.zeros((2, vocab_size)), keys_for(2)))
    assert "sort[" not in trace
    return [part.split("]")[0] for part in trace.split("top_k[")[1:]]


def test_the_vocabulary_is_sorted_only_where_a_filter_cannot_do_without():
    assert primitives(5_000, PLAIN) == primitives(5_000, GREEDY) == []
    (selection,) = primitives(5_000, {**PLAIN, "top_k": 20, "top_p": 0.9})
    assert "k=20" in selection
    # Top-p alone: the selection, and the full sort that a turn may have to take.
    found = sorted(primitives(5_000, {**PLAIN, "top_p": 0.9}), key=len)
    assert f"k={NUM_CANDIDATES}" in found[0] and "k=5000" in found[1] and len(found) == 2


@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_partial_selection_equals_the_full_sort(spread, monkeypatch):
    # At 0.3 the mass of the candidates falls short of 0.9 in every row, at 4 in none.
    logits = np.random.default_rng(3).normal(0, spread, (64, 4_000)).astype(np.float32)
    logits[0, :2_000] = logits[0].max()  # many equals: the lower ids come first
    nucleus = Filter(1.0, 0, 0.9)
    keys = keys_for(64)
    partial = sample_token(jnp.asarray(logits), keys, nucleus)
    monkeypatch.setattr("stepalign_jax.sampling.draw.NUM_CANDIDATES", 4_000)
    full = sample_token(jnp.asarray(logits), keys, nucleus)
    np.testing.assert_array_equal(partial[0], full[0])
    np.testing.assert_allclose(partial[2], full[2], rtol=0, atol=1e-6)
    top = np.sort(np.exp(logits.astype(np.float64)), axis=-1)[:, ::-1]
    short = top[:, :NUM_CANDIDATES].sum(-1) / top.sum(-1) < 0.9
    assert short[1:].all() if spread < 1 else not short[1:].any()
