# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: decode in chunks, and refill slots between them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.sampling.decode import Chunk, Slots, decode_chunk, empty_cache, resize
from stepalign_jax.sampling.draw import Filter
from stepalign_jax.sampling.prefill import Prefills
from stepalign_jax.sampling.scheduler import Schedule, cache_bucket, resized, serving_order

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
    """Serves some of a list of requests.

    The cache is as wide as the longest live request needs, in few widths (`cache_bucket`):
    attention never reads what no request has reached.
    """

    def __init__(
        self,
        model: Qwen3,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        addresses: np.ndarray,
        requests: Sequence[int],
        *,
        seed: int,
        purpose: int,
        num_slots: int,
        max_new_tokens: int,
        chosen_by: Filter,
        stop_ids: tuple[int, ...],
        dtype: Any,
    ):
        """Args: see `Engine.sample` and `decode_chunk`; of the requests that `prompts` and
        `addresses` list, this session serves `requests`, at least one. Shapes are those that
        all of them need, so that sessions beside each other share their programs.
        """
        self._model, self._variables = model, variables
        self._addresses = addresses
        self._root = (np.uint32(seed), np.uint32(purpose))
        self._statics = {
            "num_turns": min(TURNS, max_new_tokens),
            "max_new_tokens": max_new_tokens,
            "chosen_by": chosen_by,
            "stop_ids": stop_ids,
        }
        self._last_tokens = np.array([prompt[-1] for prompt in prompts], np.int32)
        self._last_positions = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
        own = set(requests)
        order = [request for request in serving_order(prompts) if request in own]
        self._schedule = Schedule(order, num_slots)
        self._prefills = Prefills(
            model, variables, prompts, order, num_slots=num_slots, dtype=dtype
        )
        zeros = np.zeros(num_slots, np.int32)
        self._slots = Slots(zeros, zeros, zeros, np.ones(num_slots, bool))
        widest = self._prefills.widest
        # A multiple of 16, as any other width: `attention.can_stream` does not take every one.
        self._limit = -(-(widest + max_new_tokens) // 16) * 16
        width = cache_bucket(widest, self._limit)
        self._cache = empty_cache(model.config, num_slots, width, dtype)

    def run(self, turns: Iterable[int]) -> Iterator[Served]:
        """Yields chunks of at most so many turns each, until all requests are through."""
        schedule = self._schedule
        for limit in turns:
            fresh = schedule.refill()
            requests = schedule.request.copy()
            self._seat(fresh, requests[fresh])
            first = self._slots.emitted
            chunk = self._decode(requests, limit)
            schedule.retire(chunk.slots.done)
            count = np.where(requests >= 0, chunk.slots.emitted - first, 0)
            yield Served(chunk, requests, first, count, schedule.num_done)
            if schedule.over:
                return

    def _seat(self, fresh: np.ndarray, requests: np.ndarray) -> None:
        """Puts `requests` into the slots `fresh`, in a cache wide enough for all."""
        slots = Slots(*(leaf.copy() for leaf in self._slots))
        slots.tokens[fresh] = self._last_tokens[requests]
        slots.positions[fresh] = self._last_positions[requests]
        slots.emitted[fresh] = 0
        slots.done[fresh] = False
        self._slots = slots
        filled = self._prefills.widths(requests.tolist()).max(initial=0)
        width = resized(self._width, max(self._reach() + 1, int(filled)), self._limit)
        if width != self._width:
            self._cache = resize(self._cache, width=width)
        self._cache = self._prefills.fill(self._cache, fresh.tolist(), requests.tolist())

    @property
    def _width(self) -> int:
        return self._cache[0].num_slots

    def _reach(self) -> int:
        """The highest cache slot that the next turn writes for a live slot."""
        return int(self._slots.positions[~self._slots.done].max())

    def _decode(self, requests: np.ndarray, turns: int) -> Chunk:
        """Decodes until enough slots are idle, and waits for the tokens."""
        turns = min(turns, self._width - self._reach(), self._statics["num_turns"])
        self._cache, chunk = decode_chunk(
            self._model,
            self._variables,
            self._cache,
            self._slots,
            self._addresses[requests],
            *self._root,
            np.int32(turns),
            np.int32(self._schedule.idle_limit()),
            **self._statics,
        )
        chunk = jax.device_get(chunk)
        self._slots = chunk.slots
        return chunk
