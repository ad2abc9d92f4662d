# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What `compare` wrote, as a table's cell and as a line of a figure."""

from typing import Any


def overrides_of(comparison: dict[str, Any]) -> dict[str, str]:
    """Returns the values that a comparison's command line gave, by key."""
    return dict(override.lstrip("-").split("=", 1) for override in comparison["overrides"])


def in_points(gain: dict[str, float]) -> str:
    """Returns a gain and its interval, given as shares, in points."""
    mean, low, high = (100 * gain[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def draw_gains(
    axes: Any, gains: dict[float, dict[str, float]], *, label: str, look: str = "-o"
) -> None:
    """Draws a line of gains in points, with their intervals.

    Args:
      axes: of matplotlib.
      gains: by place on the x axis, `mean`, `low` and `high` as shares.
      label: of the line.
      look: matplotlib's short form of line and marker.
    """
    means = [100 * gain["mean"] for gain in gains.values()]
    errors = [
        [100 * (gain["mean"] - gain["low"]) for gain in gains.values()],
        [100 * (gain["high"] - gain["mean"]) for gain in gains.values()],
    ]
    axes.errorbar([*gains], means, errors, fmt=look, label=label, capsize=2)
