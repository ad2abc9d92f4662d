# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Does a context that localises the error better teach more? A point per condition.

    python -m benchmarks.mechanism --analysis analysis/tiny/analysis.json \\
        --comparison runs/comparison-a/comparison.json --to docs/images/mechanism.png

A comparison says how much training under a context gained; an analysis of the base says, of the
same context, where its advantage fell before any training. The rank correlation is over the
contexts that both know, and its interval resamples contexts: with ten of them it is wide.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plots import plt, save
from stepalign_jax.analysis.localisation import MEASURES
from stepalign_jax.analysis.ranks import clustered_interval, spearman
from stepalign_jax.base.files import read_json_object
from stepalign_jax.evaluation.statistics import Interval
from stepalign_jax.runs.cells import EQUAL_TOKENS

SHOWN = ("auroc", "abs_first", "false_blame_correct", "copied_head")
NUM_RESAMPLES = 2000


def correlation(x: np.ndarray, y: np.ndarray) -> Interval:
    """Spearman's rank correlation with a 95 % percentile bootstrap interval over points."""
    return clustered_interval(
        lambda rows: spearman(x[rows], y[rows]),
        np.arange(len(x)),
        num_resamples=NUM_RESAMPLES,
        confidence=0.95,
        seed=0,
    )


def points(
    analysis: dict[str, Any], comparisons: list[dict[str, Any]]
) -> dict[str, tuple[dict[str, Any], dict[str, float]]]:
    """Returns by condition: its measures in the analysis, and its gain in Avg@k."""
    gains: dict[str, dict[str, float]] = {}
    for comparison in comparisons:
        for label, scores in comparison["gains"][EQUAL_TOKENS].items():
            gains.setdefault(label, scores["avg_at_k"])
    known = analysis["contexts"]
    return {name: (known[name], gain) for name, gain in gains.items() if name in known}


def main(argv: list[str]) -> None:
    """Prints a table and the correlations, and draws a panel per measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mechanism", description=__doc__)
    parser.add_argument("--analysis", required=True, metavar="JSON")
    parser.add_argument("--comparison", required=True, nargs="+", metavar="JSON")
    parser.add_argument("--to", required=True, metavar="PNG")
    arguments = parser.parse_args(argv)
    found = points(
        read_json_object(Path(arguments.analysis)),
        [read_json_object(Path(path)) for path in arguments.comparison],
    )
    if len(found) < 3:
        sys.exit(f"error: only {len(found)} condition(s) stand in both; give more comparisons.")
    gains = np.array([100 * gain["mean"] for _, gain in found.values()])
    figure, every = plt.subplots(1, len(SHOWN), figsize=(4.2 * len(SHOWN), 3.8), sharey=True)
    print("| context | gain in Avg@12 | " + " | ".join(MEASURES[key] for key in SHOWN) + " |")
    print("|---" * (len(SHOWN) + 2) + "|")
    for (name, (measures, _)), gain in zip(found.items(), gains, strict=True):
        shown = " | ".join(f"{100 * measures[key]['mean']:.1f}" for key in SHOWN)
        print(f"| {name} | {gain:+.1f} | {shown} |")
    for axes, key in zip(every, SHOWN, strict=True):
        values = np.array([100 * measures[key]["mean"] for measures, _ in found.values()])
        rho = correlation(values, gains)
        axes.scatter(values, gains)
        for name, x, y in zip(found, values, gains, strict=True):
            axes.annotate(name, (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
        title = f"Spearman {rho.mean:+.2f} [{rho.low:+.2f}, {rho.high:+.2f}]"
        print(f"\n{key}: {title}")
        axes.set(xlabel=f"{key}, percent (base)", title=title)
    every[0].set_ylabel("gain in Avg@12, points")
    save(figure, Path(arguments.to))


if __name__ == "__main__":
    main(sys.argv[1:])
