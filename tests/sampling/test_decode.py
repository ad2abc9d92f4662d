# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The decoding loop, on a model whose next token is known, and against a full forward."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIG, full_log_probs
from support.sessions import (
    ADDRESS,
    BUDGET,
    CALLS,
    GREEDY,
    PAD,
    PARAMS,
    PLAIN,
    PROMPTS,
    SUCCESSOR,
    UNIFORM,
    WIDER,
    addresses_for,
    chunks,
    run,
)

from stepalign_jax.base.types import Rollouts
from stepalign_jax.sampling.decode import empty_cache, resize
from stepalign_jax.sampling.request import Request


def run_successor(prompts: list[list[int]], budget: int = BUDGET, **changes: Any) -> Rollouts:
    CALLS.clear()
    options: dict[str, Any] = dict(model=SUCCESSOR, variables={}, stop_ids=(10, 22))
    params = PLAIN._replace(max_new_tokens=budget)
    result = run(prompts, params, **{**options, **changes})
    jax.effects_barrier()
    return result


MIXED = [[3, 9], [1, 1, 8], [20], [10], [1]]


@pytest.mark.parametrize("num_slots", [1, 2, 5, 7])
@pytest.mark.parametrize("num_steps", [1, 4, 64])
def test_each_request_gets_its_completion_whatever_the_slots_and_chunks(num_slots, num_steps):
    # The last prompt tokens, not the padding behind them, decide what follows.
    rollouts = run_successor(MIXED, 9, num_slots=num_slots, num_steps=num_steps)
    assert rollouts.tokens.tolist() == [
        [10, 0, 0, 0, 0, 0, 0, 0, 0],
        [9, 10, 0, 0, 0, 0, 0, 0, 0],
        [21, 22, 0, 0, 0, 0, 0, 0, 0],
        [11, 12, 13, 14, 15, 16, 17, 18, 19],
        [2, 3, 4, 5, 6, 7, 8, 9, 10],
    ]
    assert rollouts.lengths.tolist() == [1, 2, 2, 9, 9]


def test_log_probs_are_zero_after_the_stop_and_not_before():
    rollouts = run_successor(MIXED, 9)
    valid = np.arange(9)[None] < np.array([1, 2, 2, 9, 9])[:, None]
    assert np.all(rollouts.logprobs[valid] < 0) and not np.any(rollouts.logprobs[~valid])


def test_a_request_takes_one_step_per_token_and_equal_prompts_one_prefill():
    run_successor([[5], [8], [3, 7], [5], [5]])
    # [5] needs five tokens to reach 10. Three distinct prompts, as wide as the first is.
    assert CALLS == [(5, 16)] + [(5, 1)] * 5


def test_a_free_slot_is_refilled_before_the_next_step():
    # In 2 slots: [2] for 8 steps beside [9], [8], [7], [6] for 1 + 2 + 3 + 4.
    run_successor([[2], [9], [8], [7], [6]], num_slots=2)
    assert CALLS.count((2, 1)) == 10
    assert CALLS.count((2, 16)) == 3  # two prompts at a time, and never one twice


def test_the_cache_is_as_wide_as_the_longest_live_request_needs():
    # From position 100 on, 28 tokens fit into 128 cache slots; the next width holds all.
    request = Request([1] * 101, ADDRESS, PLAIN._replace(max_new_tokens=100))
    found = chunks([request], model=SUCCESSOR, variables={})
    assert [int(chunk.count.max()) for chunk in found] == [28, 64, 8]


# --- on Qwen3 -----------------------------------------------------------------------------


def full_forward_log_probs(prompts: list[list[int]], rollouts: Rollouts) -> np.ndarray:
    """[B, T, V] log-probabilities at each completion token, uncached and in scanned form."""
    rows = [prompt + list(row) for prompt, row in zip(prompts, rollouts.tokens, strict=True)]
    width = max(map(len, rows))
    tokens = np.array([row + [PAD] * (width - len(row)) for row in rows], np.int32)
    log_probs = np.asarray(full_log_probs(CONFIG, "float32", PARAMS, tokens))
    starts = [len(prompt) - 1 for prompt in prompts]
    return np.stack(
        [row[start : start + BUDGET] for row, start in zip(log_probs, starts, strict=True)]
    )


def test_greedy_equals_the_argmax_of_the_full_forward_at_every_position():
    rollouts = run(PROMPTS, params=GREEDY)
    expected = full_forward_log_probs(PROMPTS, rollouts)
    assert np.array_equal(rollouts.tokens, expected.argmax(axis=-1))
    assert np.array_equal(
        rollouts.tokens, run(PROMPTS, GREEDY, addresses_for(4, seed=9)).tokens
    )


def test_log_probs_equal_those_of_the_full_forward():
    rollouts = run(PROMPTS)
    expected = full_forward_log_probs(PROMPTS, rollouts)
    picked = np.take_along_axis(expected, np.asarray(rollouts.tokens)[..., None], axis=-1)
    np.testing.assert_allclose(rollouts.logprobs, picked[..., 0], atol=1e-4, rtol=0)
    assert rollouts.lengths.tolist() == [BUDGET] * 4 and not rollouts.finished.any()


def test_same_keys_give_the_same_rollouts_and_rows_differ():
    prompts = [[5, 6, 7]] * 4
    first, second = (run(prompts) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert len({tuple(row) for row in first.tokens}) == 4


@pytest.mark.parametrize(
    "change", [{"step": 4}, {"problem": 78}, {"retry": 1}, {"seed": 1}, {"purpose": 1}]
)
def test_every_part_of_the_address_changes_the_noise(change):
    first = run([[5]] * 4, variables=UNIFORM).tokens
    changed = addresses_for(4, **change)
    second = run([[5]] * 4, addresses=changed, variables=UNIFORM).tokens
    # 4 x 12 draws from 24 tokens: two positions agree by chance in 2 of 48 places.
    assert np.mean(first == second) < 0.2


def test_rows_and_positions_have_noise_of_their_own():
    tokens = run([[5]] * 4, variables=UNIFORM).tokens
    assert len(set(tokens.ravel().tolist())) > 12
    assert np.mean(tokens[:-1] == tokens[1:]) < 0.2
    assert np.mean(tokens[:, :-1] == tokens[:, 1:]) < 0.2


@pytest.mark.long
def test_a_shared_prefix_is_prefilled_once_and_changes_no_token():
    generator = np.random.default_rng(4)
    prefix = generator.integers(3, 24, 130).tolist()
    rests = [generator.integers(3, 24, length).tolist() for length in (4, 9, 2)]
    prompts = [prefix + rest for rest in rests]
    run_successor(prompts)
    assert CALLS[:2] == [(1, 128), (3, 16)]
    # One prompt alone shares nothing, and prefills whole.
    shared, addresses = run(prompts, max_length=WIDER), addresses_for(3)
    alone = [run([p], addresses=addresses[i : i + 1]) for i, p in enumerate(prompts)]
    for row, rollouts in enumerate(alone):
        np.testing.assert_array_equal(shared.tokens[row], rollouts.tokens[0])
        np.testing.assert_allclose(shared.logprobs[row], rollouts.logprobs[0], atol=1e-4)


@pytest.mark.long
def test_a_cache_that_grows_and_shrinks_changes_no_token():
    generator = np.random.default_rng(5)
    lengths = (120, 300, 4, 7)
    prompts = [generator.integers(3, 24, length).tolist() for length in lengths]
    # Two slots: the long prompts want 512 cache slots, the short ones 128 after them.
    rollouts = run(prompts, num_slots=2, params=GREEDY)
    expected = full_forward_log_probs(prompts, rollouts)
    assert np.array_equal(rollouts.tokens, expected.argmax(axis=-1))


def test_a_resized_cache_keeps_what_it_holds_and_the_old_one_is_gone():
    cache = empty_cache(CONFIG, 3, 128, "float32")
    cache = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape), cache)
    before = jax.tree.map(np.asarray, cache)
    for width in (256, 128):
        old, cache = cache, resize(CONFIG, cache, width)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
        for layer, expected in zip(cache, before, strict=True):
            assert layer.num_slots == width
            np.testing.assert_array_equal(layer.k[:, :, :, :128], expected.k)
            np.testing.assert_array_equal(layer.v[:, :, :128], expected.v)
            assert not np.any(layer.k[:, :, :, 128:]) and not np.any(layer.v[:, :, 128:])
