# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where does a binary reward suffice? The gain of each condition, by the reasoning steps asked.

    python -m benchmarks.chain_length --comparison chain/*/comparison-*/comparison.json \\
        --to docs/images/chain-length.png --data docs/data/chain-length.json

Each comparison is of the same conditions on problems of one number of reasoning steps: its
overrides give `--problems.min_reasoning_steps` and `--problems.max_reasoning_steps` alike.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.gains import draw_gains, in_points, overrides_of
from benchmarks.plots import plt, save
from stepalign_jax.base.files import read_json_object, write_json
from stepalign_jax.runs.cells import EQUAL_TOKENS


def length_of(comparison: dict[str, Any]) -> int | None:
    """Returns the number of reasoning steps that a comparison asks; None if it varies."""
    given = overrides_of(comparison)
    ends = {given.get(f"problems.{end}_reasoning_steps") for end in ("min", "max")}
    end = ends.pop()
    return None if ends or end is None else int(end)


def _before(comparison: dict[str, Any]) -> float:
    """Returns Avg@12 of the base, the mean over all runs' draws, as a share."""
    runs = [run for runs in comparison["variants"][EQUAL_TOKENS].values() for run in runs]
    return sum(run["summary"]["before"]["avg_at_k"]["mean"] for run in runs) / len(runs)


def main(argv: list[str] | None = None) -> None:
    """Prints a row per length, and draws the gain over it, a line per condition."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chain_length", description=__doc__
    )
    parser.add_argument("--comparison", required=True, nargs="+", metavar="JSON")
    parser.add_argument("--to", required=True, metavar="PNG")
    parser.add_argument("--data", metavar="JSON", help="what is drawn, as shares")
    arguments = parser.parse_args(argv)
    found: dict[int, dict[str, Any]] = {}
    for path in arguments.comparison:
        comparison = read_json_object(Path(path))
        length = length_of(comparison)
        if length is None:
            parser.error(f"{path} is of no single number of reasoning steps.")
        if length in found:
            parser.error(f"{path} has the {length} reasoning steps of another comparison.")
        found[length] = {
            "base": _before(comparison),
            "gains": {
                label: gain["avg_at_k"]
                for label, gain in comparison["gains"][EQUAL_TOKENS].items()
            },
            "less": {
                label: {"of": comparison["labels"][0], **difference["avg_at_k"]}
                for label, difference in comparison["differences"][EQUAL_TOKENS].items()
            },
        }
    found = dict(sorted(found.items()))
    first = next(iter(found.values()))
    labels, others = [*first["gains"]], [*first["less"]]
    heads = ["base Avg@12", *(f"gain of {label}" for label in labels)]
    heads += [f"{first['less'][other]['of']} less {other}" for other in others]
    print("| reasoning steps | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
    for length, value in found.items():
        cells = [f"{100 * value['base']:.1f}"]
        cells += [in_points(value["gains"][label]) for label in labels]
        cells += [in_points(value["less"][other]) for other in others]
        print(f"| {length} | " + " | ".join(cells) + " |")
    if arguments.data:
        write_json(
            Path(arguments.data), {str(length): value for length, value in found.items()}
        )
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for label in labels:
        gains = {float(length): value["gains"][label] for length, value in found.items()}
        draw_gains(axes, gains, label=label)
    axes.plot(
        [*found], [100 * value["base"] for value in found.values()], ":k", label="base, Avg@12"
    )
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set(xlabel="reasoning steps", ylabel="points; percent for the base")
    axes.set_xticks([*found])
    axes.legend()
    save(figure, Path(arguments.to))


if __name__ == "__main__":
    main()
