# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which request is in which slot, and which widths are compiled, in plain numbers.

Nothing here knows arrays on a device. Every decision follows from the requests and from
the done flags, which all hosts see alike, so that all hosts take it alike.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stepalign_jax.base.buckets import bucket

_SMALLEST_PROMPT = 16
_SMALLEST_CACHE = 128
_SHORTEST_PREFIX = 128  # a shorter one costs more to set apart than it saves
_PREFILL_TOKENS = 512  # computed by one call and shard: enough to keep a device busy
_REFILLS_PER_ROUND = 16  # a slot waits at most until 1/16 of the slots do


class Schedule:
    """Gives waiting requests, in order, to slots that are free, lowest slot first.

    Attributes:
      request: [B] the request in each slot, -1 for none.
      num_submitted: requests so far; they are numbered from 0 on.
      num_done: requests that are through, those that were cancelled among them.
    """

    def __init__(self, num_slots: int):
        self.request = np.full(num_slots, -1)
        self.num_submitted = 0
        self.num_done = 0
        self._waiting: deque[int] = deque()

    @property
    def num_waiting(self) -> int:
        """Requests that no slot has had yet."""
        return len(self._waiting)

    @property
    def over(self) -> bool:
        """Whether every request is through."""
        return self.num_done == self.num_submitted

    def submit(self, order: Sequence[int]) -> None:
        """Lets new requests wait behind the others; `order` is that of serving."""
        self._waiting.extend(order)
        self.num_submitted += len(order)

    def cancel(self, request: int) -> None:
        """Takes a request that is not through out of its slot, or off the queue."""
        held = self.request == request
        if held.any():
            self.request[held] = -1
        else:
            self._waiting.remove(request)
        self.num_done += 1

    def refill(self) -> np.ndarray:
        """Gives free slots to waiting requests; returns the slots that got one."""
        fresh = np.flatnonzero(self.request < 0)[: self.num_waiting]
        self.request[fresh] = [self._waiting.popleft() for _ in fresh]
        return fresh

    def idle_limit(self) -> int:
        """How many idle slots are worth a refill; all of them, if no request waits."""
        num_slots = len(self.request)
        enough = max(1, num_slots // _REFILLS_PER_ROUND)
        return min(enough, self.num_waiting) or num_slots

    def retire(self, done: np.ndarray) -> list[int]:
        """Frees the slots that are `done`, [B] bool; returns the requests they held."""
        through = done & (self.request >= 0)
        requests = self.request[through].tolist()
        self.request[through] = -1
        self.num_done += len(requests)
        return requests


def serving_order(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Request numbers, longest prompts first, equal prompts side by side.

    Neighbours then share a width, and samples of one problem their prefill; the longest
    lead, so that a lack of memory shows at once.
    """
    first: dict[tuple[int, ...], int] = {}
    group = [first.setdefault(tuple(prompt), index) for index, prompt in enumerate(prompts)]
    return sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), group[i], i))


def prompt_bucket(length: int) -> int:
    """The padded width for prompts up to `length`: 16, 24, 32, 48, 64, 96, 128, ...

    Two widths per doubling: at most a third of a width is wasted on its longest prompt, and
    prompts up to 4,096 tokens need no more than 17 compilations.
    """
    return bucket(length, smallest=_SMALLEST_PROMPT, per_doubling=2)


def shared_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many leading tokens of all prompts are worth a prefill of their own; 0 for none.

    The longest common prefix, less the last token of the shortest prompt, rounded down to
    a width of `prompt_bucket`: a chance agreement of a few tokens must not make a new one.
    """
    lowest, highest = min(prompts), max(prompts)
    if lowest == highest:
        return 0
    pairs = enumerate(zip(lowest, highest, strict=False))
    common = next((i for i, (a, b) in pairs if a != b), min(len(lowest), len(highest)))
    longest = min(common, min(map(len, prompts)) - 1)
    widths = [_SHORTEST_PREFIX]
    while widths[-1] <= longest:
        widths.append(prompt_bucket(widths[-1] + 1))
    return widths[-2] if len(widths) > 1 else 0


class PromptLayout(NamedTuple):
    """How prompts are padded; sessions beside each other agree on one.

    Attributes:
      prefix: leading tokens that all share and that are prefilled once.
      widest: cache slots that the longest prompt fills, padding included and its last token
        left out.
    """

    prefix: int
    widest: int

    def max_length(self, max_new_tokens: int) -> int:
        """Tokens of the longest prompt, padded, and its completion."""
        return self.widest + 1 + max_new_tokens


def prompt_layout(prompts: Sequence[tuple[int, ...]]) -> PromptLayout:
    """The layout of at least one prompt."""
    prefix = shared_prefix(prompts)
    return PromptLayout(prefix, _filled(max(map(len, prompts)), prefix))


def _filled(length: int, prefix: int) -> int:
    """Cache slots that the prefill of a prompt of `length` tokens fills: all but the last."""
    return prefix + prompt_bucket(length - 1 - prefix)


def deal(prompts: Sequence[Sequence[int]], num_sessions: int) -> list[list[int]]:
    """Request numbers of each session: a prompt's go to the one that has the fewest so far.

    Equal prompts stay together, since they share a prefill.
    """
    shares: list[list[int]] = [[] for _ in range(num_sessions)]
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for request, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt), []).append(request)
    for requests in by_prompt.values():
        min(shares, key=len).extend(requests)
    return shares


class PrefillBatch(NamedTuple):
    """Prompts that one call prefills: in order, each once, padded to the width of the first.

    Attributes:
      width: P, what stands in the shared prefix and each prompt's last token left out.
      num_rows: R, at least the number of prompts.
      requests: one request for each prompt.
    """

    width: int
    num_rows: int
    requests: list[int]


def prefill_batches(
    prompts: Mapping[int, tuple[int, ...]],
    order: Sequence[int],
    prefix: int,
    num_slots: int,
    *,
    num_shards: int,
) -> list[PrefillBatch]:
    """Cuts distinct prompts, longest first, into batches: one number of rows per width.

    On a mesh each shard of a batch has as many rows as one device alone would have in all:

        4 slots, width 256     1 device: 2 rows     2 shards: 4 rows     4 shards: 4 rows

    Args:
      prompts: by request.
      order: requests, of `serving_order`.
      prefix: how many leading tokens all share and have prefilled already.
      num_slots: B; more rows are not needed.
      num_shards: of a batch on the mesh; they divide B, and the rows.
    """
    batches: list[PrefillBatch] = []
    seen = set()
    for request in order:
        if prompts[request] in seen:
            continue
        seen.add(prompts[request])
        if not batches or len(batches[-1].requests) == batches[-1].num_rows:
            width = prompt_bucket(len(prompts[request]) - 1 - prefix)
            rows = max(1, min(_PREFILL_TOKENS // (prefix + width), num_slots // num_shards))
            batches.append(PrefillBatch(width, num_shards * rows, []))
        batches[-1].requests.append(request)
    return batches


def cache_limit(longest: int) -> int:
    """The most cache slots that rows of up to `longest` tokens take.

    The last token is drawn and never fed. The result is a multiple of 16, as any other width:
    `attention.can_stream` does not take every one.
    """
    return -(-(longest - 1) // 16) * 16


def cache_bucket(needed: int, limit: int) -> int:
    """Cache slots that hold `needed` ones: 128, 256, 512, ..., or `limit`, the most.

    `limit` takes the place of a width that comes near it.
    """
    width = bucket(needed, smallest=_SMALLEST_CACHE, per_doubling=1)
    return limit if 3 * width > 2 * limit else width


def resized(current: int, needed: int, limit: int) -> int:
    """The cache's next width: it grows when it must, and shrinks when half is enough."""
    wanted = cache_bucket(needed, limit)
    return wanted if needed > current or 2 * wanted <= current else current


def cache_widths(longest_prompt: int, max_new_tokens: int, *, prefix: int = 0) -> list[int]:
    """Every cache width that a call of `Engine.sample` may use, the narrowest first.

    Args:
      longest_prompt: tokens of the longest prompt.
      max_new_tokens: the most that a request draws.
      prefix: leading tokens that all prompts share, see `shared_prefix`.
    """
    layout = PromptLayout(prefix, _filled(longest_prompt, prefix))
    limit = cache_limit(layout.max_length(max_new_tokens))
    return sorted({cache_bucket(needed, limit) for needed in range(1, limit + 1)})
