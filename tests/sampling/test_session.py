# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Requests of their own kinds, and requests that come and go while a session runs."""

from contextlib import closing
from typing import Any

import jax
import numpy as np
import pytest
from support.sessions import (
    CALLS,
    GREEDY,
    PLAIN,
    PROMPTS,
    SLOTS,
    SUCCESSOR,
    WIDER,
    addresses_for,
    chunks,
    requests_for,
    session_for,
)

from stepalign_jax.base.compilation import CompilationCounter
from stepalign_jax.base.errors import UserError
from stepalign_jax.sampling.request import Request

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
    options: dict[str, Any] = dict(model=SUCCESSOR, variables={}, stop_ids=(10,))
    session = session_for(requests, num_slots=2, **options)
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
    options: dict[str, Any] = dict(model=SUCCESSOR, variables={}, stop_ids=(10,))
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
    options: dict[str, Any] = dict(model=SUCCESSOR, variables={}, stop_ids=(10,))
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
