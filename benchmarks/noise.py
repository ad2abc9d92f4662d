# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What do bad critiques cost? The gain of training, by the share that was spoilt on purpose.

    python -m benchmarks.noise --comparison noise/*/comparison-*/comparison.json \\
        --to docs/images/noise-easy.png --data docs/data/noise-easy.json

Each comparison holds one condition, trained with `--critiques.noise_share` and
`--critiques.noise` as its own overrides say; one without them is the share 0 of every kind.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gains import draw_gains, in_points, overrides_of
from benchmarks.plots import plt, save
from stepalign_jax.base.files import read_json_object, write_json
from stepalign_jax.runs.cells import EQUAL_TOKENS

CONDITION = "stepalign"


class Level(NamedTuple):
    """How critiques were spoilt: one kind, a share of them, and whether they were checked."""

    kind: str  # of config.schema.Noise; "" is none
    share: float
    checked: bool

    def __str__(self) -> str:
        if not self.kind:
            return "none"
        return f"{self.kind} {self.share:g}" + (", checked" if self.checked else "")


def level_of(comparison: dict[str, Any]) -> Level:
    """Returns the level that a comparison's overrides name."""
    given = overrides_of(comparison)
    share = float(given.get("critiques.noise_share", 0))
    kind = given.get("critiques.noise", "wrong_verdict") if share else ""
    return Level(kind, share, bool(given.get("critiques.checks")))


def main(argv: list[str] | None = None) -> None:
    """Prints a row per level, and draws the gain over the share, a line per kind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise", description=__doc__)
    parser.add_argument("--comparison", required=True, nargs="+", metavar="JSON")
    parser.add_argument("--to", required=True, metavar="PNG")
    parser.add_argument("--data", metavar="JSON", help="gains by level, as shares")
    arguments = parser.parse_args(argv)
    gains: dict[Level, dict[str, float]] = {}
    for path in arguments.comparison:
        comparison = read_json_object(Path(path))
        level = level_of(comparison)
        if level in gains:
            parser.error(f"{path} has the level {str(level)!r} of another comparison.")
        gains[level] = comparison["gains"][EQUAL_TOKENS][CONDITION]["avg_at_k"]
    print("| critiques spoilt | gain in Avg@12 |\n|---|---|")
    for level, gain in sorted(gains.items()):
        print(f"| {level} | {in_points(gain)} |")
    if arguments.data:
        write_json(Path(arguments.data), {str(level): gains[level] for level in sorted(gains)})
    figure, axes = plt.subplots(figsize=(8, 4.2))
    lines = sorted({(level.kind, level.checked) for level in gains})
    for index, (kind, checked) in enumerate(lines):
        # A little apart, so that no interval hides another.
        shown = {
            100 * level.share + (0.8 * (index - (len(lines) - 1) / 2) if kind else 0): gain
            for level, gain in sorted(gains.items())
            if (level.kind, level.checked) == (kind, checked)
        }
        label = (kind or "none") + (", checked" if checked else "")
        draw_gains(axes, shown, label=label, look="--s" if checked else "-o")
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set(xlabel="critiques spoilt, percent", ylabel="gain in Avg@12, points")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, Path(arguments.to))


if __name__ == "__main__":
    main()
