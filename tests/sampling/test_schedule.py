# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The scheduler serves every request once, whatever the lengths, slots and chunks are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign_jax.sampling.scheduler import (
    Schedule,
    cache_bucket,
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
    schedule = Schedule(range(len(lengths)), num_slots)
    left = np.zeros(num_slots, int)
    seated, num_turns, wasted = [], 0, 0
    while not schedule.over:
        fresh = schedule.refill()
        assert (left[fresh] == 0).all()  # nobody is put onto somebody's seat
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


def list_scheduling(lengths: list[int], num_slots: int) -> int:
    """Turns until all are through if each request goes to the slot that is free first."""
    free_at = [0] * num_slots
    for length in lengths:
        first = free_at.index(min(free_at))
        free_at[first] += length
    return max(free_at)


def test_many_slots_wait_for_a_sixteenth_of_them():
    schedule = Schedule(range(70), 64)
    assert schedule.refill().tolist() == list(range(64))
    assert schedule.idle_limit() == 4  # 64 / 16
    schedule.retire(np.arange(64) < 4)
    schedule.refill()
    assert schedule.idle_limit() == 2  # no more are waiting
    schedule.retire(np.arange(64) < 2)
    schedule.refill()
    assert schedule.idle_limit() == 64  # nobody is: the chunk ends with the last request


def test_equal_prompts_are_served_side_by_side_and_longest_first():
    prompts = [[1, 2], [3], [1, 2, 3], [1, 2], [4, 5], [3], [1, 2]]
    assert serving_order(prompts) == [2, 0, 3, 6, 4, 1, 5]


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
def test_lanes_keep_equal_prompts_together_and_are_about_equally_long(prompts, num_lanes):
    lanes = deal([[prompt] for prompt in prompts], num_lanes)
    assert len(lanes) == num_lanes
    assert sorted(request for lane in lanes for request in lane) == list(range(len(prompts)))
    of_lane = [{prompts[request] for request in lane} for lane in lanes]
    assert sum(map(len, of_lane)) == len(set(prompts))
    largest = max((prompts.count(prompt) for prompt in prompts), default=0)
    sizes = [len(lane) for lane in lanes]
    assert max(sizes) - min(sizes) <= largest


def test_buckets_are_powers_of_two_and_their_halves_between():
    assert [prompt_bucket(length) for length in (1, 16, 17, 25, 33, 49, 65, 97)] == [
        16, 16, 24, 32, 48, 64, 96, 128,
    ]  # fmt: skip
    buckets = {prompt_bucket(length) for length in range(1, 4_097)}
    assert len(buckets) == 17 and max(buckets) == 4_096
    assert all(prompt_bucket(length) >= length for length in range(1, 4_097))


@given(st.lists(st.integers(1, 600), min_size=1, max_size=50), st.integers(1, 70))
def test_each_prompt_is_in_one_prefill_batch_that_holds_it(lengths, num_slots):
    prompts = [(7,) * length for length in lengths]
    order = serving_order(prompts)
    batches = prefill_batches(prompts, order, 0, num_slots)
    held = [prompts[request] for batch in batches for request in batch.requests]
    assert held == sorted(set(prompts), key=len, reverse=True)
    for batch in batches:
        assert max(len(prompts[request]) for request in batch.requests) - 1 <= batch.width
        assert 1 <= len(batch.requests) <= batch.num_rows <= num_slots
        assert batch.num_rows == 1 or batch.num_rows * batch.width <= 512
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
    assert needed <= width <= limit or width == 128 or width < 2 * needed
    assert width <= max(limit, 1)
    again = resized(current, needed, limit)
    assert again >= needed
    # It stays unless it must grow, or can shrink to half.
    assert again == current or current < needed or 2 * again <= current


def test_the_cache_widths_of_one_call_are_few():
    assert sorted({cache_bucket(n, 192) for n in range(1, 193)}) == [128, 192]
    assert {cache_bucket(n, 152) for n in range(1, 153)} == {152}
    widths = {cache_bucket(n, 512 + 2_048) for n in range(1, 2_561)}
    assert sorted(widths) == [128, 256, 512, 1_024, 2_560]
