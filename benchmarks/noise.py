# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What do bad critiques cost? The gain of training, by the share that was spoilt on purpose.

    python -m benchmarks.noise --comparison noise/*/comparison-*/comparison.json \\
        --to docs/images/noise-easy.png --data docs/data/noise-easy.json

Each comparison holds one condition, trained with `--critiques.noise_share` and
`--critiques.noise` as its own overrides say; one without them is the share 0 of every kind.
"""

from typing import Any, NamedTuple

from benchmarks.gains import draw_gains, in_points, overrides_of, request
from benchmarks.plots import plt, save
from stepalign_jax.base.files import write_json
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
    asked = request(
        argv,
        program="benchmarks.noise",
        description=__doc__,
        place_of=level_of,
        named=lambda level: f"level {str(level)!r}",
    )
    gains = {
        level: comparison["gains"][EQUAL_TOKENS][CONDITION]["avg_at_k"]
        for level, comparison in asked.comparisons.items()
    }
    print("| critiques spoilt | gain in Avg@12 |\n|---|---|")
    for level, gain in gains.items():
        print(f"| {level} | {in_points(gain)} |")
    if asked.data:
        write_json(asked.data, {str(level): gain for level, gain in gains.items()})
    figure, axes = plt.subplots(figsize=(8, 4.2))
    lines = sorted({(level.kind, level.checked) for level in gains})
    for index, (kind, checked) in enumerate(lines):
        # A little apart, so that no interval hides another.
        shown = {
            100 * level.share + (0.8 * (index - (len(lines) - 1) / 2) if kind else 0): gain
            for level, gain in gains.items()
            if (level.kind, level.checked) == (kind, checked)
        }
        label = (kind or "none") + (", checked" if checked else "")
        draw_gains(axes, shown, label=label, look="--s" if checked else "-o")
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set(xlabel="critiques spoilt, percent", ylabel="gain in Avg@12, points")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, asked.figure)


if __name__ == "__main__":
    main()
