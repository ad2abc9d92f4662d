# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A bar that is told how many items are done so far, and not how many more."""

from types import SimpleNamespace
from typing import Any

from stepalign_jax.base.progress import advance


def test_a_bar_stands_at_the_number_that_is_done():
    bar: Any = SimpleNamespace(n=0)
    bar.update = lambda more: setattr(bar, "n", bar.n + more)
    move = advance(bar)
    seen = []
    for done in (3, 3, 10):
        move(done)
        seen.append(bar.n)
    assert seen == [3, 3, 10]
