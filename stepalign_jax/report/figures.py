# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The figures of a run or a comparison, each as SVG for a page and as PNG for a file."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from stepalign_jax.report.comparison_panels import comparison_panels
from stepalign_jax.report.panels import INK
from stepalign_jax.report.run_panels import Panel, run_panels
from stepalign_jax.report.svg import to_svg
from stepalign_jax.runs.directory import RunDirectory


class Drawn(NamedTuple):
    """One figure.

    Attributes:
      name: a word for files and ids.
      title: what it shows, with the unit; it is not in the drawing.
      alternative: what it shows in words, with the numbers; in the drawing as its label.
      svg: one <svg> element as `svg.to_svg` describes it, as wide as its place.
    """

    name: str
    title: str
    alternative: str
    svg: str


def run_figures(run: RunDirectory) -> list[Drawn]:
    """Returns the figures of which a run has numbers, at any time.

    Raises:
      UserError: a file of the run cannot be read.
    """
    return [_drawn(panel) for panel in run_panels(run)]


def run_images(run: RunDirectory) -> dict[str, bytes]:
    """Returns the same figures as PNG files by name, on white and with their titles.

    Raises:
      UserError: a file of the run cannot be read.
    """
    images = {}
    for panel in run_panels(run):
        content = io.BytesIO()
        figure = _figure(panel)
        figure.suptitle(panel.title, fontsize=10, x=0.01, ha="left", color=INK)
        figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
        images[panel.name] = content.getvalue()
    return images


def comparison_figures(comparison: Mapping[str, Any]) -> list[Drawn]:
    """Returns three figures per variant: learning curves, the critic, final gains."""
    return [_drawn(p) for row in comparison_panels(comparison).values() for p in row]


def _drawn(panel: Panel) -> Drawn:
    svg = to_svg(_figure(panel), name=panel.name, alternative=panel.alternative)
    return Drawn(panel.name, panel.title, panel.alternative, svg)


def _figure(panel: Panel) -> Figure:
    figure = Figure(figsize=(panel.width, panel.height), layout="constrained")
    panel.draw(figure.subplots())
    return figure
