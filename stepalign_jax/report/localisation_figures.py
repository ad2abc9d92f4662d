# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the advantage falls, drawn: over contexts, and over the steps of training."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepalign_jax.analysis.results import RESULT_FILE
from stepalign_jax.base.files import read_json_object
from stepalign_jax.report.panels import (
    COLOURS,
    INK,
    LINE_STYLES,
    colour_of,
    integer_steps,
    legend_below,
    means_and_errors,
    prepare,
    show_percent,
)
from stepalign_jax.runs.directory import RunDirectory

_PARTS = {"abs_before": "before", "abs_first": "in the first error", "abs_after": "after"}
_PART_COLOURS = ("#9DB4C4", COLOURS[1], "#C9C2B4")
# Panels of the curve over training.
_CURVES = {
    "auroc": "AUROC of the first error (%)",
    "abs_first": "Share of |A| in the first error (%)",
    "false_blame_correct": "Negative share of |A|, right rollouts (%)",
}


def localisation_figure(found: Mapping[str, Any]) -> Figure:
    """Draws analysis.json: shares of |A|, AUROC, and false blame, a row per context."""
    names = found["names"]
    figure = Figure(figsize=(11.5, 1.9 + 0.42 * len(names)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1.35, 1, 1.1))
    _draw_parts(left, found, names)
    _draw_points(middle, found, names, {"auroc": ("", "D", COLOURS[0], 0.0)})
    middle.axvline(50, color=INK, alpha=0.6, linestyle="--", linewidth=1)
    middle.set_title("AUROC of step mean for the error (%)", **_TITLE)
    looks = {
        "false_blame_correct": ("right rollouts", "o", COLOURS[2], -0.14),
        "false_blame_prefix": ("right prefixes", "s", COLOURS[3], 0.14),
    }
    _draw_points(right, found, names, looks)
    right.set_title("False blame: negative share of |A| (%)", **_TITLE)
    _legend(right)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.4, -0.6)  # the first context on top
    return figure


_TITLE: dict[str, Any] = {"fontsize": 9.5, "loc": "left", "color": INK}


def localisation_words(found: Mapping[str, Any]) -> str:
    """Says what `localisation_figure` shows, with its numbers."""
    parts = []
    for name in found["names"]:
        numbers = found["contexts"][name]
        shown = {"in the first error": "abs_first", "AUROC": "auroc"}
        shown |= {"false blame on right rollouts": "false_blame_correct"}
        words = [
            f"{label} {100 * numbers[key]['mean']:.0f} %"
            for label, key in shown.items()
            if numbers[key] is not None and numbers[key]["mean"] is not None
        ]
        parts.append(f"{name}: {', '.join(words) or 'nothing to measure'}")
    return f"Where the advantage falls, by context. {'; '.join(parts)}."


class Curve(NamedTuple):
    """One measure over the optimizer steps; `run_panels.Panel` has the same fields."""

    name: str
    title: str
    alternative: str
    draw: Callable[[Axes], None]


def analysis_curves(run: RunDirectory) -> list[Curve]:
    """Returns what is drawn of the analyses that a run made while it trained.

    Raises:
      UserError: one of them cannot be read.
    """
    found = {}
    for path in sorted(run.analysis.glob(f"step_*/{RESULT_FILE}")):
        if step := re.fullmatch(r"step_([0-9]+)", path.parent.name):
            found[int(step[1])] = read_json_object(path)
    if not found:
        return []
    return [
        Curve(f"analysis_{m}", title, _words(found, m, title), partial(_draw_curve, found, m))
        for m, title in _CURVES.items()
    ]


def _draw_curve(curve: Mapping[int, Mapping[str, Any]], measure: str, axes: Axes) -> None:
    prepare(axes, "optimizer step")
    integer_steps(axes)
    show_percent(axes)
    names = list(dict.fromkeys(name for found in curve.values() for name in found["names"]))
    for index, name in enumerate(names):
        rows = [
            [step, *_ends(interval)]
            for step, found in curve.items()
            if (interval := found["contexts"].get(name, {}).get(measure))
        ]
        if not rows:
            continue
        steps, *values = np.array(rows).T
        means, low, high = (100 * value for value in values)
        colour, style = colour_of(index), LINE_STYLES[index % len(LINE_STYLES)]
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(steps, means, style, color=colour, marker="o", ms=3, lw=1.6, label=name)
    _legend(axes)


def _words(curve: Mapping[int, Mapping[str, Any]], measure: str, title: str) -> str:
    first, last = min(curve), max(curve)
    parts = []
    for name in curve[last]["names"]:
        ends = [curve[step]["contexts"].get(name, {}).get(measure) for step in (first, last)]
        if all(ends):
            means = [f"{100 * end['mean']:.0f}" for end in ends]
            parts.append(f"{name} {' to '.join(means)}")
    return f"{title} by context from step {first} to step {last}: {', '.join(parts)}."


def _draw_parts(axes: Axes, found: Mapping[str, Any], names: Sequence[str]) -> None:
    prepare(axes)
    axes.grid(axis="y", visible=False)
    axes.set_title("Share of |A| (%)", **_TITLE)
    axes.set_xlim(0, 100)
    named: set[str] = set()
    for row, name in enumerate(names):
        below = 0.0
        for (measure, label), colour in zip(_PARTS.items(), _PART_COLOURS, strict=True):
            interval = found["contexts"][name][measure]
            if interval is None:
                continue
            width = 100 * interval["mean"]
            axes.barh(
                row,
                width,
                0.62,
                below,
                color=colour,
                linewidth=0,
                label="" if label in named else label,
            )
            named.add(label)
            if width > 9:
                axes.text(
                    below + width / 2, row, f"{width:.0f}", ha="center", va="center",
                    fontsize=8, color="#1A1A1A",
                )  # fmt: skip
            below += width
    even, place = found["tokens"], 0.0
    for part in ("before", "first"):
        if even[part] is not None:
            place += 100 * even[part]
            axes.axvline(place, color=INK, linestyle=":", linewidth=1.2)
    axes.set_xlabel("dotted: all tokens alike", fontsize=8, color=INK)
    axes.tick_params(axis="y", length=0)
    _legend(axes)


def _draw_points(
    axes: Axes,
    found: Mapping[str, Any],
    names: Sequence[str],
    looks: Mapping[str, tuple[str, str, str, float]],
) -> None:
    """Means with intervals; each measure's label, marker, colour and shift."""
    prepare(axes)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(-2, 102)
    axes.tick_params(axis="y", length=0)
    for measure, (label, marker, colour, shift) in looks.items():
        numbers = {row: found["contexts"][name][measure] for row, name in enumerate(names)}
        rows = [row for row, interval in numbers.items() if interval is not None]
        if not rows:
            continue
        intervals = 100 * np.array([_ends(numbers[row]) for row in rows])
        means, errors = means_and_errors(intervals)
        axes.errorbar(
            means, np.array(rows) + shift, xerr=errors, fmt=marker, color=colour, ms=5, lw=1.5,
            label=label,
        )  # fmt: skip


def _legend(axes: Axes) -> None:
    """Names what is drawn below the axes; nothing where nothing is."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        legend_below(axes, len(handles), gap=0.2)


def _ends(interval: Mapping[str, float | None]) -> tuple[float, float, float]:
    """Mean and ends; an interval without ends has the mean's."""
    mean = interval["mean"]
    assert mean is not None
    low, high = interval["low"], interval["high"]
    return mean, mean if low is None else low, mean if high is None else high
