# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where does a binary reward suffice? The gain of each condition, by the reasoning steps asked.

    python -m benchmarks.chain_length --comparison chain/*/comparison-*/comparison.json \\
        --to docs/images/chain-length.png --data docs/data/chain-length.json

Each comparison is of the same conditions on problems of one number of reasoning steps: its
overrides give `--problems.min_reasoning_steps` and `--problems.max_reasoning_steps` alike.
"""

from typing import Any

from benchmarks.gains import draw_gains, in_points, overrides_of, request
from benchmarks.plots import plt, save
from stepalign_jax.base.files import write_json
from stepalign_jax.runs.cells import EQUAL_TOKENS


def length_of(comparison: dict[str, Any]) -> int:
    """Returns the number of reasoning steps that a comparison asks.

    Raises:
      ValueError: it asks none, or several.
    """
    given = overrides_of(comparison)
    ends = {given.get(f"problems.{end}_reasoning_steps") for end in ("min", "max")}
    end = ends.pop()
    if ends or end is None:
        raise ValueError("is of no single number of reasoning steps.")
    return int(end)


def _before(comparison: dict[str, Any]) -> float:
    """Returns Avg@12 of the base, the mean over all runs' draws, as a share."""
    runs = [run for runs in comparison["variants"][EQUAL_TOKENS].values() for run in runs]
    return sum(run["summary"]["before"]["avg_at_k"]["mean"] for run in runs) / len(runs)


def main(argv: list[str] | None = None) -> None:
    """Prints a row per length, and draws the gain over it, a line per condition."""
    asked = request(
        argv,
        program="benchmarks.chain_length",
        description=__doc__,
        place_of=length_of,
        named=lambda length: f"{length} reasoning steps",
    )
    found = {
        length: {
            "base": _before(comparison),
            "gains": {
                label: gain["avg_at_k"]
                for label, gain in comparison["gains"][EQUAL_TOKENS].items()
            },
            "less": {
                f"{comparison['labels'][0]} less {label}": difference["avg_at_k"]
                for label, difference in comparison["differences"][EQUAL_TOKENS].items()
            },
        }
        for length, comparison in asked.comparisons.items()
    }
    first = next(iter(found.values()))
    heads = ["base Avg@12", *(f"gain of {label}" for label in first["gains"]), *first["less"]]
    print("| reasoning steps | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
    for length, value in found.items():
        cells = [f"{100 * value['base']:.1f}"]
        cells += [in_points(value["gains"][label]) for label in first["gains"]]
        cells += [in_points(value["less"][pair]) for pair in first["less"]]
        print(f"| {length} | " + " | ".join(cells) + " |")
    if asked.data:
        write_json(asked.data, {str(length): value for length, value in found.items()})
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for label in first["gains"]:
        gains = {float(length): value["gains"][label] for length, value in found.items()}
        draw_gains(axes, gains, label=label)
    axes.plot(
        [*found], [100 * value["base"] for value in found.values()], ":k", label="base, Avg@12"
    )
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set(xlabel="reasoning steps", ylabel="points; percent for the base")
    axes.set_xticks([*found])
    axes.legend()
    save(figure, asked.figure)


if __name__ == "__main__":
    main()
