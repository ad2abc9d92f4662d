# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling against distributions worked out in NumPy, and the loop against a full forward."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.base.types import Rollouts
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import Qwen3, init_params, unstack_layers
from stepalign_jax.sampling.decode import generate, make_row_keys, sample_token

CONFIG = Qwen3Config(
    vocab_size=24,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_positions=64,
    qkv_bias=False,
    qk_norm=True,
    yarn=None,
)
PAD, BUDGET = 0, 12
# Large weights, so that the distributions are far from uniform and differ by position.
PARAMS = jax.tree.map(lambda leaf: leaf * 8, init_params(CONFIG, jax.random.key(0)))
VARIABLES = {"params": unstack_layers(PARAMS, CONFIG.num_layers)}
# With these every token is equally likely, so that the noise alone decides.
UNIFORM = jax.tree.map(jnp.zeros_like, VARIABLES)
MODEL = Qwen3(CONFIG, jnp.float32, scan_layers=False)

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


def run(prompts: list[list[int]], keys: jax.Array, **changes: Any) -> Rollouts:
    """NumPy rollouts of the tiny model; prompts are padded to eight tokens."""
    options: dict[str, Any] = dict(
        PLAIN, max_new_tokens=BUDGET, stop_ids=(), pad_id=PAD, cache_dtype=jnp.float32
    )
    model, variables = changes.pop("model", MODEL), changes.pop("variables", VARIABLES)
    tokens = np.full((len(prompts), 8), PAD, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    return jax.device_get(
        generate(model, variables, tokens, lengths, keys, **{**options, **changes})
    )


PROMPTS = [[5, 6, 7], [9, 2, 3, 4, 8, 1, 20, 11], [13], [5, 6, 7, 8, 9]]


def full_forward_log_probs(prompts: list[list[int]], rollouts: Rollouts) -> np.ndarray:
    """[B, T, V] log-probabilities at each completion token, uncached and in scanned form."""
    rows = [prompt + list(row) for prompt, row in zip(prompts, rollouts.tokens, strict=True)]
    width = max(map(len, rows))
    tokens = np.array([row + [PAD] * (width - len(row)) for row in rows], np.int32)
    model = Qwen3(CONFIG, jnp.float32)

    @jax.jit
    def forward(params: Any) -> jax.Array:
        hidden, _ = model.apply({"params": params}, tokens)
        logits: Any = model.apply({"params": params}, hidden, method=model.logits)
        return jax.nn.log_softmax(logits)

    log_probs = np.asarray(forward(PARAMS))
    starts = [len(prompt) - 1 for prompt in prompts]
    return np.stack(
        [row[start : start + BUDGET] for row, start in zip(log_probs, starts, strict=True)]
    )


# --- one token -------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS)
def test_log_probs_equal_an_independent_computation(settings):
    logits = np.random.default_rng(0).normal(0, 3, (64, 40)).astype(np.float32)
    tokens, logprobs, sampling_logprobs = sample_token(
        jnp.asarray(logits), keys_for(64), **settings
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
    tokens, _, _ = sample_token(jnp.asarray(rows), keys_for(num_draws), **settings)
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
            jnp.asarray(logits), keys_for(32, seed=seed), **GREEDY
        )
        assert np.array_equal(tokens, logits.argmax(axis=-1))
        assert not np.any(sampling_logprobs)


def test_top_k_of_one_is_greedy_even_among_equals():
    logits = np.round(np.random.default_rng(3).normal(0, 1, (256, 12))).astype(np.float32)
    tokens, _, sampling_logprobs = sample_token(
        jnp.asarray(logits), keys_for(256), temperature=1.5, top_k=1, top_p=1.0
    )
    assert np.array_equal(tokens, logits.argmax(axis=-1))
    assert not np.any(sampling_logprobs)


@pytest.mark.parametrize(
    ("top_p", "admissible"),
    [(0.3, {2}), (0.55, {2, 0}), (0.85, {2, 0, 3}), (0.99, {0, 1, 2, 3})],
)
def test_top_p_draws_all_of_the_admissible_set_and_nothing_else(top_p, admissible):
    logits = np.log(np.tile(np.array([0.3, 0.05, 0.5, 0.15], np.float32), (2_000, 1)))
    tokens, _, _ = sample_token(
        jnp.asarray(logits), keys_for(2_000), temperature=1.0, top_k=0, top_p=top_p
    )
    # The rarest admissible token has mass 0.05: all 2,000 draws miss it once in 10^44.
    assert set(np.asarray(tokens).tolist()) == admissible


@pytest.mark.parametrize(
    ("settings", "sorts"), [(PLAIN, False), ({**PLAIN, "top_p": 0.9}, True)]
)
def test_the_vocabulary_is_sorted_only_for_a_filter(settings, sorts):
    trace = str(
        jax.make_jaxpr(lambda logits, keys: sample_token(logits, keys, **settings))(
            jnp.zeros((2, 40)), keys_for(2)
        )
    )
    assert ("top_k[" in trace or "sort[" in trace) is sorts


# --- the loop on a model whose next token is known ---------------------------------------


CALLS: list[tuple[int, ...]] = []


class Successor(nn.Module):
    """A stand-in for Qwen3 that predicts token + 1 with certainty.

    Each forward pass, not each trace, puts the shape of its tokens into CALLS.
    """

    config: Qwen3Config

    def __call__(self, tokens: jax.Array, *, positions: jax.Array, cache: Any) -> Any:
        shape = tokens.shape
        jax.debug.callback(lambda: CALLS.append(shape))
        return jax.nn.one_hot(tokens + 1, self.config.vocab_size), cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        # Sure, but not to the last bit: another token comes once in 7,000 draws.
        return hidden * 12


def run_successor(prompts: list[list[int]], **changes: Any) -> Rollouts:
    CALLS.clear()
    result = run(
        prompts,
        keys_for(len(prompts)),
        model=Successor(CONFIG),
        variables={},
        stop_ids=(10, 22),
        **changes,
    )
    jax.effects_barrier()
    return result


def test_lengths_count_the_stop_token_and_finished_is_false_at_the_budget():
    # The last prompt tokens, not the padding behind them, decide what follows.
    rollouts = run_successor([[3, 9], [1, 1, 8], [20], [10], [1]], max_new_tokens=9)
    assert rollouts.tokens.tolist() == [
        [10, 0, 0, 0, 0, 0, 0, 0, 0],
        [9, 10, 0, 0, 0, 0, 0, 0, 0],
        [21, 22, 0, 0, 0, 0, 0, 0, 0],
        [11, 12, 13, 14, 15, 16, 17, 18, 19],
        [2, 3, 4, 5, 6, 7, 8, 9, 10],
    ]
    assert rollouts.lengths.tolist() == [1, 2, 2, 9, 9]
    # The last row stops with its last token: that is a stop, not a cut.
    assert rollouts.finished.tolist() == [True, True, True, False, True]


def test_log_probs_are_zero_after_the_stop_and_not_before():
    rollouts = run_successor([[3, 9], [1, 1, 8], [20], [10], [1]], max_new_tokens=9)
    valid = np.arange(9)[None] < np.array([1, 2, 2, 9, 9])[:, None]
    for values in (rollouts.logprobs, rollouts.sampling_logprobs):
        assert np.all(values[valid] < 0) and not np.any(values[~valid])


def test_the_loop_stops_with_the_longest_row():
    run_successor([[5], [8], [3, 7]])
    # [5] needs five tokens to reach 10: the prefill gives one, four turns the others.
    assert CALLS == [(3, 8)] + [(3, 1)] * 4


def test_the_loop_does_not_run_past_the_budget_or_for_dummy_rows():
    run_successor([[10], [12]], max_new_tokens=3)
    assert CALLS == [(2, 8)] + [(2, 1)] * 2
    rollouts = run_successor([[9], []], max_new_tokens=3)
    assert CALLS == [(2, 8)]
    assert rollouts.lengths.tolist() == [1, 0]


# --- the loop on Qwen3 -------------------------------------------------------------------


def test_greedy_equals_the_argmax_of_the_full_forward_at_every_position():
    rollouts = run(PROMPTS, keys_for(4), **GREEDY)
    expected = full_forward_log_probs(PROMPTS, rollouts)
    assert np.array_equal(rollouts.tokens, expected.argmax(axis=-1))
    assert np.array_equal(rollouts.tokens, run(PROMPTS, keys_for(4, seed=9), **GREEDY).tokens)


def test_log_probs_equal_those_of_the_full_forward():
    rollouts = run(PROMPTS, keys_for(4))
    expected = full_forward_log_probs(PROMPTS, rollouts)
    picked = np.take_along_axis(expected, np.asarray(rollouts.tokens)[..., None], axis=-1)
    np.testing.assert_allclose(rollouts.logprobs, picked[..., 0], atol=1e-4, rtol=0)
    np.testing.assert_allclose(rollouts.sampling_logprobs, rollouts.logprobs, atol=1e-6)
    assert rollouts.lengths.tolist() == [BUDGET] * 4 and not rollouts.finished.any()


def test_same_keys_give_the_same_rollouts_and_rows_differ():
    prompts = [[5, 6, 7]] * 4
    first, second = (run(prompts, keys_for(4)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert len({tuple(row) for row in first.tokens}) == 4


@pytest.mark.parametrize(
    "change", [{"step": 4}, {"problem": 78}, {"retry": 1}, {"seed": 1}, {"purpose": 1}]
)
def test_every_part_of_the_address_changes_the_noise(change):
    first, second = (
        run([[5]] * 4, keys, variables=UNIFORM).tokens
        for keys in (keys_for(4), keys_for(4, **change))
    )
    # 4 x 12 draws from 24 tokens: two positions agree by chance in 2 of 48 places.
    assert np.mean(first == second) < 0.2


def test_rows_and_positions_have_noise_of_their_own():
    tokens = run([[5]] * 4, keys_for(4), variables=UNIFORM).tokens
    assert len(set(tokens.ravel().tolist())) > 12
    assert np.mean(tokens[:-1] == tokens[1:]) < 0.2
    assert np.mean(tokens[:, :-1] == tokens[:, 1:]) < 0.2


def num_compiled() -> int:
    return generate._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


def test_other_values_in_the_same_shapes_do_not_recompile():
    run(PROMPTS, keys_for(4))
    compiled = num_compiled()
    run([[1], [2, 3], [4], []], keys_for(4, seed=5, step=8))
    assert num_compiled() == compiled
