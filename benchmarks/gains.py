# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What several calls of `compare` wrote, as rows of a table and as lines of a figure."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from stepalign_jax.base.files import read_json_object


class Request(NamedTuple):
    """What a command line asks: comparisons by their place in the table, and where to write."""

    comparisons: dict[Any, dict[str, Any]]  # in the order of the places
    figure: Path
    data: Path | None


def request(
    argv: list[str] | None,
    *,
    program: str,
    description: str | None,
    place_of: Callable[[dict[str, Any]], Any],
    named: Callable[[Any], str],
) -> Request:
    """Reads a command line and the comparisons that it names.

    Args:
      argv: the command line; None is the process's own.
      program: the module that is run.
      description: of `--help`.
      place_of: where a comparison belongs; a ValueError says in words why it belongs nowhere.
      named: a place in words.

    Raises:
      SystemExit: a comparison belongs nowhere, or where another does.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--comparison", required=True, nargs="+", type=Path, metavar="JSON")
    parser.add_argument("--to", required=True, type=Path, metavar="PNG")
    parser.add_argument("--data", type=Path, metavar="JSON", help="what is drawn, as shares")
    arguments = parser.parse_args(argv)
    found: dict[Any, dict[str, Any]] = {}
    for path in arguments.comparison:
        comparison = read_json_object(path)
        try:
            place = place_of(comparison)
        except ValueError as error:
            parser.error(f"{path} {error}")
        if place in found:
            parser.error(f"{path} has the {named(place)} of another comparison.")
        found[place] = comparison
    return Request(dict(sorted(found.items())), arguments.to, arguments.data)


def overrides_of(comparison: dict[str, Any]) -> dict[str, str]:
    """Returns the values that a comparison's command line gave, by key."""
    return dict(override.lstrip("-").split("=", 1) for override in comparison["overrides"])


def in_points(gain: dict[str, float]) -> str:
    """Returns a gain and its interval, given as shares, in points."""
    mean, low, high = (100 * gain[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def draw_gains(
    axes: Any, gains: dict[float, dict[str, float]], *, label: str, look: str = "-o"
) -> None:
    """Draws a line of gains in points, with their intervals.

    Args:
      axes: of matplotlib.
      gains: by place on the x axis, `mean`, `low` and `high` as shares.
      label: of the line.
      look: matplotlib's short form of line and marker.
    """
    means = [100 * gain["mean"] for gain in gains.values()]
    errors = [
        [100 * (gain["mean"] - gain["low"]) for gain in gains.values()],
        [100 * (gain["high"] - gain["mean"]) for gain in gains.values()],
    ]
    axes.errorbar([*gains], means, errors, fmt=look, label=label, capsize=2)
