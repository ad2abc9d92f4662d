# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the advantage falls, drawn: over contexts, and over the steps of training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    legend_below(right, 2, gap=0.2)
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


def curve_figure(curve: Mapping[int, Mapping[str, Any]]) -> Figure:
    """Draws the analyses of a run: by optimizer steps done, the content of analysis.json."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, len(_CURVES))
    names = list(dict.fromkeys(n for found in curve.values() for n in found["names"]))
    for panel, (measure, title) in zip(axes, _CURVES.items(), strict=True):
        prepare(panel, "optimizer step")
        integer_steps(panel)
        show_percent(panel)
        panel.set_title(title, **_TITLE)
        for index, name in enumerate(names):
            rows = [
                [step, *_ends(found["contexts"][name][measure])]
                for step, found in sorted(curve.items())
                if (found["contexts"].get(name) or {}).get(measure)
            ]
            if rows:
                steps, means, low, high = np.array(rows).T
                colour, style = colour_of(index), LINE_STYLES[index % len(LINE_STYLES)]
                panel.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
                panel.plot(steps, means, style, color=colour, marker="o", ms=3, label=name)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False,
        fontsize=8.5, labelcolor=INK,
    )  # fmt: skip
    return figure


def _draw_parts(axes: Axes, found: Mapping[str, Any], names: Sequence[str]) -> None:
    prepare(axes)
    axes.grid(axis="y", visible=False)
    axes.set_title("Share of |A| (%)", **_TITLE)
    axes.set_xlim(0, 100)
    for row, name in enumerate(names):
        below = 0.0
        for (measure, label), colour in zip(_PARTS.items(), _PART_COLOURS, strict=True):
            interval = found["contexts"][name][measure]
            if interval is None:
                continue
            width = 100 * interval["mean"]
            axes.barh(
                row, width, 0.62, below, color=colour, linewidth=0, label="" if row else label
            )
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
    legend_below(axes, 3, gap=0.2)


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


def _ends(interval: Mapping[str, float | None]) -> tuple[float, float, float]:
    """Mean and ends; an interval without ends has the mean's."""
    mean = interval["mean"]
    assert mean is not None
    low, high = interval["low"], interval["high"]
    return mean, mean if low is None else low, mean if high is None else high
