# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Prefills prompts in batches of few shapes: each prompt once, a shared prefix once."""

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepalign_jax.model.cache import Cache
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.sampling.decode import copy_rows, prefill
from stepalign_jax.sampling.layout import batch_shards
from stepalign_jax.sampling.scheduler import PrefillBatch, prefill_batches


class Prefills:
    """Copies the prompts of one wave of requests into cache rows, in the order of serving.

    A batch is computed when its first prompt is asked for, and kept until the slots ask
    for the next one: beside the cache, one or two batches take memory. A long prefix that
    all prompts share is prefilled once; in a batch each row holds a copy of it.

        order of serving    3  0  5 | 1  4 | 2       requests 0 and 5 have one prompt
        batch, its row      0  1  1 | 0  1 | 0       two rows each: 3 + 0, then 1 + 4, then 2
    """

    def __init__(
        self,
        model: Qwen3,
        variables: Any,
        prompts: Mapping[int, tuple[int, ...]],
        order: Sequence[int],
        *,
        prefix: int,
        num_slots: int,
        dtype: Any,
    ):
        """Starts without computing anything.

        Args:
          model: unrolled.
          variables: in the decode layout.
          prompts: by request.
          order: the requests in the order of serving.
          prefix: leading tokens that all prompts share.
          num_slots: B of the cache.
          dtype: of keys and values.
        """
        self._model, self._variables, self._dtype = model, variables, dtype
        self._prompts, self._length, self._num_slots = prompts, prefix, num_slots
        self._num_shards = batch_shards(model.config)
        self._waiting = deque(order)
        self._computed: tuple[PrefillBatch, Cache] | None = None
        self._prefix: Cache | None = None
        self._places = self._cut()

    def withdraw(self, request: int) -> None:
        """Forgets a request that waits: a prompt that no other shares is never computed."""
        self._waiting.remove(request)
        self._places = self._cut()

    def widths(self, requests: Sequence[int]) -> list[int]:
        """Cache slots that each request's prefill fills, padding included."""
        return [self._length + self._place(request)[0].width for request in requests]

    def fill(self, cache: Cache, slots: Sequence[int], requests: Sequence[int]) -> Cache:
        """`cache` with the prompts of `requests` at the start of the rows `slots`.

        Requests come in the order of serving, from one call to the next too.
        """
        for request in requests:
            assert self._waiting.popleft() == request, "requests out of the order of serving"
        pairs = zip(slots, map(self._place, requests), strict=True)
        for _, group in itertools.groupby(pairs, key=lambda pair: id(pair[1][0])):
            rows = list(group)
            computed = self._compute(rows[0][1][0])
            indices = np.zeros((2, self._num_slots), np.int32)
            indices[:, : len(rows)] = np.array([(row, slot) for slot, (_, row) in rows]).T
            count = np.int32(len(rows))
            cache = copy_rows(
                self._model.config, cache, computed, indices[0], indices[1], count
            )
        return cache

    def _place(self, request: int) -> tuple[PrefillBatch, int]:
        """The batch of a request's prompt, and the row there."""
        return self._places[self._prompts[request]]

    def _cut(self) -> dict[tuple[int, ...], tuple[PrefillBatch, int]]:
        """Places of the prompts that wait; those in the computed batch keep theirs."""
        held = [] if self._computed is None else [self._computed[0]]
        ready = {self._prompts[request] for batch in held for request in batch.requests}
        ahead = [request for request in self._waiting if self._prompts[request] not in ready]
        batches = prefill_batches(
            self._prompts, ahead, self._length, self._num_slots, num_shards=self._num_shards
        )
        return {
            self._prompts[request]: (batch, row)
            for batch in held + batches
            for row, request in enumerate(batch.requests)
        }

    def _compute(self, batch: PrefillBatch) -> Cache:
        if self._computed is None or self._computed[0] is not batch:
            tokens = np.zeros((batch.num_rows, batch.width), np.int32)  # padding is never seen
            for row, request in enumerate(batch.requests):
                suffix = self._prompts[request][self._length : -1]
                tokens[row, : len(suffix)] = suffix
            self._computed = None  # its memory is free before the next one takes as much
            self._computed = batch, self._prefill(tokens, self._shared(batch))
        return self._computed[1]

    def _shared(self, batch: PrefillBatch) -> Cache | None:
        """Keys and values of the prefix, a row in each shard; None where there is none."""
        if self._length and self._prefix is None:
            shared = self._prompts[batch.requests[0]][: self._length]
            copies = np.array([shared] * self._num_shards, np.int32)
            self._prefix = self._prefill(copies, None)
        return self._prefix

    def _prefill(self, tokens: np.ndarray, prefix: Cache | None) -> Cache:
        return prefill(self._model, self._variables, tokens, prefix, self._dtype)
