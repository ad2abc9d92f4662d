# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which name was meant."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns the member of `known`, which is not empty, that is spelled most like `word`."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]
