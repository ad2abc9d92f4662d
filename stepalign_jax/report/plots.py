# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Images of a run or a comparison: some of its panels on one sheet."""

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepalign_jax.base.errors import UserError
from stepalign_jax.report.comparison_panels import comparison_panels
from stepalign_jax.report.panels import INK
from stepalign_jax.report.run_panels import Panel, run_panels
from stepalign_jax.runs.directory import RunDirectory

# What the sheet of a run has room for; `figures.py` has the others too.
_ON_THE_SHEET = ("validation", "before_after", "reward", "loss", "critic_exact_on_wrong")


def plot_run(run: RunDirectory) -> pathlib.Path:
    """Draws a run to report/run.png: what was measured at each step, before and after.

    Panels for which the run has no numbers are left out.

    Returns:
      The path of the image.

    Raises:
      UserError: a file of the run cannot be read, or the image cannot be written.
    """
    shown = [panel for panel in run_panels(run) if panel.name in _ON_THE_SHEET]
    num_columns = min(3, max(1, len(shown)))
    num_rows = -(-max(1, len(shown)) // num_columns)
    figure = Figure(figsize=(4.4 * num_columns, 3.2 * num_rows), layout="constrained")
    figure.suptitle(run.path.resolve().name, fontsize=11, x=0.01, ha="left", color=INK)
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for place, panel in zip(axes, shown, strict=False):
        _draw(place, panel)
    for unused in axes[len(shown) :]:
        unused.set_axis_off()
    return _save(figure, run.report / "run.png")


def plot_comparison(comparison: Mapping[str, Any], path: pathlib.Path) -> pathlib.Path:
    """Draws a comparison: a row per variant with learning curves, the critic, final gains.

    Returns:
      `path`.

    Raises:
      UserError: the image cannot be written.
    """
    rows = list(comparison_panels(comparison).values())
    height = max(panel.height for row in rows for panel in row)
    figure = Figure(figsize=(14.5, height * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False, width_ratios=(1.25, 1, 1))
    for places, row in zip(axes, rows, strict=True):
        for place, panel, first in zip(places, row, axes[0], strict=True):
            if place is not first:  # one scale for all variants
                place.sharex(first) if first is axes[0, 2] else place.sharey(first)
            _draw(place, panel)
    return _save(figure, path)


def _draw(axes: Axes, panel: Panel) -> None:
    panel.draw(axes)
    axes.set_title(panel.title, fontsize=10, loc="left", color=INK)


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}: {error.filename})") from error
    return path
