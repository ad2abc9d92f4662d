# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How every benchmark here draws its candidates."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["draw_bars", "plt", "save"]


def draw_bars(axes: Any, found: dict[str, dict[str, float]], *, ours: str) -> None:
    """Draws a bar per candidate, ours on top: the median, and a line from low to high.

    Args:
      axes: of matplotlib.
      found: by candidate, what `measure.summary` returns.
      ours: the candidate that is this package's.
    """
    found = {ours: found[ours], **found}
    middle = [value["median"] for value in found.values()]
    spread = [
        [value["median"] - value["low"] for value in found.values()],
        [value["high"] - value["median"] for value in found.values()],
    ]
    axes.barh([*found], middle, xerr=spread, color=["C1", *["C7"] * (len(found) - 1)])
    axes.invert_yaxis()


def save(figure: Any, path: Path) -> None:
    """Writes the figure; makes the directory."""
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
