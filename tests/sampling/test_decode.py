# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The decoding loop, on a model whose next token is known, and against a full forward."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIG, full_log_probs, map_leaves

from stepalign_jax.base.compilation import CompilationCounter
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import Qwen3, init_params, unstack_layers
from stepalign_jax.sampling.request import Address, Request, SamplingParams
from stepalign_jax.sampling.scheduler import prompt_layout
from stepalign_jax.sampling.session import DecodeChunk, Session

PAD, BUDGET = 0, 12
# Of every session that needs no other number, in a cache of 128 slots: each pair of them is a
# program that has to be compiled.
SLOTS, LENGTH = 5, 129
WIDER = 209  # a session's that starts with a cache of 128 slots, and may need 208
# Large weights, so that the distributions are far from uniform and differ by position.
PARAMS = map_leaves(init_params(CONFIG, jax.random.key(0)), lambda leaf: leaf * 8)
VARIABLES = {"params": unstack_layers(PARAMS, CONFIG.num_layers)}
# With these every token is equally likely, so that the noise alone decides.
UNIFORM = map_leaves(VARIABLES, np.zeros_like)
MODEL = Qwen3(CONFIG, jnp.float32, scan_layers=False)

PLAIN = SamplingParams(1.0, 0, 1.0, BUDGET, ())
GREEDY = PLAIN._replace(temperature=0.0)
ADDRESS = Address(seed=0, purpose=0, step=3, problem=77, sample=0, retry=0)


def addresses_for(number: int, **fields: int) -> list[Address]:
    """Addresses of `number` samples of one problem; fields shift them."""
    return [ADDRESS._replace(**{"sample": sample, **fields}) for sample in range(number)]


def requests_for(
    prompts: Sequence[Sequence[int]],
    params: SamplingParams = PLAIN,
    addresses: Sequence[Address] | None = None,
) -> list[Request]:
    """One request per prompt."""
    addresses = addresses_for(len(prompts)) if addresses is None else addresses
    return [Request(p, a, params) for p, a in zip(prompts, addresses, strict=True)]


def session_for(requests: Sequence[Request], **changes: Any) -> Session:
    """A session on the toy model that is wide enough for `requests`."""
    layout = prompt_layout([tuple(request.prompt) for request in requests])
    budget = max(request.params.max_new_tokens for request in requests)
    options: dict[str, Any] = dict(
        model=MODEL,
        variables=VARIABLES,
        num_slots=SLOTS,
        max_length=max(LENGTH, layout.max_length(budget)),
        stop_ids=(),
        dtype=jnp.float32,
    )
    return Session(**{**options, **changes})


def chunks(
    requests: Sequence[Request], num_steps: int = 64, **changes: Any
) -> list[DecodeChunk]:
    """What a session that gets all requests at once decodes."""
    session, found = session_for(requests, **changes), []
    session.submit(requests)
    while not session.over:
        found.append(session.step(num_steps))
    return found


def put_together(found: Sequence[DecodeChunk], number: int, budget: int) -> Rollouts:
    """Rollouts from chunks, request by request."""
    tokens, lengths = np.full((number, budget), PAD, np.int32), np.zeros(number, np.int32)
    logprobs = np.zeros((number, budget), np.float32)
    for chunk in found:
        for slot, request in enumerate(chunk.requests):
            first, count = chunk.first[slot], chunk.count[slot]
            assert count == 0 or (request >= 0 and lengths[request] == first)
            columns = slice(first, first + count)
            tokens[request, columns] = chunk.tokens[:count, slot]
            logprobs[request, columns] = chunk.logprobs[:count, slot]
            lengths[request] += count
    return Rollouts(tokens, logprobs, lengths, lengths < budget)


def run(
    prompts: Sequence[Sequence[int]],
    params: SamplingParams = PLAIN,
    addresses: Sequence[Address] | None = None,
    **changes: Any,
) -> Rollouts:
    """The rollouts of one request per prompt, all submitted at once."""
    found = chunks(requests_for(prompts, params, addresses), **changes)
    return put_together(found, len(prompts), params.max_new_tokens)


PROMPTS = [[5, 6, 7], [9, 2, 3, 4, 8, 1, 20, 11], [13], [5, 6, 7, 8, 9]]


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


def run_successor(prompts: list[list[int]], budget: int = BUDGET, **changes: Any) -> Rollouts:
    CALLS.clear()
    options: dict[str, Any] = dict(model=Successor(CONFIG), variables={}, stop_ids=(10, 22))
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
    found = chunks([request], model=Successor(CONFIG), variables={})
    assert [int(chunk.count.max()) for chunk in found] == [28, 64, 8]


# --- on Qwen3 -----------------------------------------------------------------------------


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


def test_a_cache_that_grows_and_shrinks_changes_no_token():
    generator = np.random.default_rng(5)
    lengths = (120, 300, 4, 7)
    prompts = [generator.integers(3, 24, length).tolist() for length in lengths]
    # Two slots: the long prompts want 512 cache slots, the short ones 128 after them.
    rollouts = run(prompts, num_slots=2, params=GREEDY)
    expected = full_forward_log_probs(prompts, rollouts)
    assert np.array_equal(rollouts.tokens, expected.argmax(axis=-1))


# --- requests of their own kinds, and while the session runs ------------------------------


KINDS = [
    PLAIN,
    GREEDY._replace(max_new_tokens=5),
    PLAIN._replace(temperature=1.7, top_k=4),
    PLAIN._replace(top_p=0.6, max_new_tokens=9),
    PLAIN._replace(temperature=0.5, top_k=9, top_p=0.8),
]
MIXTURE = [
    Request(prompt, address, kind)
    for prompt, address, kind in zip([*PROMPTS, [7, 7]], addresses_for(5), KINDS, strict=True)
]


def alone(request: Request, **changes: Any) -> list[int]:
    """The tokens of a request that nothing else is decoded beside."""
    return [token for chunk in chunks([request], **changes) for token in chunk.tokens_of(0)]


@pytest.mark.parametrize("num_slots", [2, SLOTS])
def test_requests_of_many_kinds_draw_together_what_they_draw_alone(num_slots):
    found = chunks(MIXTURE, num_slots=num_slots)
    for number, request in enumerate(MIXTURE):
        tokens = [token for chunk in found for token in chunk.tokens_of(number)]
        assert tokens == alone(request)
        assert len(tokens) == request.params.max_new_tokens


def test_each_request_ends_at_its_own_stop_tokens_and_at_the_model_s():
    CALLS.clear()
    stops = [(), (8,), (7, 9), tuple(range(11, 24))]
    requests = [
        Request([5], address, PLAIN._replace(stop_ids=own))
        for address, own in zip(addresses_for(4), stops, strict=True)
    ]
    session = session_for(requests, model=Successor(CONFIG), variables={}, stop_ids=(10,))
    session.submit(requests[:3])
    found = [session.step(1)]
    session.submit(requests[3:])  # more stop tokens than fit beside those of the others
    while not session.over:
        found.append(session.step(64))
    ends = [[token for chunk in found for token in chunk.tokens_of(n)] for n in range(4)]
    assert ends == [[6, 7, 8, 9, 10], [6, 7, 8], [6, 7], [6, 7, 8, 9, 10]]


def test_a_request_submitted_while_others_run_draws_what_it_draws_alone():
    generator = np.random.default_rng(9)
    # The second wave is longer than the cache is wide by then, and shares a prefix.
    prefix = generator.integers(3, 24, 130).tolist()
    late = [
        Request([*prefix, *rest], address, kind)
        for rest, address, kind in zip(
            ([4, 5], [6], [7, 8, 9]), addresses_for(3, problem=5), KINDS, strict=False
        )
    ]
    session = session_for(MIXTURE, max_length=WIDER)
    assert session.submit(MIXTURE) == [0, 1, 2, 3, 4]
    found = [session.step(3)]
    assert session.submit(late) == [5, 6, 7] and session.submit([]) == []
    assert not session.over
    while not session.over:
        found.append(session.step(4))
    assert session.submit([MIXTURE[2]]) == [8] and not session.over
    while not session.over:
        found.append(session.step(4))
    assert session.num_done == 9
    for number, request in enumerate([*MIXTURE, *late, MIXTURE[2]]):
        tokens = [token for chunk in found for token in chunk.tokens_of(number)]
        assert tokens == alone(request, max_length=WIDER)


def test_a_cancelled_request_frees_its_slot_and_draws_no_more():
    session = session_for(MIXTURE, num_slots=2)
    session.submit(MIXTURE)
    chunk = session.step(2)
    running = [number for number in chunk.requests.tolist() if number >= 0]
    assert len(running) == 2
    session.cancel(running[0])
    assert session.num_done == 1
    found = [session.step(1)]
    assert running[0] not in found[0].requests
    assert (found[0].count == 1).all()  # another request has its slot already
    while not session.over:
        found.append(session.step(64))
    assert not any(running[0] in chunk.requests for chunk in found)
    assert session.num_done == 5
    for number in set(range(5)) - {running[0]}:
        tokens = [token for c in [chunk, *found] for token in c.tokens_of(number)]
        assert tokens == alone(MIXTURE[number])


def test_no_step_is_taken_for_a_cancelled_request():
    CALLS.clear()
    # From 2 on it takes 8 steps to 10; from 11 on the budget of 12 ends it.
    requests = requests_for([[2], [11]])
    options: dict[str, Any] = dict(model=Successor(CONFIG), variables={}, stop_ids=(10,))
    session = session_for(requests, num_slots=2, **options)
    session.submit(requests)
    session.step(1)
    session.cancel(1)
    assert session.step(64).tokens_of(1) == [] and session.over
    jax.effects_barrier()
    assert CALLS.count((2, 1)) == 8


def test_a_request_that_is_cancelled_while_it_waits_is_never_prefilled():
    CALLS.clear()
    # Two rows a batch: 0 and 1 in 128 columns, then 2 and 3 in 64, then 4 and 5 in 24.
    requests = requests_for([[n, *[2] * n] for n in (100, 90, 60, 40, 20, 5)])
    options: dict[str, Any] = dict(model=Successor(CONFIG), variables={}, stop_ids=(10,))
    session = session_for(requests, num_slots=2, **options)
    numbers = session.submit(requests)
    found = [session.step(1)]
    session.cancel(numbers[3])
    session.cancel(numbers[3])  # it is through: nothing happens
    while not session.over:
        found.append(session.step(64))
    jax.effects_barrier()
    assert {n for chunk in found for n in chunk.requests.tolist()} == {0, 1, 2, 4, 5, -1}
    # Request 4 has the place of 3, so 5 is alone.
    assert [shape for shape in CALLS if shape[1] > 1] == [(2, 128), (2, 64), (2, 16)]
    assert session.num_done == 6


def test_cancelling_all_ends_a_session_and_it_takes_requests_again():
    session = session_for(MIXTURE)
    session.submit(MIXTURE)
    session.step(2)
    for number in range(5):
        session.cancel(number)
    assert session.over
    with pytest.raises(ValueError, match="submit one first"):
        session.step(1)
    (number,) = session.submit([MIXTURE[0]])
    tokens: list[int] = []
    while not session.over:
        tokens += session.step(64).tokens_of(number)
    assert tokens == alone(MIXTURE[0])


def test_other_parameters_and_waves_compile_nothing():
    session = session_for(MIXTURE, num_slots=2)
    session.submit(MIXTURE[:1])
    while not session.over:
        session.step(64)
    with closing(CompilationCounter()) as counter:
        session.submit(MIXTURE)
        session.step(2)
        changed = KINDS[4]._replace(top_k=3, max_new_tokens=2, stop_ids=(5, 6))
        numbers = session.submit(requests_for([[8, 8]] * 3, changed, addresses_for(3, seed=8)))
        session.cancel(numbers[1])
        while not session.over:
            session.step(64)
        session.submit(requests_for([[9]] * 2, changed))  # in every slot
        session.step(64)
        assert session.over and counter.take()["compilations"] == 0


def test_a_request_that_does_not_fit_the_session_is_refused_and_changes_nothing():
    session = session_for(MIXTURE[:1], max_length=20)
    with pytest.raises(UserError, match=r"Prompt 1 has 9 tokens.*= 12 exceeds the 20"):
        session.submit(requests_for([[3], [3] * 9]))
    assert session.over and session.submit(MIXTURE[:1]) == [0]
