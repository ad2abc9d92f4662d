# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Numbers, and intervals around them, as tables and sentences show them."""

from typing import Any

NOTHING = "–"


def percent(value: Any, *, signed: bool = False) -> str:
    """Returns a share in 0..1, or its interval, in percent; see `rounded`."""
    return rounded(value, scale=100.0, signed=signed)


def rounded(value: Any, *, scale: float = 1.0, signed: bool = False) -> str:
    """Returns "41.2 [38.0, 44.5]" of an interval, "41.2" of a number, "–" of None."""
    sign = "+" if signed else ""
    if value is None:
        return NOTHING
    if not isinstance(value, dict):
        return f"{scale * value:{sign}.1f}"
    mean, low, high = (scale * value[key] for key in ("mean", "low", "high"))
    digits = 0 if max(abs(mean), abs(low), abs(high)) >= 1000 else 1
    return f"{mean:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
