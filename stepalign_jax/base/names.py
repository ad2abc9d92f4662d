# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What somebody most likely meant: the known name nearest to a mistaken one."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns the name in `known`, which is not empty, that is most like `word`."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]


def nearest_key(key: str, known: Iterable[str]) -> str:
    """Returns the dotted key most like `key`.

    People forget or mistake the section, so the last part of a key counts alone too:
    `train.learning_rate` means `optimizer.learning_rate`.
    """

    def likeness(candidate: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        names = key.rpartition(".")[2], candidate.rpartition(".")[2]
        return max(whole, difflib.SequenceMatcher(None, *names).ratio()), whole

    return max(known, key=likeness)
