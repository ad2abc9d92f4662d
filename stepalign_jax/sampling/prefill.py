# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Prefills prompts in batches of few shapes: each prompt once, a shared prefix once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stepalign_jax.model.qwen3 import Cache, Qwen3
from stepalign_jax.sampling.decode import copy_rows, prefill
from stepalign_jax.sampling.schedule import prefill_rows, prefill_widths, shared_prefix

Prompt = tuple[int, ...]


class Prefills:
    """Fills the cache rows of slots with the prompts of one list of requests.

    Equal prompts that are seated together are prefilled once, and so is one that goes on
    from the last refill: that refill's last batch stays in memory for it. A long prefix
    that all prompts share is prefilled once; while a batch is prefilled behind it, each
    row holds a copy.
    """

    def __init__(
        self,
        model: Qwen3,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        *,
        num_slots: int,
        dtype: Any,
    ):
        """Args: `variables` in the unrolled layout, `dtype` that of keys and values."""
        self._model, self._variables, self._dtype = model, variables, dtype
        self._prompts = [tuple(prompt) for prompt in prompts]
        self._num_slots = num_slots
        self._refills = len(prompts) > num_slots
        self._length = shared_prefix(self._prompts)
        self._padded = prefill_widths(self._prompts, self._length)
        self._prefix = None
        if self._length:
            self._prefix = self._call(np.array([self._prompts[0][: self._length]], np.int32))
        self._held: tuple[Prompt, Cache, int] | None = None

    @property
    def widths(self) -> np.ndarray:
        """[N] cache slots that each request's prefill fills, padding included."""
        return self._length + self._padded

    def fill(self, cache: Cache, slots: np.ndarray, requests: np.ndarray) -> Cache:
        """`cache` with the prompts of `requests` at the start of the rows `slots`."""
        waiting: dict[Prompt, list[int]] = {}
        for slot, request in zip(slots.tolist(), requests.tolist(), strict=True):
            waiting.setdefault(self._prompts[request], []).append(slot)
        if self._held is not None and self._held[0] in waiting:
            prompt, held, row = self._held
            cache = self._copy(cache, held, [(row, slot) for slot in waiting.pop(prompt)])
        width_of = {self._prompts[r]: int(self._padded[r]) for r in requests.tolist()}
        for width in sorted(set(map(width_of.__getitem__, waiting))):
            same = [prompt for prompt in waiting if width_of[prompt] == width]
            cache = self._fill_width(cache, width, same, waiting)
        return cache

    def _fill_width(
        self, cache: Cache, width: int, prompts: list[Prompt], waiting: dict[Prompt, list[int]]
    ) -> Cache:
        full = self._length + width
        sizes = prefill_rows(len(prompts), full, self._num_slots, refills=self._refills)
        for rows in sizes:
            batch, prompts = prompts[:rows], prompts[rows:]
            tokens = np.zeros((rows, width), np.int32)  # what pads is never seen
            for row, prompt in enumerate(batch):
                suffix = prompt[self._length : -1]
                tokens[row, : len(suffix)] = suffix
            prefilled = self._call(tokens)
            pairs = [(row, slot) for row, p in enumerate(batch) for slot in waiting[p]]
            cache = self._copy(cache, prefilled, pairs)
            self._held = (batch[-1], prefilled, len(batch) - 1)
        return cache

    def _call(self, tokens: np.ndarray) -> Cache:
        return prefill(self._model, self._variables, tokens, self._prefix, dtype=self._dtype)

    def _copy(self, cache: Cache, prefilled: Cache, pairs: list[tuple[int, int]]) -> Cache:
        indices = np.zeros((2, self._num_slots), np.int32)
        indices[:, : len(pairs)] = np.array(pairs).T
        return copy_rows(cache, prefilled, *indices, np.int32(len(pairs)))
