# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: decode in chunks; take, drop and refill requests between them.

    session = engine.session(variables, num_slots=8, max_length=2048)
    session.submit(requests)
    while not session.over:
        chunk = session.step(64)         up to 64 tokens of each live request
        session.submit(more)             may come between any two steps
        session.cancel(request)          frees its slot before the next step

What stands in two slots over three steps, when request 1 stops early and 2 waits:

    step           0          1          2
    slot 0     request 0  request 0  request 0      its cache row is never moved
    slot 1     request 1  request 2  request 2      request 2's prompt overwrites row 1
    waiting        2          -          -

A session belongs to one thread: call its methods one after another.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from stepalign_jax.base.buckets import bucket
from stepalign_jax.base.watch import moved
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.sampling.decode import (
    Slots,
    decode_chunk,
    empty_cache,
    resize,
    slot_requests,
)
from stepalign_jax.sampling.prefill import Prefills
from stepalign_jax.sampling.request import Address, Request, SamplingParams, check_requests
from stepalign_jax.sampling.scheduler import (
    PromptLayout,
    Schedule,
    cache_bucket,
    cache_limit,
    prompt_layout,
    resized,
    serving_order,
)

DECODE_STEPS = 64  # of one chunk at most
FEWEST_STOPS = 8
# Greedy: a slot that waits costs no noise.
_NO_REQUEST = Request((0,), Address(0, 0, 0, 0, 0, 0), SamplingParams(0.0, 0, 1.0, 1, ()))


class DecodeChunk(NamedTuple):
    """What some decode steps drew: slot b's tokens are tokens[:count[b], b].

    Attributes:
      tokens: [C, B] int32.
      logprobs: [C, B] float32, see `Rollouts`.
      requests: [B] the request in each slot, -1 for none.
      first: [B] completion tokens that the slot's request drew before this chunk.
      count: [B] tokens that it drew in it.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    requests: np.ndarray
    first: np.ndarray
    count: np.ndarray

    def tokens_of(self, request: int) -> list[int]:
        """The tokens that a request drew in this chunk; [] if it is in no slot."""
        slots = np.flatnonzero(self.requests == request)
        return [token for b in slots for token in self.tokens[: self.count[b], b].tolist()]


class Session:
    """Serves requests from a fixed number of slots.

    The cache is as wide as the longest live request needs, in few widths (`cache_bucket`):
    attention never reads what no request has reached.
    """

    def __init__(
        self,
        model: Qwen3,
        variables: Any,
        *,
        num_slots: int,
        max_length: int,
        stop_ids: tuple[int, ...],
        dtype: Any,
    ):
        """Starts without a request.

        Args:
          model: unrolled.
          variables: in the decode layout.
          num_slots: B, requests that are decoded together.
          max_length: tokens of a prompt and its completion.
          stop_ids: tokens that end every completion.
          dtype: of keys and values.
        """
        self._model, self._variables, self._dtype = model, variables, dtype
        self._num_slots, self._max_length, self._stop_ids = num_slots, max_length, stop_ids
        self._limit = cache_limit(max_length)
        self._cache: Any = None  # until the first request tells its width
        self._schedule = Schedule(num_slots)
        self._live: dict[int, Request] = {}  # that wait or are in a slot
        self._waves: dict[int, Prefills] = {}  # of each request that waits
        zeros = np.zeros(num_slots, np.int32)
        self._slots = Slots(zeros, zeros, zeros, np.ones(num_slots, bool))
        self._num_stops = bucket(len(stop_ids), smallest=FEWEST_STOPS, per_doubling=1)
        nothing = [_NO_REQUEST] * num_slots
        self._requests = slot_requests(nothing, stop_ids, self._num_stops)

    @property
    def over(self) -> bool:
        """Whether every request so far is through."""
        return self._schedule.over

    @property
    def num_done(self) -> int:
        """Requests that are through, those that were cancelled among them."""
        return self._schedule.num_done

    def submit(
        self, requests: Sequence[Request], layout: PromptLayout | None = None
    ) -> list[int]:
        """Lets a wave of requests wait behind those of earlier calls.

        A wave has one order of serving, one shared prefix and prefill batches of its own.

        Args:
          requests: of the wave.
          layout: of their prompts, if sessions beside this one are to use the same shapes.

        Returns:
          Their numbers, which count all requests of the session from 0 on.

        Raises:
          UserError: a prompt is empty, or longer than the session with its completion.
        """
        check_requests(requests, self._max_length)
        if not requests:
            return []
        first = self._schedule.num_submitted
        numbers = list(range(first, first + len(requests)))
        prompts = [tuple(request.prompt) for request in requests]
        layout = prompt_layout(prompts) if layout is None else layout
        order = [first + index for index in serving_order(prompts)]
        wave = Prefills(
            self._model,
            self._variables,
            dict(zip(numbers, prompts, strict=True)),
            order,
            prefix=layout.prefix,
            num_slots=self._num_slots,
            dtype=self._dtype,
        )
        self._live |= zip(numbers, requests, strict=True)
        self._waves |= dict.fromkeys(numbers, wave)
        self._schedule.submit(order)
        self._make_room(requests, layout)
        return numbers

    def cancel(self, request: int) -> None:
        """Drops a request: it draws no more token, and if it waits, it is never prefilled.

        One that is through already stays so.
        """
        if self._live.pop(request, None) is None:
            return
        if wave := self._waves.pop(request, None):
            wave.withdraw(request)
        self._schedule.cancel(request)

    def step(self, num_steps: int) -> DecodeChunk:
        """Decodes at most so many steps, and fewer if enough slots are idle by then.

        Raises:
          ValueError: there is no request to decode.
        """
        if self.over:
            raise ValueError("every request of the session is through: submit one first")
        fresh = self._schedule.refill()
        requests = self._schedule.request.copy()
        self._seat(fresh, requests)
        first = self._slots.emitted
        tokens, logprobs = self._decode(num_steps)
        for request in self._schedule.retire(self._slots.done):
            del self._live[request]
        count = np.where(requests >= 0, self._slots.emitted - first, 0)
        return DecodeChunk(tokens, logprobs, requests, first, count)

    def _make_room(self, requests: Sequence[Request], layout: PromptLayout) -> None:
        """Widens what a wave does not fit into: the cache's bounds, and the stop tokens."""
        # A prompt's padding may reach further than `max_length`.
        self._limit = max(self._limit, cache_limit(layout.max_length(0)))
        if self._cache is None:
            width = cache_bucket(layout.widest, self._limit)
            self._cache = empty_cache(self._model.config, self._num_slots, width, self._dtype)
        most = max(len(request.params.stop_ids) for request in requests) + len(self._stop_ids)
        more = bucket(most, smallest=self._num_stops, per_doubling=1) - self._num_stops
        stops = np.pad(self._requests.stop_ids, ((0, 0), (0, more)), constant_values=-1)
        self._requests = self._requests._replace(stop_ids=stops)
        self._num_stops += more

    def _seat(self, fresh: np.ndarray, requests: np.ndarray) -> None:
        """Gives the slots `fresh` what they hold of `requests` [B]."""
        numbers = requests[fresh].tolist()
        new = [self._live[number] for number in numbers]
        slots = Slots(*(leaf.copy() for leaf in self._slots))
        slots.done[requests < 0] = True  # a request that was cancelled in its slot
        slots.tokens[fresh] = [request.prompt[-1] for request in new]
        slots.positions[fresh] = [len(request.prompt) - 1 for request in new]
        slots.emitted[fresh] = 0
        slots.done[fresh] = False
        self._slots = slots
        # In place: no program that was given these arrays still runs.
        rows = slot_requests(new, self._stop_ids, self._num_stops)
        for array, row in zip(self._requests, rows, strict=True):
            array[fresh] = row
        self._requests.temperature[requests < 0] = _NO_REQUEST.params.temperature
        self._prefill(fresh.tolist(), numbers)

    def _prefill(self, slots: Sequence[int], numbers: Sequence[int]) -> None:
        """Copies prompts into the cache rows `slots`, in a cache wide enough for all."""
        waves: dict[Prefills, list[int]] = {}  # the slots of each, in the order of serving
        for slot, number in zip(slots, numbers, strict=True):
            waves.setdefault(self._waves.pop(number), []).append(slot)
        held = dict(zip(slots, numbers, strict=True))
        filled = [
            width
            for wave, own in waves.items()
            for width in wave.widths([held[slot] for slot in own])
        ]
        width = resized(self._width, max([self._reach() + 1, *filled]), self._limit)
        if width != self._width:
            self._cache = resize(self._cache, width)
        for wave, own in waves.items():
            self._cache = wave.fill(self._cache, own, [held[slot] for slot in own])

    @property
    def _width(self) -> int:
        return self._cache[0].num_slots

    def _reach(self) -> int:
        """The highest cache slot that the next decode step writes for a live slot."""
        return int(self._slots.positions[~self._slots.done].max())

    def _decode(self, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Decodes until enough slots are idle, and waits for tokens and log-probabilities."""
        num_steps = min(num_steps, self._width - self._reach(), DECODE_STEPS)
        self._cache, *rest = decode_chunk(
            self._model,
            self._variables,
            self._cache,
            self._slots,
            self._requests,
            np.int32(num_steps),
            np.int32(self._schedule.idle_limit()),
            DECODE_STEPS,
        )
        self._slots, tokens, logprobs = jax.device_get(rest)
        moved()
        return tokens, logprobs
