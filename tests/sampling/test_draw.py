# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One drawn token, against distributions worked out in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.sampling import draw
from stepalign_jax.sampling.draw import make_row_keys, sample_token

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
    address = [seed, purpose, fields.get("step", 3), fields.get("problem", 77), 0, 0]
    addresses = np.tile(np.array(address, np.uint32), (batch, 1))
    addresses[:, 4] = np.arange(batch)
    return make_row_keys(addresses)


_sample: Any = jax.jit(lambda logits, keys, **params: sample_token(logits, keys, **params))


def draw_rows(
    logits: np.ndarray, keys: jax.Array, *rows: dict[str, Any], sample: Any = _sample
) -> Any:
    """(tokens, logprobs) of rows drawn with `rows` in turn: the first with the first, ..."""
    names = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32}
    params = {
        name: np.resize(np.array([row[name] for row in rows], dtype), len(logits))
        for name, dtype in names.items()
    }
    return sample(logits, keys, **params)


@pytest.mark.parametrize("settings", SETTINGS)
def test_log_probs_equal_an_independent_computation(settings):
    logits = np.random.default_rng(0).normal(0, 3, (64, 40)).astype(np.float32)
    tokens, logprobs = draw_rows(logits, keys_for(64), settings)
    for row in range(64):
        plain = reference_log_probs(logits[row], **PLAIN)
        drawn_from = reference_log_probs(logits[row], **settings)
        assert logprobs[row] == pytest.approx(plain[tokens[row]], abs=2e-5)
        assert np.isfinite(drawn_from[tokens[row]])


@pytest.mark.parametrize("settings", SETTINGS)
def test_frequencies_follow_the_distribution(settings):
    num_draws = 20_000
    logits = np.random.default_rng(1).normal(0, 1, 10).astype(np.float32)
    rows = np.tile(logits, (num_draws, 1))
    tokens, _ = draw_rows(rows, keys_for(num_draws), settings)
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
        tokens, _ = draw_rows(logits, keys_for(32, seed=seed), GREEDY)
        assert np.array_equal(tokens, logits.argmax(axis=-1))


def test_top_k_of_one_is_greedy_even_among_equals():
    logits = np.round(np.random.default_rng(3).normal(0, 1, (256, 12))).astype(np.float32)
    first = dict(temperature=1.5, top_k=1, top_p=1.0)
    tokens, _ = draw_rows(logits, keys_for(256), first)
    assert np.array_equal(tokens, logits.argmax(axis=-1))


@pytest.mark.parametrize(
    ("top_p", "admissible"),
    [(0.3, {2}), (0.55, {2, 0}), (0.85, {2, 0, 3}), (0.99, {0, 1, 2, 3})],
)
def test_top_p_draws_all_of_the_admissible_set_and_nothing_else(top_p, admissible):
    logits = np.log(np.tile(np.array([0.3, 0.05, 0.5, 0.15], np.float32), (2_000, 1)))
    tokens, _ = draw_rows(logits, keys_for(2_000), {**PLAIN, "top_p": top_p})
    # The rarest admissible token has mass 0.05: all 2,000 draws miss it once in 10^44.
    assert set(np.asarray(tokens).tolist()) == admissible


FILTERED: list[dict[str, Any]] = [
    {**PLAIN, "top_k": 20},
    {**PLAIN, "top_k": 20, "top_p": 0.9},
    {**PLAIN, "top_k": 600},  # more than the most candidates
    {**PLAIN, "top_p": 0.9},
    {**PLAIN, "temperature": 1.3, "top_p": 0.2},
]
KINDS = [GREEDY, PLAIN, {**PLAIN, "temperature": 0.7}, *FILTERED]


@pytest.mark.parametrize("vocab_size", [40, 300, 4_000])
def test_rows_of_every_kind_draw_beside_each_other_what_they_draw_alone(vocab_size):
    logits = np.random.default_rng(5).normal(0, 3, (64, vocab_size)).astype(np.float32)
    keys = keys_for(64)
    together, logprobs = draw_rows(logits, keys, *KINDS)
    for index, kind in enumerate(KINDS):
        rows = slice(index, None, len(KINDS))
        alone = draw_rows(logits, keys, kind)
        np.testing.assert_array_equal(together[rows], alone[0][rows])
        np.testing.assert_array_equal(logprobs[rows], alone[1][rows])


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a draw has computed of what it can skip: noise, nuclei, a selection of so many."""
    found: list[str] = []

    def note(name: str) -> None:
        jax.debug.callback(lambda: found.append(name))

    def noise(keys: jax.Array, ids: jax.Array) -> jax.Array:
        note("noise")
        return plain_noise(keys, ids)

    def top_k(values: jax.Array, k: int) -> Any:
        note(f"top_k {k}")
        return plain_top_k(values, k)

    def least_kept(probs: jax.Array, top_p: jax.Array) -> jax.Array:
        note("nucleus")
        return plain_least_kept(probs, top_p)

    plain_noise, plain_top_k = draw._noise, jax.lax.top_k
    plain_least_kept = draw._least_kept
    monkeypatch.setattr(draw, "_least_kept", least_kept)
    monkeypatch.setattr(draw, "_noise", noise)
    monkeypatch.setattr(draw.lax, "top_k", top_k)
    return found


def test_only_what_some_row_asks_for_is_computed(computed):
    logits = np.random.default_rng(6).normal(0, 4, (6, 5_000)).astype(np.float32)
    one_program = jax.jit(lambda *arrays: sample_token(*arrays))
    for kinds, expected in [
        ([GREEDY], []),
        ([PLAIN, GREEDY], ["noise"]),
        ([FILTERED[0], GREEDY], ["noise", "top_k 64"]),
        ([FILTERED[0], FILTERED[1], PLAIN], ["noise", "noise", "top_k 64"]),
        ([FILTERED[0], FILTERED[3]], ["noise", "noise", "nucleus", "top_k 64"]),
        ([FILTERED[3], GREEDY], ["noise", "nucleus"]),
        ([FILTERED[2]], ["noise", "top_k 5000"]),
    ]:
        computed.clear()
        params = [np.resize([kind[name] for kind in kinds], 6) for name in PLAIN]
        types = (np.float32, np.int32, np.float32)
        arrays = [p.astype(dtype) for p, dtype in zip(params, types, strict=True)]
        jax.block_until_ready(one_program(logits, keys_for(6), *arrays))
        jax.effects_barrier()
        assert sorted(computed) == expected
    assert one_program._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_noise_is_that_of_jax_by_token():
    keys = keys_for(3)
    whole = jax.vmap(lambda key: jax.random.gumbel(key, (5_000,)))(keys)
    every = np.arange(5_000, dtype=np.int32)[None]
    np.testing.assert_array_equal(jax.jit(draw._noise)(keys, every), whole)
    ids = np.random.default_rng(4).integers(0, 5_000, (3, 7), np.int32)
    found = jax.jit(draw._noise)(keys, ids)
    np.testing.assert_array_equal(found, np.take_along_axis(np.asarray(whole), ids, axis=1))


@pytest.mark.parametrize(
    "row",
    [[1, 3, 3, 2], [-np.inf] * 4, [0.0, -0.0, 0, 0], [1, np.nan, np.inf, np.nan], [np.inf] * 4],
)
def test_argmax_is_that_of_numpy(row):
    assert draw._argmax(jnp.array([row], jnp.float32))[0] == np.argmax(row)


@pytest.mark.parametrize("top_k", [3, 8, 600])
@pytest.mark.parametrize("top_p", [0.7, 1.0])
def test_partial_selection_equals_the_full_sort(top_k, top_p, monkeypatch):
    logits = np.random.default_rng(3).normal(0, 2, (64, 1_000)).astype(np.float32)
    logits[0, :500] = logits[0].max()  # many equals: the lower ids come first
    tokens = []
    for numbers in (4, 8, 960), ():
        monkeypatch.setattr(draw, "NUM_CANDIDATES", numbers)
        sample = jax.jit(lambda *args, **params: sample_token(*args, **params))
        settings = {**PLAIN, "top_k": top_k, "top_p": top_p}
        tokens.append(draw_rows(logits, keys_for(64), settings, sample=sample)[0])
    np.testing.assert_array_equal(*tokens)


@pytest.mark.parametrize("spread", [0.3, 4.0])  # nuclei of thousands of tokens, and of few
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999])
def test_the_nucleus_is_that_of_a_sort(spread, top_p):
    logits = np.random.default_rng(3).normal(0, spread, (16, 4_000)).astype(np.float32)
    probs = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
    least = np.asarray(jax.jit(draw._least_kept)(probs, np.full(16, top_p, np.float32)))
    for row, bound in zip(probs.astype(np.float64), least, strict=True):
        descending = np.sort(row)[::-1]
        size = int(np.searchsorted(np.cumsum(descending), top_p)) + 1
        # float32 sums may end one token sooner or later than float64's.
        assert abs(int((row >= bound).sum()) - size) <= 1
        assert bound in row.astype(np.float32)


def test_the_nucleus_holds_all_that_are_as_probable_as_its_last_token():
    probs = np.array([[0.5, 0.125, 0.125, 0.125, 0.125]], np.float32)
    for top_p, least in [(0.5, 0.5), (0.51, 0.125), (1.0, 0.125)]:
        assert draw._least_kept(jnp.asarray(probs), jnp.array([top_p]))[0] == least


def test_a_nucleus_that_rounding_never_fills_is_the_vocabulary():
    assert draw._least_kept(jnp.full((1, 3), 0.3), jnp.array([0.95]))[0] == 0
