# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs conditions against each other over seeds, at equal tokens and at equal time.

    python -m stepalign_jax.compare --config configs/tiny.py \\
        --conditions grpo,refsol,stepalign --seeds 3

`runs/compare.py` says how the runs are made.
"""

from collections.abc import Sequence

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.cli import ALL_SECTIONS, parse_arguments, run_command
from stepalign_jax.feedback.contexts import get_condition
from stepalign_jax.report.plots import plot_comparison
from stepalign_jax.report.tables import comparison_markdown
from stepalign_jax.runs.compare import available_cores, compare


def _check_request(conditions: Sequence[str], overrides: Sequence[str]) -> None:
    for condition in conditions:
        if conditions.count(condition) > 1:
            raise UserError(f"--conditions names {condition} twice; name each of them once.")
    for override in overrides:
        key = override.split("=")[0]
        if key in ("--condition", "--name", "--seed"):
            raise UserError(
                f"{key} differs between the runs of a comparison and cannot be set for all "
                "of them: leave it out (--conditions and --seeds choose the runs)."
            )


def main(argv: list[str]) -> None:
    """Compares, and prints the table."""
    arguments = parse_arguments(
        argv,
        description="Compares conditions over seeds, at equal tokens and at equal time.",
        example="python -m stepalign_jax.compare --config configs/tiny.py "
        "--conditions grpo,refsol,stepalign --seeds 3",
        options={
            "--conditions": {"required": True, "metavar": "A,B,...", "help": "what to compare"},
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
    )
    conditions = [get_condition(name).name for name in arguments.conditions.split(",")]
    if arguments.seeds < 1 or arguments.workers < 1:
        raise UserError("--seeds and --workers must be 1 or more.")
    _check_request(conditions, arguments.overrides)
    comparison, directory = compare(
        arguments.config,
        arguments.overrides,
        conditions,
        arguments.seeds,
        arguments.workers,
        equal_time=not arguments.equal_tokens_only,
    )
    table = comparison_markdown(comparison)
    (directory / "comparison.md").write_text(table, encoding="utf-8")
    plot_comparison(comparison, directory / "comparison.png")
    print(table)
    print(f"files: {directory}")


if __name__ == "__main__":
    run_command(main)
