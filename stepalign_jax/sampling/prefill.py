# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Prefills prompts in batches of few shapes: each prompt once, a shared prefix once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stepalign_jax.model.qwen3 import Cache, Qwen3
from stepalign_jax.sampling.decode import copy_rows, prefill
from stepalign_jax.sampling.scheduler import (
    PrefillBatch,
    prefill_batches,
    prompt_bucket,
    shared_prefix,
)


class Prefills:
    """Copies prefilled prompts into the cache rows of slots, in the order of serving.

    A batch is computed when its first prompt is asked for, and kept until the slots ask
    for the next one: beside the cache, one or two batches take memory. A long prefix that
    all prompts share is prefilled once; in a batch each row holds a copy of it.
    """

    def __init__(
        self,
        model: Qwen3,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        order: Sequence[int],
        *,
        num_slots: int,
        dtype: Any,
    ):
        """Args: `variables` in the unrolled layout, `order` the requests that will be filled,
        `dtype` that of keys and values."""
        self._model, self._variables, self._dtype = model, variables, dtype
        self._prompts = [tuple(prompt) for prompt in prompts]
        self._num_slots = num_slots
        self._length = shared_prefix(self._prompts)
        self._batches = prefill_batches(self._prompts, order, self._length, num_slots)
        self._place = {  # of each prompt: its batch, and its row there
            self._prompts[request]: (index, row)
            for index, batch in enumerate(self._batches)
            for row, request in enumerate(batch.requests)
        }
        self._computed: dict[int, Cache] = {}
        self._prefix = None
        if self._length:
            self._prefix = self._call(np.array([self._prompts[0][: self._length]], np.int32))

    @property
    def widest(self) -> int:
        """Cache slots that the longest of all prompts fills, padding included."""
        longest = max(map(len, self._prompts))
        return self._length + prompt_bucket(longest - 1 - self._length)

    def widths(self, requests: Sequence[int]) -> np.ndarray:
        """[n] cache slots that each request's prefill fills, padding included."""
        places = (self._place[self._prompts[request]] for request in requests)
        return np.array([self._length + self._batches[i].width for i, _ in places], int)

    def fill(self, cache: Cache, slots: Sequence[int], requests: Sequence[int]) -> Cache:
        """`cache` with the prompts of `requests` at the start of the rows `slots`.

        Requests come in the order of serving, from one call to the next too.
        """
        pairs: dict[int, list[tuple[int, int]]] = {}
        for slot, request in zip(slots, requests, strict=True):
            index, row = self._place[self._prompts[request]]
            pairs.setdefault(index, []).append((row, slot))
        for index, rows in sorted(pairs.items()):
            if index not in self._computed:
                self._computed = {index: self._compute(self._batches[index])}
            indices = np.zeros((2, self._num_slots), np.int32)
            indices[:, : len(rows)] = np.array(rows).T
            count = np.int32(len(rows))
            cache = copy_rows(cache, self._computed[index], indices[0], indices[1], count)
        return cache

    def _compute(self, batch: PrefillBatch) -> Cache:
        tokens = np.zeros((batch.num_rows, batch.width), np.int32)  # padding is never seen
        for row, request in enumerate(batch.requests):
            suffix = self._prompts[request][self._length : -1]
            tokens[row, : len(suffix)] = suffix
        return self._call(tokens)

    def _call(self, tokens: np.ndarray) -> Cache:
        return prefill(self._model, self._variables, tokens, self._prefix, dtype=self._dtype)
