# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import itertools
import json

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.problems.order import make_problem_iterator
from stepalign_jax.problems.problem import Problem

PROBLEMS = [Problem(f"{i}+0", str(i), None, "arithmetic") for i in range(12)]


def take(iterator, num_batches: int) -> list[list[str]]:
    return [[p.answer for p in batch] for batch in itertools.islice(iterator, num_batches)]


def flat(batches: list[list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(batches))


def test_each_epoch_has_every_problem_once_in_its_own_order():
    order = flat(take(make_problem_iterator(PROBLEMS, 4, 0), 9))
    epochs = [order[:12], order[12:24], order[24:]]
    names = sorted(p.answer for p in PROBLEMS)
    assert [sorted(epoch) for epoch in epochs] == [names] * 3
    assert len({tuple(epoch) for epoch in [*epochs, names]}) == 4


def test_batches_run_over_the_end_of_an_epoch():
    whole = flat(take(make_problem_iterator(PROBLEMS, 4, 0), 10))
    assert flat(take(make_problem_iterator(PROBLEMS, 5, 0), 8)) == whole


def test_seed_decides_the_order():
    first = take(make_problem_iterator(PROBLEMS, 4, 1), 3)
    assert first == take(make_problem_iterator(PROBLEMS, 4, 1), 3)
    assert first != take(make_problem_iterator(PROBLEMS, 4, 2), 3)


def test_order_is_pinned():
    """Resumed runs rely on it: change these numbers only with a note in the changelog."""
    order = flat(take(make_problem_iterator(PROBLEMS, 12, 0), 2))
    assert list(map(int, order[:12])) == [0, 4, 10, 11, 8, 3, 1, 9, 5, 2, 6, 7]
    assert list(map(int, order[12:])) == [11, 7, 6, 0, 4, 8, 9, 2, 10, 3, 1, 5]


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_interleave_to_the_one_global_order(process_count):
    whole = take(make_problem_iterator(PROBLEMS, 4, 3), 7)
    iterators = [
        make_problem_iterator(PROBLEMS, 4, 3, index, process_count)
        for index in range(process_count)
    ]
    parts = [take(iterator, 7) for iterator in iterators]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert flat([list(round_) for round_ in zip(*shares, strict=True)]) == batch
    assert {i.get_state()["num_problems_seen"] for i in iterators} == {28}


@pytest.mark.parametrize("num_batches", [0, 1, 5])
def test_state_round_trip_goes_on_with_the_same_batches(num_batches):
    iterator = make_problem_iterator(PROBLEMS, 5, 0)
    take(iterator, num_batches)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 4)
    fresh = make_problem_iterator(PROBLEMS, 5, 0)
    fresh.set_state(state)
    assert take(fresh, 4) == expected
    assert state == {"num_problems_seen": 5 * num_batches}
    fresh.set_state(state)  # back again, on an iterator that has moved
    assert take(fresh, 4) == expected


def test_resume_on_another_number_of_processes():
    single = make_problem_iterator(PROBLEMS, 6, 0)
    take(single, 3)
    halves = [make_problem_iterator(PROBLEMS, 6, 0, index, 2) for index in range(2)]
    for half in halves:
        half.set_state(single.get_state())
    left, right = (flat(take(half, 2)) for half in halves)
    assert flat([list(pair) for pair in zip(left, right, strict=True)]) == flat(take(single, 2))
    with pytest.raises(UserError, match="18 problems, which 4 processes cannot share"):
        make_problem_iterator(PROBLEMS, 4, 0, 0, 4).set_state({"num_problems_seen": 18})


def test_impossible_requests_are_refused():
    with pytest.raises(UserError, match="there are no problems"):
        make_problem_iterator([], 4, 0)
    with pytest.raises(UserError, match=r"problems_per_step=4 different .* there are 3 to"):
        make_problem_iterator(PROBLEMS[:3], 4, 0)
    for batch_size in (0, 3):
        with pytest.raises(
            UserError, match=rf"problems_per_step={batch_size} cannot be shared"
        ):
            make_problem_iterator(PROBLEMS, batch_size, 0, 0, 2)
