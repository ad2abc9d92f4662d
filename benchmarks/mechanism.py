# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Does a context that localises the error better teach more? A point per condition.

    python -m benchmarks.mechanism --to docs/images/mechanism.png \\
        --pair analysis/tiny/analysis.json runs/comparison-a/comparison.json

A comparison says how much training under a context gained; an analysis of its base says, of the
same context, where the advantage fell before any training. `--pair` may be given again, for an
analysis of other critiques (`--critiques.noise`) or of another base. The rank correlation is
over all points, and its interval resamples them: with ten of them it is wide.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.noise import level_of
from benchmarks.plots import plt, save
from stepalign_jax.analysis.ranks import clustered_interval, spearman
from stepalign_jax.base.files import read_json_object
from stepalign_jax.evaluation.statistics import Interval
from stepalign_jax.runs.cells import EQUAL_TOKENS

# Measures of `analysis.localisation`, whose own words are too long for a column.
SHOWN = {
    "auroc": "AUROC of the error",
    "abs_first": "share of |A| in the error",
    "false_blame_correct": "false blame, right rollouts",
    "copied_head": "words that the context begins with",
}
NUM_RESAMPLES = 2000


class Point(NamedTuple):
    """One context: what its base says of it in percent, and what training under it gained."""

    name: str
    measures: dict[str, float]
    gain: float  # points of Avg@k


def correlation(x: np.ndarray, y: np.ndarray) -> Interval:
    """Spearman's rank correlation with a 95 % percentile bootstrap interval over points."""
    return clustered_interval(
        lambda rows: spearman(x[rows], y[rows]),
        np.arange(len(x)),
        num_resamples=NUM_RESAMPLES,
        confidence=0.95,
        seed=0,
    )


def points(analysis: Path, comparisons: list[Path]) -> list[Point]:
    """Returns a point per context that both the analysis and a comparison know."""
    known, found = read_json_object(analysis)["contexts"], {}
    for path in comparisons:
        comparison = read_json_object(path)
        level = level_of(comparison)
        for name, scores in comparison["gains"][EQUAL_TOKENS].items():
            if name in known and name not in found:
                measures = {key: 100 * known[name][key]["mean"] for key in SHOWN}
                label = f"{name}, {level}" if level.kind else name
                found[name] = Point(label, measures, 100 * scores["avg_at_k"]["mean"])
    return [*found.values()]


def main(argv: list[str] | None = None) -> None:
    """Prints a table and the correlations, and draws a panel per measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mechanism", description=__doc__)
    parser.add_argument(
        "--pair", required=True, nargs="+", action="append", type=Path, metavar="JSON",
        help="an analysis, and the comparisons that it is of",
    )  # fmt: skip
    parser.add_argument("--to", required=True, metavar="PNG")
    arguments = parser.parse_args(argv)
    found = [point for analysis, *rest in arguments.pair for point in points(analysis, rest)]
    found.sort(key=lambda point: -point.gain)
    if len(found) < 3:
        sys.exit(f"error: only {len(found)} condition(s) stand in both; give more comparisons.")
    gains = np.array([point.gain for point in found])
    print("| | context | gain in Avg@12 | " + " | ".join(SHOWN.values()) + " |")
    print("|---" * (len(SHOWN) + 3) + "|")
    for number, point in enumerate(found, start=1):
        shown = " | ".join(f"{point.measures[key]:.1f}" for key in SHOWN)
        print(f"| {number} | {point.name} | {point.gain:+.1f} | {shown} |")
    figure, every = plt.subplots(2, 2, figsize=(9, 8), sharey=True)
    for axes, key in zip(every.flat, SHOWN, strict=True):
        values = np.array([point.measures[key] for point in found])
        rho = correlation(values, gains)
        # Points may lie on each other: their numbers stand in a row beside the first of them.
        axes.scatter(values, gains, alpha=0.6)
        for (x, y), numbers in _together(values, gains).items():
            text = " ".join(map(str, numbers))
            axes.annotate(text, (x, y), (4, 3), textcoords="offset points", fontsize=8)
        title = f"Spearman {rho.mean:+.2f} [{rho.low:+.2f}, {rho.high:+.2f}]"
        print(f"\n{SHOWN[key]}: {title}")
        axes.set(xlabel=f"{SHOWN[key]}, percent (base)", title=title)
        axes.margins(x=0.12)
    for axes in every[:, 0]:
        axes.set_ylabel("gain in Avg@12, points")
    names = "\n".join(f"{number}  {point.name}" for number, point in enumerate(found, start=1))
    figure.text(1.0, 0.5, names, va="center", fontsize=9)
    save(figure, Path(arguments.to))


def _together(x: np.ndarray, y: np.ndarray) -> dict[tuple[float, float], list[int]]:
    """Returns the points' numbers from 1 on, by the first point that each lies upon."""
    near = 0.04 * np.array([np.ptp(x) or 1.0, np.ptp(y) or 1.0])
    groups: dict[tuple[float, float], list[int]] = {}
    for number, place in enumerate(zip(x.tolist(), y.tolist(), strict=True), start=1):
        first = next((g for g in groups if (abs(np.subtract(g, place)) < near).all()), place)
        groups.setdefault(first, []).append(number)
    return groups


if __name__ == "__main__":
    main()
