# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run or a comparison came to, as plots; `tables.py` describes the dicts."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.report.tables import SCORES, VARIANTS
from stepalign_jax.runs.directory import RunDirectory

# Names in metrics.jsonl that plot_run looks for, with the titles of their panels.
PANELS = {
    "validation_avg_at_k": "Validation Avg@k (%)",
    "reward": "Reward: share of correct rollouts (%)",
    "loss": "Loss",
    "critic_exact_on_wrong": "Critic exact on wrong rollouts (%)",
}
_SHARES = ("validation_avg_at_k", "reward", "critic_exact_on_wrong")

# Okabe and Ito's palette, told apart with any common colour vision; its yellow is left out,
# which is too pale for a line on white. The line style repeats what the colour says.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#7F7F7F",
)
_LINE_STYLES = ("-", "--", "-.", ":")
_BEFORE, _AFTER = "#9A9A9A", "#0072B2"
_GRID = "#E3E3E3"


def plot_run(run: RunDirectory) -> pathlib.Path:
    """Draws a run to report/run.png: what was measured at each step, then before and after.

    Panels for which the run has no numbers are left out.

    Returns:
      The path of the image.

    Raises:
      UserError: metrics.jsonl or summary.json cannot be read.
    """
    rows = read_jsonl(run.metrics_file) if run.metrics_file.exists() else []
    curves = {name: _column(rows, name) for name in PANELS}
    curves["validation_avg_at_k"] = np.array(run.validation_curve()).reshape(-1, 2)
    curves = {name: points for name, points in curves.items() if len(points)}
    summary = read_json(run.summary_file) if run.summary_file.exists() else None
    num_panels = max(1, len(curves) + (summary is not None))
    num_columns = min(3, num_panels)
    num_rows = -(-num_panels // num_columns)
    figure = Figure(figsize=(4.4 * num_columns, 3.2 * num_rows), layout="constrained")
    figure.suptitle(run.path.resolve().name, fontsize=11, x=0.01, ha="left")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).flat
    for name, points in curves.items():
        panel, is_share = next(axes), name in _SHARES
        _draw_curve(panel, points * [1, 100 if is_share else 1], PANELS[name])
        if is_share:
            _show_percent(panel)
    if summary is not None:
        _draw_before_after(next(axes), summary)
    for unused in axes:
        unused.set_axis_off()
    return _save(figure, run.report / "run.png")


def plot_comparison(comparison: dict[str, Any], path: pathlib.Path) -> pathlib.Path:
    """Draws a comparison: a row per variant with learning curves, the critic, final gains.

    A curve is the mean over seeds, its band goes from the lowest seed to the highest; the
    critic's exactness is averaged over windows of 5 steps first. A final gain is the mean
    over seeds (diamond) with its interval over seeds and problems; each seed has a dot with
    its interval over problems. Conditions without a cell are left out.

    Returns:
      `path`.

    Raises:
      UserError: the image cannot be written.
    """
    variants = comparison["variants"]
    names = comparison["labels"]
    variants = {variant: found for variant, found in variants.items() if found}
    height = max(3.4, 1.4 + 0.42 * len(names))
    figure = Figure(figsize=(14.5, height * len(variants)), layout="constrained")
    axes = figure.subplots(len(variants), 3, squeeze=False, width_ratios=(1.25, 1, 1))
    for (left, middle, right), (variant, conditions) in zip(
        axes, variants.items(), strict=True
    ):
        left.sharey(axes[0, 0])
        middle.sharey(axes[0, 1])
        right.sharex(axes[0, 2])
        title = VARIANTS.get(variant, variant)
        _prepare(left, f"{title}: validation Avg@k (%)", "optimizer step")
        _prepare(middle, f"{title}: critic exact on wrong rollouts (%)", "optimizer step")
        for index, name in enumerate(names):
            seeds = conditions.get(name, [])
            _draw_band(left, [dict(map(tuple, s["curve"])) for s in seeds], name, index)
            _draw_band(middle, [_windows(s["critic_exactness"]) for s in seeds], name, index)
        left.legend(frameon=False, fontsize=8, ncols=2 if len(names) > 4 else 1)
        _prepare(right, f"{title}: gain in Avg@{comparison['k']} (points)", "")
        _draw_gains(right, conditions, comparison["gains"][variant], names)
    return _save(figure, path)


def _column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """Returns [n, 2] (step, value) of the rows that have a value."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return np.array(points, dtype=float).reshape(-1, 2)


def _prepare(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x_label, fontsize=9)
    axes.tick_params(labelsize=8, length=3, color="#808080")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#808080")
    axes.grid(axis="both", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_curve(axes: Axes, points: np.ndarray, title: str) -> None:
    """Draws points [n, 2]; many of them faintly, with their trailing mean on top."""
    _prepare(axes, title, "optimizer step")
    steps, values = points.T
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if len(values) < 30:
        axes.plot(steps, values, color=_AFTER, linewidth=1.6, marker="o", markersize=3.5)
        return
    window = max(5, len(values) // 20)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    axes.plot(steps, values, color=_AFTER, linewidth=0.8, alpha=0.3)
    mean = (sums[ends] - sums[starts]) / (ends - starts)
    axes.plot(steps, mean, color=_AFTER, linewidth=1.8, label=f"mean of last {window} steps")
    axes.legend(frameon=False, fontsize=8)


def _draw_before_after(axes: Axes, summary: dict[str, Any]) -> None:
    _prepare(axes, "Before and after (%), intervals over problems", "")
    axes.grid(axis="x", visible=False)
    keys = [key for key in SCORES if summary["before"].get(key) is not None]
    places = np.arange(len(keys))
    sides = (("before", _BEFORE, -0.2), ("after", _AFTER, 0.2))
    for side, colour, shift in sides:
        intervals = np.array([_triple(summary[side][key]) for key in keys])  # [scores, 3]
        means, errors = _means_and_errors(100 * intervals)
        axes.bar(places + shift, means, 0.36, color=colour, label=side)
        axes.errorbar(
            places + shift,
            means,
            errors,
            fmt="none",
            ecolor="#303030",
            elinewidth=1,
            capsize=2.5,
        )
        for place, mean, top in zip(places + shift, means, 100 * intervals[:, 2], strict=True):
            axes.annotate(
                f"{mean:.1f}",
                (place, top),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    axes.set_xticks(places, [SCORES[key].format(k=summary.get("k", "k")) for key in keys])
    _show_percent(axes)
    below = (0.5, -0.08)  # and so off the bars
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=below)


def _show_percent(axes: Axes) -> None:
    """An axis from 0 to 100, with room above for the number of a bar that is full."""
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.spines["left"].set_bounds(0, 100)


def _triple(value: Any) -> tuple[float, float, float]:
    if isinstance(value, dict):
        return value["mean"], value["low"], value["high"]
    return value, value, value


def _means_and_errors(intervals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns means [n] and distances [2, n] to the ends, of intervals [n, 3]."""
    means, lows, highs = intervals.T
    return means, np.maximum([means - lows, highs - means], 0.0)


def _windows(points: Sequence[Sequence[Any]], width: int = 5) -> dict[int, float]:
    """Returns last step -> mean of each window of `width` points, empty ones left out."""
    means = {}
    for start in range(0, len(points), width):
        window = points[start : start + width]
        values = [value for _, value in window if value is not None]
        if values:
            means[window[-1][0]] = float(np.mean(values))
    return means


def _draw_band(axes: Axes, curves: Sequence[dict[int, float]], name: str, index: int) -> None:
    """Draws the mean of curves {step: share}, and the band from the lowest to the highest."""
    # Steps that all seeds have: under equal wall clock some get further than others.
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if not steps:
        return
    values = 100 * np.array([[curve[step] for step in steps] for curve in curves])
    colour = _COLOURS[index % len(_COLOURS)]
    style = _LINE_STYLES[index % len(_LINE_STYLES)]
    axes.fill_between(
        steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.14, linewidth=0
    )
    axes.plot(steps, values.mean(axis=0), style, color=colour, linewidth=1.7, label=name)


def _draw_gains(
    axes: Axes, conditions: dict[str, Any], over_all: dict[str, Any], names: Sequence[str]
) -> None:
    axes.axvline(0, color="#606060", linewidth=1)
    axes.grid(axis="y", visible=False)
    shown = [name for name in names if name in conditions]
    for row, name in enumerate(shown):
        seeds, colour = conditions[name], _COLOURS[names.index(name) % len(_COLOURS)]
        gains = 100 * np.array([_triple(s["summary"]["gain"]["avg_at_k"]) for s in seeds])
        means, errors = _means_and_errors(gains)
        whole = 100 * np.array([_triple(over_all[name]["avg_at_k"])])
        mean, ends = _means_and_errors(whole)
        # The mean stands above its seeds, so that it hides none of them.
        axes.errorbar(mean, [row - 0.3], xerr=ends, fmt="D", color=colour, ms=6, lw=1.8)
        axes.annotate(
            f"{mean[0]:+.1f}",
            (whole.max(), row - 0.3),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
        heights = np.linspace(row - 0.08, row + 0.3, len(seeds))
        axes.errorbar(
            means, heights, xerr=errors, fmt="o", color=colour, ms=3.5, lw=1, alpha=0.7
        )
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(conditions) - 0.5, -0.5)  # the first condition on top


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}: {error.filename})") from error
    return path
