# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How a panel is drawn: one look, and one function per kind of picture, on axes that are given.

Colours keep three to one against a white page and a dark one. Text, axes and grid have INK
alone, which `svg.py` replaces by the colour of the page's text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

INK = "#010101"  # as good as black, and no colour of anything else

# After Okabe and Ito, told apart with any common colour vision; the pale ones are deepened, and
# yellow is left out. The line style repeats what the colour says.
COLOURS = (
    "#2079B5",
    "#D55E00",
    "#009E73",
    "#BC5F97",
    "#B07C00",
    "#3A94C8",
    "#7F7F7F",
    "#8E6BBF",
)
LINE_STYLES = ("-", "--", "-.", ":")
BEFORE, AFTER = "#808080", COLOURS[0]

# Steps that are drawn one by one; of more, the means of so many runs of neighbours.
MOST_POINTS, MOST_COLUMNS = 400, 60
# A trailing mean is drawn over points where there are so many of them.
_MANY, _SMALLEST_WINDOW = 12, 5
_Z = 1.96  # of a normal interval of 95 %


class Trailing(NamedTuple):
    """A mean over the last steps, with its interval.

    Attributes:
      window: steps of a full window.
      mean: [n] over the last `window` values, and over fewer at the start.
      low: [n] the lower end of its interval; steps count as independent of each other.
      high: [n] the upper end.
    """

    window: int
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def trailing(values: np.ndarray) -> Trailing:
    """Returns the mean of the last steps at each step of `values` [n], with its interval.

    The interval is the mean plus and minus 1.96 standard errors of the window's values. It
    takes the values of steps as independent, and counts a trend as noise; with one value it
    has no width.
    """
    window = max(_SMALLEST_WINDOW, len(values) // 20)
    means, halves = np.empty(len(values)), np.zeros(len(values))
    for end in range(1, len(values) + 1):
        last = values[max(0, end - window) : end]
        means[end - 1] = last.mean()
        if len(last) > 1:
            halves[end - 1] = _Z * last.std(ddof=1) / np.sqrt(len(last))
    return Trailing(window, means, means - halves, means + halves)


def binned(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns means of neighbours, so that at most `most` points are drawn.

    Args:
      steps: [n].
      values: [n].
      most: points at the end; fewer stay as they are.

    Returns:
      Steps and values of at most `most` points, a step of each lying amid its neighbours.
    """
    if len(steps) <= most:
        return steps, values
    starts = np.linspace(0, len(steps), most, endpoint=False).astype(int)
    counts = np.diff([*starts, len(steps)])
    return (
        np.add.reduceat(np.asarray(steps, float), starts) / counts,
        np.add.reduceat(np.asarray(values, float), starts) / counts,
    )


def prepare(axes: Axes, x_label: str = "") -> None:
    """Gives axes the one look: no box, a faint grid, small ticks."""
    axes.patch.set_visible(False)
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, length=3, color=INK, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set(color=INK, alpha=0.45)
    axes.grid(axis="both", color=INK, alpha=0.1, linewidth=0.7)
    axes.set_axisbelow(True)


def draw_steps(axes: Axes, points: np.ndarray, *, share: str = "") -> None:
    """Draws one value per step; of many, the points faintly and their trailing mean on top.

    Args:
      axes: where.
      points: [n, 2] steps and values.
      share: of shares in percent "whole", on an axis from 0 to 100, or "rare", on one that
        begins at 0.
    """
    prepare(axes, "optimizer step")
    integer_steps(axes)
    steps, values = points.T
    if len(values) < _MANY:
        axes.plot(steps, values, color=AFTER, linewidth=1.6, marker="o", markersize=3.5)
    else:
        found = trailing(values)
        places, values, means, low, high = (
            binned(steps, part, MOST_POINTS)[1]
            for part in (steps, values, found.mean, found.low, found.high)
        )
        axes.plot(places, values, color=AFTER, linewidth=0.8, alpha=0.35)
        axes.fill_between(places, low, high, color=AFTER, alpha=0.18, linewidth=0)
        label = f"mean of last {found.window} steps"
        axes.plot(places, means, color=AFTER, linewidth=1.8, label=label)
        legend(axes)
    keep_room(axes, steps)
    if share == "whole":
        show_percent(axes)
    elif share == "rare":
        axes.set_ylim(-0.1, max(5.0, 1.15 * float(values.max())))


def draw_intervals(axes: Axes, points: np.ndarray, colour: str = AFTER) -> None:
    """Draws [n, 4] steps, means and the ends of their intervals, in percent."""
    prepare(axes, "optimizer step")
    integer_steps(axes)
    steps, means, low, high = points.T
    axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.errorbar(
        steps, means, np.maximum(0, [means - low, high - means]), color=colour, marker="o",
        markersize=3.5, linewidth=1.6, elinewidth=1, capsize=2,
    )  # fmt: skip
    keep_room(axes, steps)
    show_percent(axes)


def draw_stack(
    axes: Axes, steps: np.ndarray, layers: Mapping[str, np.ndarray], *, top: float | None = None
) -> None:
    """Draws layers [n] on top of each other, one column per step, with a legend.

    Of many steps a column is the mean of neighbours.

    Args:
      axes: where.
      steps: [n] of the columns.
      layers: values by name, the lowest first.
      top: where the axis ends; a higher column is cut there and bears its height.
    """
    prepare(axes, "optimizer step")
    integer_steps(axes)
    axes.grid(axis="x", visible=False)
    layers = {name: binned(steps, v, MOST_COLUMNS)[1] for name, v in layers.items()}
    apart = (steps[-1] - steps[0] + 1) / min(len(steps), MOST_COLUMNS)
    steps = binned(steps, steps, MOST_COLUMNS)[0]
    below = np.zeros(len(steps))
    width = apart * (1.0 if len(steps) > 40 else 0.8)
    for index, (name, values) in enumerate(layers.items()):
        colour = COLOURS[index % len(COLOURS)]
        axes.bar(steps, values, width, below, color=colour, label=name, linewidth=0)
        below = below + values
    counts = all(float(value).is_integer() for value in below)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=counts))
    if top:
        axes.set_ylim(0, top)
        for step, height in zip(steps, below, strict=True):
            if height > top:
                axes.annotate(
                    f"{height:.1f}", (step, top), (0, 2), textcoords="offset points",
                    ha="center", fontsize=7.5, color=INK, annotation_clip=False,
                )  # fmt: skip
    axes.margins(x=0.02)
    legend_below(axes, len(layers))


def draw_bars(axes: Axes, values: Mapping[str, float], labels: Sequence[str]) -> None:
    """Draws one horizontal bar per name, the first on top, each with its label behind it."""
    prepare(axes)
    axes.grid(axis="y", visible=False)
    places, widths = np.arange(len(values)), list(values.values())
    axes.barh(places, widths, 0.62, color=AFTER)
    for place, width, label in zip(places, widths, labels, strict=True):
        axes.annotate(
            label, (width, place), (4, 0), textcoords="offset points", va="center",
            fontsize=8.5, color=INK,
        )  # fmt: skip
    axes.set_yticks(places, list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(0, 1.38 * max(widths, default=1.0) or 1.0)  # room for the labels
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def draw_before_after(
    axes: Axes, sides: Mapping[str, np.ndarray], names: Sequence[str]
) -> None:
    """Draws a pair of bars per score, with intervals: {"before": [n, 3], "after": [n, 3]}."""
    prepare(axes)
    axes.grid(axis="x", visible=False)
    places = np.arange(len(names))
    looks = ((BEFORE, -0.2), (AFTER, 0.2))
    for (side, intervals), (colour, shift) in zip(sides.items(), looks, strict=True):
        means, errors = means_and_errors(intervals)
        axes.bar(places + shift, means, 0.36, color=colour, label=side)
        axes.errorbar(
            places + shift, means, errors, fmt="none", color=INK, elinewidth=1, capsize=2.5
        )
        for place, mean, top in zip(places + shift, means, intervals[:, 2], strict=True):
            axes.annotate(
                f"{mean:.1f}", (place, top), (0, 3), textcoords="offset points", ha="center",
                fontsize=8, color=INK,
            )  # fmt: skip
    axes.set_xticks(places, list(names))
    show_percent(axes)
    legend_below(axes, 2, gap=0.1)


def draw_curves(
    axes: Axes,
    curves: Sequence[Mapping[int, float]],
    name: str,
    index: int,
    band: np.ndarray | None = None,
) -> None:
    """Draws one condition: its seeds thinly, their mean, and a band.

    Args:
      axes: of all conditions.
      curves: values by step, one per seed.
      name: in the legend.
      index: of the condition, which gives colour and line style.
      band: [n, 4] steps, means and ends of intervals; None: from the lowest seed to the
        highest, at the steps that all seeds have.
    """
    # Steps that all seeds have: under equal wall clock some get further than others.
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if not steps:
        return
    colour, style = colour_of(index), LINE_STYLES[index % len(LINE_STYLES)]
    values = np.array([[curve[step] for step in steps] for curve in curves])
    if band is None:
        band = np.column_stack([steps, values.mean(0), values.min(0), values.max(0)])
    axes.fill_between(band[:, 0], band[:, 2], band[:, 3], color=colour, alpha=0.15, linewidth=0)
    axes.plot(band[:, 0], band[:, 1], style, color=colour, linewidth=1.8, label=name)
    if len(curves) > 1:
        axes.plot(steps, values.T, color=colour, linewidth=0.6, alpha=0.55)


def draw_gains(
    axes: Axes, gains: Mapping[str, np.ndarray], seeds: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> None:  # fmt: skip
    """Draws final gains in points, a row per condition.

    Args:
      axes: where.
      gains: [3] mean and interval over seeds and problems by condition: a diamond.
      seeds: [num_seeds, 3] of each seed over problems: dots.
      names: of all conditions, in order; those without a gain are left out.
    """
    prepare(axes, "points")
    axes.axvline(0, color=INK, alpha=0.6, linewidth=1)
    axes.grid(axis="y", visible=False)
    shown = [name for name in names if name in gains]
    for row, name in enumerate(shown):
        colour = colour_of(names.index(name))
        mean, ends = means_and_errors(gains[name][None])
        # The mean stands above its seeds, so that it hides none of them.
        axes.errorbar(mean, [row - 0.3], xerr=ends, fmt="D", color=colour, ms=6, lw=1.8)
        axes.annotate(
            f"{mean[0]:+.1f}", (gains[name].max(), row - 0.3), (7, 0),
            textcoords="offset points", va="center", fontsize=8.5, color=INK,
        )  # fmt: skip
        heights = np.linspace(row - 0.08, row + 0.3, len(seeds[name]))
        means, errors = means_and_errors(seeds[name])
        axes.errorbar(
            means, heights, xerr=errors, fmt="o", color=colour, ms=3.5, lw=1, alpha=0.75
        )
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.5, -0.7)  # the first condition on top
    axes.margins(x=0.14)


def colour_of(index: int) -> str:
    """The colour of a condition, by its place."""
    return COLOURS[index % len(COLOURS)]


def integer_steps(axes: Axes) -> None:
    """Ticks at whole steps."""
    locator = MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    axes.xaxis.set_major_locator(locator)


def keep_room(axes: Axes, steps: np.ndarray) -> None:
    """Gives a single step room on each side."""
    if len(set(steps)) == 1:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)


def show_percent(axes: Axes) -> None:
    """An axis from 0 to 100, with room above for the number of a bar that is full."""
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.spines["left"].set_bounds(0, 100)


def legend(axes: Axes, num_columns: int = 1) -> None:
    """A legend where it hides least."""
    axes.legend(frameon=False, fontsize=8.5, ncols=num_columns, labelcolor=INK)


def legend_below(axes: Axes, num_entries: int, *, gap: float = 0.22) -> None:
    """A legend under the axes, and so off what is drawn."""
    num_columns = num_entries if num_entries <= 4 else -(-num_entries // 2)
    axes.legend(
        frameon=False, fontsize=8.5, ncols=num_columns, labelcolor=INK,
        loc="upper center", bbox_to_anchor=(0.5, -gap), handlelength=1, columnspacing=1.2,
    )  # fmt: skip


def triple(value: Any) -> tuple[float, float, float]:
    """(mean, low, high) of an interval's dict, or of a number without one."""
    if isinstance(value, dict):
        return value["mean"], value["low"], value["high"]
    return value, value, value


def means_and_errors(intervals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns means [n] and distances [2, n] to the ends, of intervals [n, 3]."""
    means, low, high = intervals.T
    return means, np.maximum(0, [means - low, high - means])
