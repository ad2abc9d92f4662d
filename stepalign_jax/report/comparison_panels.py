# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What there is to draw of a comparison; `tables.py` describes its dict."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from stepalign_jax.evaluation.words import percent
from stepalign_jax.report import panels
from stepalign_jax.report.run_panels import Panel
from stepalign_jax.report.tables import VARIANTS

_NOTHING = "nothing was measured"
_WINDOW = 5  # optimizer steps over which the critic's exactness is averaged


def comparison_panels(comparison: Mapping[str, Any]) -> dict[str, list[Panel]]:
    """Returns three panels by variant: learning curves, the critic, final gains.

    A variant or a condition without a cell is left out.
    """
    return {
        variant: [
            _curves(comparison, variant, conditions),
            _critic(comparison, variant, conditions),
            _gains(comparison, variant, conditions),
        ]
        for variant, conditions in comparison["variants"].items()
        if conditions
    }


def _curves(comparison: Mapping[str, Any], variant: str, conditions: Any) -> Panel:
    """Validation by step: each seed, the mean over seeds, and its interval if it is known."""
    bands = comparison.get("curves", {}).get(variant, {})
    lines = {
        name: [{int(step): 100 * value for step, value in seed["curve"]} for seed in seeds]
        for name, seeds in conditions.items()
    }
    shown = {
        name: 100 * np.array(band) * [0.01, 1, 1, 1] for name, band in bands.items() if band
    }
    title = f"{_title(variant)}: validation Avg@k (%)"
    ends = {
        name: f"{shown[name][-1, 1]:.1f} [{shown[name][-1, 2]:.1f}, {shown[name][-1, 3]:.1f}] "
        f"at step {shown[name][-1, 0]:.0f}"
        if name in shown
        else _ends(curves)
        for name, curves in lines.items()
    }
    what = (
        "bands are intervals over seeds and problems"
        if shown
        else "bands go from the lowest seed to the highest"
    )
    draw = partial(_draw_curves, names=comparison["labels"], lines=lines, bands=shown)
    words = f"{title} by optimizer step, mean over seeds; {what}. At the end: {_list(ends)}."
    return Panel(f"{variant}_curves", title, words, draw, 5.2, 3.6)


def _draw_curves(
    axes: Axes, *, names: Sequence[str], lines: Mapping[str, list[dict[int, float]]],
    bands: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    panels.prepare(axes, "optimizer step")
    panels.integer_steps(axes)
    for index, name in enumerate(names):
        panels.draw_curves(axes, lines.get(name, []), name, index, bands.get(name))
    if axes.lines:
        panels.legend(axes, 2 if len(names) > 4 else 1)
    else:
        axes.text(0.5, 0.5, _NOTHING, transform=axes.transAxes, ha="center")
        axes.set_yticks([])


def _critic(comparison: Mapping[str, Any], variant: str, conditions: Any) -> Panel:
    """The critic's exactness on wrong rollouts, averaged over windows of steps."""
    lines = {
        name: [
            {step: 100 * value for step, value in windows(seed["critic_exactness"]).items()}
            for seed in seeds
        ]
        for name, seeds in conditions.items()
    }
    ends = {name: _ends(curves) for name, curves in lines.items() if any(curves)}
    title = f"{_title(variant)}: critic exact on wrong rollouts (%)"
    draw = partial(_draw_curves, names=comparison["labels"], lines=lines, bands={})
    words = (
        f"{title} by optimizer step, over windows of {_WINDOW} steps; bands go from the lowest "
        f"seed to the highest. At the end: {_list(ends) or _NOTHING}."
    )
    return Panel(f"{variant}_critic", title, words, draw, 5.2, 3.6)


def _gains(comparison: Mapping[str, Any], variant: str, conditions: Any) -> Panel:
    """The final gains, of all seeds together and of each."""
    found = {n: comparison["gains"][variant][n]["avg_at_k"] for n in conditions}
    seeds = {
        name: 100 * np.array([panels.triple(s["summary"]["gain"]["avg_at_k"]) for s in each])
        for name, each in conditions.items()
    }
    gains = {name: 100 * np.array(panels.triple(gain)) for name, gain in found.items()}
    title = f"{_title(variant)}: gain in Avg@{comparison['k']} (points)"
    told = {n: percent(found[n], signed=True) for n in comparison["labels"] if n in found}
    words = (
        f"{title}: a diamond for all seeds, with its interval over seeds and problems; a dot "
        f"for each seed. {_list(told)}."
    )
    draw = partial(panels.draw_gains, gains=gains, seeds=seeds, names=comparison["labels"])
    height = max(3.6, 1.2 + 0.45 * len(found))
    return Panel(f"{variant}_gains", title, words, draw, 5.2, height)


def windows(points: Sequence[Any], width: int = _WINDOW) -> dict[int, float]:
    """Window's last step -> mean of each window of `width` points, empty ones left out."""
    means = {}
    for start in range(0, len(points), width):
        window = points[start : start + width]
        values = [value for _, value in window if value is not None]
        if values:
            means[window[-1][0]] = float(np.mean(values))
    return means


def _title(variant: str) -> str:
    return str(VARIANTS.get(variant, variant))


def _ends(curves: Sequence[Mapping[int, float]]) -> str:
    """Where the seeds of one condition end, in words."""
    last = [curve[max(curve)] for curve in curves if curve]
    if not last:
        return "no number"
    return f"{np.mean(last):.1f} (seeds {min(last):.1f} to {max(last):.1f})"


def _list(parts: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {words}" for name, words in parts.items())
