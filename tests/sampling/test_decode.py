# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The decoding loop, on a model whose next token is known, and against a full forward."""

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.base.types import Rollouts
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import Qwen3, init_params, unstack_layers
from stepalign_jax.sampling.draw import Filter
from stepalign_jax.sampling.session import Served, Session

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
    max_positions=1024,
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

PLAIN, GREEDY = Filter(1.0, 0, 1.0), Filter(0.0, 0, 1.0)


def addresses_for(batch: int, **fields: int) -> np.ndarray:
    """[B, 4] addresses of `batch` samples of one problem; fields shift them."""
    address = [fields.get("step", 3), fields.get("problem", 77), 0, fields.get("retry", 0)]
    addresses = np.tile(np.array(address, np.uint32), (batch, 1))
    addresses[:, 2] = np.arange(batch)
    return addresses


def chunks(prompts: Sequence[Sequence[int]], turns: int = 64, **changes: Any) -> list[Served]:
    """What a session on the tiny model serves; by default a slot for each prompt."""
    options: dict[str, Any] = dict(
        model=MODEL,
        variables=VARIABLES,
        addresses=addresses_for(len(prompts)),
        requests=range(len(prompts)),
        seed=0,
        purpose=0,
        num_slots=len(prompts),
        max_new_tokens=BUDGET,
        chosen_by=PLAIN,
        stop_ids=(),
        dtype=jnp.float32,
    )
    return list(Session(prompts=prompts, **{**options, **changes}).run(itertools.repeat(turns)))


def run(prompts: Sequence[Sequence[int]], turns: int = 64, **changes: Any) -> Rollouts:
    """The rollouts put together from the chunks, request by request."""
    budget = changes.get("max_new_tokens", BUDGET)
    shape = (len(prompts), budget)
    tokens, lengths = np.full(shape, PAD, np.int32), np.zeros(len(prompts), np.int32)
    logprobs, sampling_logprobs = np.zeros((2, *shape), np.float32)
    for served in chunks(prompts, turns, **changes):
        for slot, request in enumerate(served.requests):
            first, count = served.first[slot], served.count[slot]
            assert count == 0 or (request >= 0 and lengths[request] == first)
            columns = slice(first, first + count)
            tokens[request, columns] = served.chunk.tokens[:count, slot]
            logprobs[request, columns] = served.chunk.logprobs[:count, slot]
            sampled = served.chunk.sampling_logprobs[:count, slot]
            sampling_logprobs[request, columns] = sampled
            lengths[request] += count
    return Rollouts(tokens, logprobs, sampling_logprobs, lengths, lengths < budget)


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


# --- on a model whose next token is known -------------------------------------------------


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
    result = run(prompts, model=Successor(CONFIG), variables={}, stop_ids=(10, 22), **changes)
    jax.effects_barrier()
    return result


MIXED = [[3, 9], [1, 1, 8], [20], [10], [1]]


@pytest.mark.parametrize("num_slots", [1, 2, 5, 7])
@pytest.mark.parametrize("turns", [1, 4, 64])
def test_each_request_gets_its_completion_whatever_the_slots_and_chunks(num_slots, turns):
    # The last prompt tokens, not the padding behind them, decide what follows.
    rollouts = run_successor(MIXED, max_new_tokens=9, num_slots=num_slots, turns=turns)
    assert rollouts.tokens.tolist() == [
        [10, 0, 0, 0, 0, 0, 0, 0, 0],
        [9, 10, 0, 0, 0, 0, 0, 0, 0],
        [21, 22, 0, 0, 0, 0, 0, 0, 0],
        [11, 12, 13, 14, 15, 16, 17, 18, 19],
        [2, 3, 4, 5, 6, 7, 8, 9, 10],
    ]
    assert rollouts.lengths.tolist() == [1, 2, 2, 9, 9]


def test_log_probs_are_zero_after_the_stop_and_not_before():
    rollouts = run_successor(MIXED, max_new_tokens=9)
    valid = np.arange(9)[None] < np.array([1, 2, 2, 9, 9])[:, None]
    for values in (rollouts.logprobs, rollouts.sampling_logprobs):
        assert np.all(values[valid] < 0) and not np.any(values[~valid])


def test_a_request_takes_one_turn_per_token_and_equal_prompts_one_prefill():
    run_successor([[5], [8], [3, 7], [5], [5]])
    # [5] needs five tokens to reach 10. Three distinct prompts, as wide as the first is.
    assert CALLS == [(5, 16)] + [(5, 1)] * 5


def test_a_free_slot_is_refilled_before_the_next_turn():
    # In 2 slots: [2] for 8 turns beside [9], [8], [7], [6] for 1 + 2 + 3 + 4.
    run_successor([[2], [9], [8], [7], [6]], num_slots=2)
    assert CALLS.count((2, 1)) == 10
    assert CALLS.count((2, 16)) == 3  # two prompts at a time, and never one twice


def test_the_cache_is_as_wide_as_the_longest_live_request_needs():
    def widths(served: list[Served]) -> list[int]:
        return [int(chunk.count.max()) for chunk in served]

    # From position 100 on, 28 tokens fit into 128 cache slots; the next width holds all.
    prompt = [1] * 101
    served = chunks([prompt], max_new_tokens=100, model=Successor(CONFIG), variables={})
    assert widths(served) == [28, 64, 8]


# --- on Qwen3 -----------------------------------------------------------------------------


def test_greedy_equals_the_argmax_of_the_full_forward_at_every_position():
    rollouts = run(PROMPTS, chosen_by=GREEDY)
    expected = full_forward_log_probs(PROMPTS, rollouts)
    assert np.array_equal(rollouts.tokens, expected.argmax(axis=-1))
    assert np.array_equal(rollouts.tokens, run(PROMPTS, chosen_by=GREEDY, seed=9).tokens)


def test_log_probs_equal_those_of_the_full_forward():
    rollouts = run(PROMPTS)
    expected = full_forward_log_probs(PROMPTS, rollouts)
    picked = np.take_along_axis(expected, np.asarray(rollouts.tokens)[..., None], axis=-1)
    np.testing.assert_allclose(rollouts.logprobs, picked[..., 0], atol=1e-4, rtol=0)
    np.testing.assert_allclose(rollouts.sampling_logprobs, rollouts.logprobs, atol=1e-6)
    assert rollouts.lengths.tolist() == [BUDGET] * 4 and not rollouts.finished.any()


def test_same_keys_give_the_same_rollouts_and_rows_differ():
    prompts = [[5, 6, 7]] * 4
    first, second = (run(prompts) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert len({tuple(row) for row in first.tokens}) == 4


ROOT = ("seed", "purpose")


@pytest.mark.parametrize(
    "change", [{"step": 4}, {"problem": 78}, {"retry": 1}, {"seed": 1}, {"purpose": 1}]
)
def test_every_part_of_the_address_changes_the_noise(change):
    options: dict[str, Any] = {name: change[name] for name in change if name in ROOT}
    addresses = addresses_for(4, **{name: change[name] for name in change if name not in ROOT})
    first = run([[5]] * 4, variables=UNIFORM).tokens
    second = run([[5]] * 4, variables=UNIFORM, addresses=addresses, **options).tokens
    # 4 x 12 draws from 24 tokens: two positions agree by chance in 2 of 48 places.
    assert np.mean(first == second) < 0.2


def test_rows_and_positions_have_noise_of_their_own():
    tokens = run([[5]] * 4, variables=UNIFORM).tokens
    assert len(set(tokens.ravel().tolist())) > 12
    assert np.mean(tokens[:-1] == tokens[1:]) < 0.2
    assert np.mean(tokens[:, :-1] == tokens[:, 1:]) < 0.2


def test_a_shared_prefix_is_prefilled_once_and_changes_no_token():
    generator = np.random.default_rng(4)
    prefix = generator.integers(3, 24, 130).tolist()
    rests = [generator.integers(3, 24, length).tolist() for length in (4, 9, 2)]
    prompts = [prefix + rest for rest in rests]
    run_successor(prompts)
    assert CALLS[:2] == [(1, 128), (3, 16)]
    # One prompt alone shares nothing, and prefills whole.
    shared, addresses = run(prompts), addresses_for(3)
    alone = [run([p], addresses=addresses[i : i + 1]) for i, p in enumerate(prompts)]
    for row, rollouts in enumerate(alone):
        np.testing.assert_array_equal(shared.tokens[row], rollouts.tokens[0])
        np.testing.assert_allclose(shared.logprobs[row], rollouts.logprobs[0], atol=1e-4)


def test_a_cache_that_grows_and_shrinks_changes_no_token():
    generator = np.random.default_rng(5)
    lengths = (120, 300, 4, 7)
    prompts = [generator.integers(3, 24, length).tolist() for length in lengths]
    # Two slots: the long prompts want 512 cache slots, the short ones 128 after them.
    rollouts = run(prompts, num_slots=2, chosen_by=GREEDY)
    expected = full_forward_log_probs(prompts, rollouts)
    assert np.array_equal(rollouts.tokens, expected.argmax(axis=-1))
    assert np.array_equal(rollouts.tokens, run(prompts, num_slots=4, chosen_by=GREEDY).tokens)
