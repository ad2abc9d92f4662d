# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs conditions against each other over seeds, at equal tokens and at equal time.

    python -m stepalign_jax.compare --config tiny --conditions grpo,refsol,stepalign --seeds 3
    python -m stepalign_jax.compare --configs stepalign,refsol,grpo --seeds 3 --workers 1

Conditions are variants of one config, as in the first line, or configs of their own.
`runs/compare.py` says how the runs are made.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.cli import ALL_SECTIONS, parse_arguments, run_command
from stepalign_jax.config.load import split_spec
from stepalign_jax.feedback.contexts import get_condition
from stepalign_jax.report.plots import plot_comparison
from stepalign_jax.report.tables import comparison_markdown, comparison_table
from stepalign_jax.runs.compare import (
    Contender,
    available_cores,
    compare,
    of_conditions,
    of_configs,
)


def _contenders(arguments: argparse.Namespace) -> tuple[str, list[Contender]]:
    """A title, and what the arguments name."""
    if bool(arguments.configs) == bool(arguments.config or arguments.conditions):
        raise UserError("name what to compare: --config with --conditions, or --configs alone")
    if arguments.configs:
        return "", of_configs(arguments.configs.split(","))
    if not (arguments.config and arguments.conditions):
        raise UserError("--config and --conditions go together: --conditions are its variants")
    conditions = [get_condition(name).name for name in arguments.conditions.split(",")]
    for condition in conditions:
        if conditions.count(condition) > 1:
            raise UserError(f"--conditions names {condition} twice; name each of them once.")
    path, regime = split_spec(arguments.config)
    return regime or Path(path).stem, of_conditions(arguments.config, conditions)


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.split("=")[0]
        if key in ("--condition", "--name", "--seed"):
            raise UserError(
                f"{key} differs between the runs of a comparison and cannot be set for all "
                "of them: leave it out (--conditions, --configs and --seeds choose the runs)."
            )


def main(argv: list[str]) -> None:
    """Compares, and prints the table."""
    arguments = parse_arguments(
        argv,
        description="Compares conditions over seeds, at equal tokens and at equal time.",
        example="python -m stepalign_jax.compare --config tiny "
        "--conditions grpo,refsol,stepalign --seeds 3\n"
        "  python -m stepalign_jax.compare --configs stepalign,refsol,grpo --seeds 3",
        options={
            "--conditions": {"metavar": "A,B,...", "help": "variants of --config to compare"},
            "--configs": {"metavar": "A,B,...", "help": "or whole configs, as for --config"},
            "--seeds": {"type": int, "required": True, "metavar": "N", "help": "seeds 0..N-1"},
            "--equal-tokens-only": {
                "action": "store_true",
                "help": "leave the variant of equal wall clock out",
            },
            "--workers": {
                "type": int,
                "default": len(available_cores()),
                "metavar": "N",
                "help": "runs at a time (default: one per core; give 1 on an accelerator)",
            },
        },
        sections=ALL_SECTIONS,
        config="optional",
    )
    if arguments.seeds < 1 or arguments.workers < 1:
        raise UserError("--seeds and --workers must be 1 or more.")
    _check_overrides(arguments.overrides)
    title, contenders = _contenders(arguments)
    comparison, directory = compare(
        contenders,
        arguments.overrides,
        arguments.seeds,
        arguments.workers,
        title=title,
        equal_time=not arguments.equal_tokens_only,
    )
    (directory / "comparison.md").write_text(comparison_markdown(comparison), encoding="utf-8")
    plot_comparison(comparison, directory / "comparison.png")
    print(comparison_table(comparison))
    print(f"files: {directory}")


if __name__ == "__main__":
    run_command(main)
