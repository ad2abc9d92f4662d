# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs conditions against each other over seeds, at equal tokens and at equal time.

    python -m stepalign_jax.compare --config tiny --conditions grpo,refsol,stepalign --seeds 3
    python -m stepalign_jax.compare --configs stepalign,refsol,grpo --seeds 3 --workers 1
    python -m stepalign_jax.compare ... --cells grpo:0,stepalign:2     (these alone, here)
    python -m stepalign_jax.compare ... --collect-only                 (what there is)
    python -m stepalign_jax.compare ... --again grpo:0                 (the same digits?)

Conditions are variants of one config, as in the first line, or configs of their own.
docs/compare.md says how cells are made, moved and put together.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.cli import ALL_SECTIONS, parse_arguments, run_command
from stepalign_jax.config.load import split_spec
from stepalign_jax.feedback.contexts import get_condition
from stepalign_jax.report.comparison_page import write_comparison_report
from stepalign_jax.report.plots import plot_comparison
from stepalign_jax.report.tables import comparison_markdown, comparison_table
from stepalign_jax.runs.cells import parse_cell_names
from stepalign_jax.runs.compare import Comparison
from stepalign_jax.runs.jobs import Contender, available_cores, of_conditions, of_configs


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
        description="Compares conditions over seeds, at equal tokens and at equal time. The "
        "same command again makes what is missing; docs/compare.md says how cells travel.",
        example="python -m stepalign_jax.compare --config tiny "
        "--conditions grpo,refsol,stepalign --seeds 3\n"
        "  python -m stepalign_jax.compare --configs stepalign,refsol,grpo --seeds 3\n"
        "  python -m stepalign_jax.compare --config tiny --conditions grpo,stepalign "
        "--seeds 3 --cells grpo:0,stepalign:2",
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
            "--cells": {
                "metavar": "LABEL:SEED,...",
                "help": "run these alone, of those that are missing; "
                "LABEL:SEED:equal_wall_clock is one of equal time",
            },
            "--collect-only": {
                "action": "store_true",
                "help": "run nothing: the table of what there is, and what is missing",
            },
            "--again": {
                "metavar": "LABEL:SEED",
                "help": "set this cell and its run aside, make it again, and say whether the "
                "digits are the same",
            },
        },
        sections=ALL_SECTIONS,
        config="optional",
    )
    if arguments.seeds < 1 or arguments.workers < 1:
        raise UserError("--seeds and --workers must be 1 or more.")
    if sum(map(bool, (arguments.cells, arguments.collect_only, arguments.again))) > 1:
        raise UserError("--cells, --collect-only and --again exclude each other: give one.")
    _check_overrides(arguments.overrides)
    title, contenders = _contenders(arguments)
    comparison = Comparison(
        contenders,
        arguments.overrides,
        arguments.seeds,
        title=title,
        equal_time=not arguments.equal_tokens_only,
    )
    digits = _make(comparison, arguments)
    results, directory = comparison.results(), comparison.directory
    (directory / "comparison.md").write_text(comparison_markdown(results), encoding="utf-8")
    plot_comparison(results, directory / "comparison.png")
    print(comparison_table(results))
    print(f"{digits}files: {directory}")
    page = directory / "report.html"
    print(f"report: {write_comparison_report(results, page, directory.resolve().name)}")


def _make(comparison: Comparison, arguments: argparse.Namespace) -> str:
    """Makes cells as the arguments say; returns a line on the digits of one made again."""
    labels, seeds, workers = comparison.labels, arguments.seeds, arguments.workers
    if not arguments.again:
        only = arguments.cells and parse_cell_names(arguments.cells, labels, seeds)
        comparison.make(0 if arguments.collect_only else workers, only or None)
        return ""
    names = parse_cell_names(arguments.again, labels, seeds)
    if len(names) > 1:
        raise UserError("--again makes one cell: name one.")
    changed = comparison.again(names[0], workers)
    found = "; ".join(changed) or "none: every digit is the same"
    return f"{names[0]} made again, other digits: {found}\n"


if __name__ == "__main__":
    run_command(main)
