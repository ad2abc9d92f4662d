# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How much of a rollout its context repeats: at its head, and in the same order anywhere.

    rollout   3 * 8 = 24 47 + 24 = 61        10 words
    context   3 * 8 = 24 47 + 24 = 71        head: 9 / 10, in order: 9 / 10
    context   47 + 24 = 71                   head: 0,      in order: 4 / 10

Words are runs of letters and digits, and every other sign by itself; space does not count.
"""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

_WORD = re.compile(r"\w+|[^\w\s]")


class Copied(NamedTuple):
    """Shares of a rollout's words, in 0..1.

    Attributes:
      head: the context begins with as many of the rollout's first words.
      in_order: longest common subsequence.
    """

    head: float
    in_order: float


def copied(rollout: str, context: str) -> Copied | None:
    """Returns what the context repeats; None for a rollout without a word."""
    ours, theirs = _WORD.findall(rollout), _WORD.findall(context)
    if not ours:
        return None
    pairs = zip(ours, theirs, strict=False)
    head = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return Copied(head / len(ours), common_subsequence(ours, theirs) / len(ours))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    A row of the usual table is one integer of len(a) bits (Hyyro, Bit-parallel LCS-length
    computation revisited, 2004), so that texts of thousands of words take milliseconds.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << index
    every = (1 << len(a)) - 1
    row = every  # a 0 stands where the length grows
    for word in b:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & every
    return len(a) - row.bit_count()
