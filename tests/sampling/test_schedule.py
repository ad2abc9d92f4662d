# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The scheduler serves every request once, whatever the lengths, slots and chunks are."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign_jax.sampling.scheduler import (
    Schedule,
    cache_bucket,
    cache_widths,
    deal,
    prefill_batches,
    prompt_bucket,
    resized,
    serving_order,
    shared_prefix,
)


def simulate(lengths: list[int], num_slots: int, turns: int) -> tuple[list[int], int, int]:
    """Serves requests of known lengths in chunks of `turns`.

    Returns:
      The requests in the order in which they were seated, the turns taken, and the turns
      in which a slot stood idle while somebody waited.
    """
    schedule = Schedule(num_slots)
    schedule.submit(range(len(lengths)))
    left = np.zeros(num_slots, int)
    seated, num_turns, wasted = [], 0, 0
    while not schedule.over:
        fresh = schedule.refill()
        assert (left[fresh] == 0).all()  # no request takes the slot of another
        left[fresh] = np.array(lengths)[schedule.request[fresh]]
        seated += schedule.request[fresh].tolist()
        assert np.array_equal(left > 0, schedule.request >= 0)
        for _ in range(turns):
            if (left == 0).sum() >= schedule.idle_limit():
                break
            wasted += int((left == 0).sum()) if schedule.num_waiting else 0
            left = np.maximum(left - 1, 0)
            num_turns += 1
        schedule.retire(left == 0)
    assert schedule.num_done == len(lengths) and schedule.num_waiting == 0
    return seated, num_turns, wasted


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=60),
    st.integers(1, 40),
    st.integers(1, 50),
)
def test_every_request_is_served_once_and_in_order(lengths, num_slots, turns):
    seated, num_turns, wasted = simulate(lengths, num_slots, turns)
    assert seated == list(range(len(lengths)))
    # With fewer than 32 slots a slot is refilled at once: what list scheduling takes.
    if num_slots < 32:
        assert wasted == 0
        assert num_turns == list_scheduling(lengths, num_slots)


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.lists(st.integers(0, 20), max_size=3)), max_size=20
    ),
    st.integers(1, 5),
)
def test_submitting_and_cancelling_lose_and_repeat_no_request(events, num_slots):
    """Each event submits requests, cancels some that may be anywhere, and serves a little."""
    schedule, generator = Schedule(num_slots), np.random.default_rng(0)
    seated: list[int] = []
    cancelled: set[int] = set()
    done: set[int] = set()
    for number, to_cancel in [*events, *[(0, [])] * 200]:
        first = schedule.num_submitted
        schedule.submit(range(first, first + number))
        for request in {r for r in to_cancel if r < schedule.num_submitted}:
            if request not in cancelled | done:
                schedule.cancel(request)
                cancelled.add(request)
                assert request not in schedule.request
        fresh = schedule.refill()
        seated += schedule.request[fresh].tolist()
        assert not cancelled & set(schedule.request.tolist())
        # No slot is idle while a request waits.
        assert not schedule.num_waiting or (schedule.request >= 0).all()
        assert 1 <= schedule.idle_limit() <= num_slots
        done |= set(schedule.retire(generator.random(num_slots) < 0.5))
        assert schedule.num_done == len(done) + len(cancelled)
    assert schedule.over and done | cancelled == set(range(schedule.num_submitted))
    assert seated == sorted(set(seated)) and done <= set(seated)


def list_scheduling(lengths: list[int], num_slots: int) -> int:
    """Turns until all are through if each request goes to the slot that is free first."""
    free_at = [0] * num_slots
    for length in lengths:
        first = free_at.index(min(free_at))
        free_at[first] += length
    return max(free_at)


def test_many_slots_wait_for_a_sixteenth_of_them():
    schedule = Schedule(64)
    schedule.submit(range(70))
    assert schedule.refill().tolist() == list(range(64))
    assert schedule.idle_limit() == 4  # 64 / 16
    schedule.retire(np.arange(64) < 4)
    schedule.refill()
    assert schedule.idle_limit() == 2  # no more are waiting
    schedule.retire(np.arange(64) < 2)
    schedule.refill()
    assert schedule.idle_limit() == 64  # none is: the chunk ends with the last request


def test_equal_prompts_are_served_side_by_side_and_longest_first():
    prompts = [[1, 2], [3], [1, 2, 3], [1, 2], [4, 5], [3], [1, 2]]
    assert serving_order(prompts) == [2, 0, 3, 6, 4, 1, 5]


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
def test_sessions_keep_equal_prompts_together_and_are_about_equally_long(prompts, number):
    shares = deal([[prompt] for prompt in prompts], number)
    assert len(shares) == number
    assert sorted(itertools.chain(*shares)) == list(range(len(prompts)))
    of_share = [{prompts[request] for request in share} for share in shares]
    assert sum(map(len, of_share)) == len(set(prompts))
    largest = max((prompts.count(prompt) for prompt in prompts), default=0)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= largest


def test_buckets_are_powers_of_two_and_their_halves_between():
    assert [prompt_bucket(length) for length in (1, 16, 17, 25, 33, 49, 65, 97)] == [
        16, 16, 24, 32, 48, 64, 96, 128,
    ]  # fmt: skip
    buckets = {prompt_bucket(length) for length in range(1, 4_097)}
    assert len(buckets) == 17 and max(buckets) == 4_096
    assert all(prompt_bucket(length) >= length for length in range(1, 4_097))


@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=50),
    st.integers(1, 70),
    st.sampled_from((1, 1, 4)),
)
def test_each_prompt_is_in_one_prefill_batch_that_holds_it(lengths, slots_per_shard, shards):
    num_slots = slots_per_shard * shards
    prompts = [(7,) * length for length in lengths]
    order = serving_order(prompts)
    batches = prefill_batches(dict(enumerate(prompts)), order, 0, num_slots, num_shards=shards)
    held = [prompts[request] for batch in batches for request in batch.requests]
    assert held == sorted(set(prompts), key=len, reverse=True)
    for batch in batches:
        assert max(len(prompts[request]) for request in batch.requests) - 1 <= batch.width
        assert 1 <= len(batch.requests) <= batch.num_rows <= num_slots
        # Each shard of a mesh computes what one device would.
        own = batch.num_rows // shards
        assert batch.num_rows == own * shards
        assert own == 1 or own * batch.width <= 512
    rows = {batch.width: batch.num_rows for batch in batches}
    assert all(batch.num_rows == rows[batch.width] for batch in batches)


@pytest.mark.parametrize(
    ("common", "rest", "expected"),
    [
        (127, 5, 0),  # too short to be worth it
        (128, 1, 128),
        (191, 5, 128),
        (192, 5, 192),
        (700, 5, 512),
        (700, 0, 512),  # the shortest prompt is all prefix, and its last token is fed
        (192, 0, 128),
    ],
)
def test_a_long_common_prefix_is_found(common, rest, expected):
    prompts = [(5,) * common + (6 + i,) * rest for i in range(3)]
    prompts.append((5,) * common + (9,) * (rest + 3))
    assert shared_prefix(prompts) == expected


def test_one_prompt_shares_nothing():
    assert shared_prefix([(5,) * 300]) == shared_prefix([(5,) * 300] * 4) == 0


@given(st.integers(1, 5_000), st.integers(0, 3_000), st.integers(1, 5_000))
def test_the_cache_is_wide_enough_and_seldom_changes(needed, more, current):
    limit = needed + more
    width = cache_bucket(needed, limit)
    assert needed <= width <= limit
    if width < limit:  # the narrowest of 128, 256, 512, ... that holds them
        assert width >= 128 and width.bit_count() == 1
        assert width == 128 or width // 2 < needed
    else:  # which is near that
        assert width < 1.5 * max(128, 2 * needed)
    again = resized(current, needed, limit)
    assert again >= needed
    # It stays unless it must grow, or can shrink to half.
    assert again == current or current < needed or 2 * again <= current


def test_the_cache_widths_of_one_call_are_few():
    assert cache_widths(longest_prompt=65, max_new_tokens=128) == [128, 192]
    assert cache_widths(longest_prompt=513, max_new_tokens=2_048) == [
        128,
        256,
        512,
        1_024,
        2_560,
    ]
    # 128 tokens of a prefix, and 24 for the other 17.
    assert cache_widths(longest_prompt=146, max_new_tokens=8, prefix=128) == [160]
    assert sorted({cache_bucket(n, 192) for n in range(1, 193)}) == [128, 192]
    assert {cache_bucket(n, 152) for n in range(1, 153)} == {152}
    widths = {cache_bucket(n, 512 + 2_048) for n in range(1, 2_561)}
    assert sorted(widths) == [128, 256, 512, 1_024, 2_560]
