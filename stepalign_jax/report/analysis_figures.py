# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The figures of one analysis, as files beside it and for a page."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.base.files import atomic_file
from stepalign_jax.report.localisation_figures import localisation_figure, localisation_words
from stepalign_jax.report.svg import to_svg
from stepalign_jax.report.traces import heatmap_figure, trace_figure, trace_words


class Plate(NamedTuple):
    """One figure of an analysis.

    Attributes:
      name: a word for files and ids.
      alternative: what it shows, in words.
      figure: the drawing.
    """

    name: str
    alternative: str
    figure: Figure


def examples(scored: ScoredRollouts) -> list[int]:
    """Returns a rollout with an error and one without, the best to look at; [] of none.

    All contexts can be used, and the error has reasoning steps on both sides, where there is
    such a rollout.
    """
    usable = scored.usable.sum(axis=0)
    last = np.full(len(scored.rows), -1)
    np.maximum.at(last, scored.rollout_of_token(), scored.reasoning_step)
    inner = (scored.first_error > 0) & (scored.first_error < last)
    inside = (scored.first_error >= 0) & (scored.first_error <= last)
    right = scored.correct & (scored.first_error < 0)
    found = []
    for worth in (inside.astype(int) + (inside & inner), right.astype(int)):
        if worth.any():
            best = np.lexsort((np.arange(len(worth)), -usable, -worth))[0]
            found.append(int(best))
    return found


def analysis_plates(
    scored: ScoredRollouts, found: Mapping[str, Any], rollouts: Sequence[int]
) -> list[Plate]:
    """Returns localisation over contexts, then trace and text of each of the rollouts."""
    plates = [Plate("localisation", localisation_words(found), localisation_figure(found))]
    for rollout in rollouts:
        name = re.sub(r"[^\w]+", "-", scored.rows[rollout]["id"]).strip("-")
        words = trace_words(scored, rollout)
        plates.append(Plate(f"trace_{name}", words, trace_figure(scored, rollout)))
        plates.append(Plate(f"text_{name}", words, heatmap_figure(scored, rollout)))
    return plates


def draw_analysis(
    directory: Path, scored: ScoredRollouts, found: Mapping[str, Any], rollouts: Sequence[int]
) -> list[Path]:
    """Writes each figure of `analysis_plates`; see `draw_plates`."""
    return draw_plates(directory, analysis_plates(scored, found, rollouts))


def draw_plates(directory: Path, plates: Sequence[Plate]) -> list[Path]:
    """Writes figures as PNG and SVG; returns the paths of the PNGs.

    Raises:
      UserError: a file cannot be written.
    """
    paths = []
    for name, alternative, figure in plates:
        path = directory / f"{name}.png"
        with atomic_file(path) as file:
            how: dict[str, Any] = {"facecolor": "white", "metadata": {"Software": None}}
            figure.savefig(file, format="png", dpi=150, **how)
        with atomic_file(path.with_suffix(".svg")) as file:
            file.write(to_svg(figure, name=name, alternative=alternative).encode())
        paths.append(path)
    return paths
