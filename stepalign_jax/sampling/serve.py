# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: decode in chunks, and refill slots between them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.sampling.decode import Chunk, admit, decode_chunk, empty_slots, resize
from stepalign_jax.sampling.draw import Filter
from stepalign_jax.sampling.prefill import Prefills
from stepalign_jax.sampling.schedule import Schedule, cache_bucket, resized, serving_order

TURNS = 64  # of one chunk at most


class Served(NamedTuple):
    """One chunk, and whose tokens it holds: those of slot b are chunk.tokens[:count[b], b].

    Attributes:
      chunk: NumPy arrays.
      requests: [B] the request in each slot, -1 for none.
      first: [B] completion tokens that the slot's request drew before this chunk.
      count: [B] tokens that it drew in it.
      num_done: requests that are through.
    """

    chunk: Chunk
    requests: np.ndarray
    first: np.ndarray
    count: np.ndarray
    num_done: int


class Session:
    """Serves one list of requests.

    The cache is as wide as the longest live request needs, in few widths (`cache_bucket`):
    attention never reads what no request has reached.
    """

    def __init__(
        self,
        model: Qwen3,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        addresses: np.ndarray,
        *,
        seed: int,
        purpose: int,
        num_slots: int,
        max_new_tokens: int,
        chosen_by: Filter,
        stop_ids: tuple[int, ...],
        dtype: Any,
    ):
        """Args: see `Engine.sample` and `decode_chunk`; there is at least one prompt."""
        self._model, self._variables = model, variables
        self._addresses, self._seed, self._purpose = addresses, seed, purpose
        self._statics = {
            "num_turns": min(TURNS, max_new_tokens),
            "max_new_tokens": max_new_tokens,
            "chosen_by": chosen_by,
            "stop_ids": stop_ids,
        }
        self._last_tokens = np.array([prompt[-1] for prompt in prompts], np.int32)
        self._last_positions = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
        self._prefills = Prefills(model, variables, prompts, num_slots=num_slots, dtype=dtype)
        self._schedule = Schedule(serving_order(prompts), num_slots)
        self._limit = int(self._prefills.widths.max()) + max_new_tokens
        self._emitted = np.zeros(num_slots, np.int32)
        width = cache_bucket(int(self._prefills.widths.max()) + 1, self._limit)
        self._slots = empty_slots(model.config, num_slots, width, dtype)

    def run(self, turns: int) -> Iterator[Served]:
        """Yields chunks of at most `turns` (up to TURNS) until all requests are through."""
        schedule = self._schedule
        while not schedule.over:
            fresh = schedule.refill()
            self._emitted[fresh] = 0
            requests = schedule.request.copy()
            self._make_room(requests, fresh)
            self._seat(requests, fresh)
            chunk = self._decode(requests, turns)
            schedule.retire(chunk.done)
            first, self._emitted = self._emitted, np.array(chunk.emitted)
            count = np.where(requests >= 0, chunk.emitted - first, 0)
            yield Served(chunk, requests, first, count, schedule.num_done)

    def _reach(self, requests: np.ndarray) -> int:
        """The highest cache slot that the next turn writes, of the live requests."""
        reached = self._last_positions[requests] + self._emitted
        return int(reached[requests >= 0].max())

    def _make_room(self, requests: np.ndarray, fresh: np.ndarray) -> None:
        filled = self._prefills.widths[requests[fresh]].max(initial=0)
        needed = max(self._reach(requests) + 1, int(filled))
        width = resized(self._width, needed, self._limit)
        if width != self._width:
            self._slots = self._slots._replace(cache=resize(self._slots.cache, width=width))

    @property
    def _width(self) -> int:
        return self._slots.cache[0].num_slots

    def _seat(self, requests: np.ndarray, fresh: np.ndarray) -> None:
        if not len(fresh):
            return
        cache = self._prefills.fill(self._slots.cache, fresh, requests[fresh])
        self._slots = admit(
            self._slots._replace(cache=cache),
            np.isin(np.arange(len(requests)), fresh),
            self._last_tokens[requests],
            self._last_positions[requests],
            self._addresses[requests],
            np.uint32(self._seed),
            np.uint32(self._purpose),
        )

    def _decode(self, requests: np.ndarray, turns: int) -> Chunk:
        """Decodes until enough slots are idle, and waits for the tokens."""
        turns = min(turns, self._width - self._reach(requests), self._statics["num_turns"])
        self._slots, chunk = decode_chunk(
            self._model,
            self._variables,
            self._slots,
            np.int32(turns),
            np.int32(self._schedule.idle_limit()),
            **self._statics,
        )
        return jax.device_get(chunk)
