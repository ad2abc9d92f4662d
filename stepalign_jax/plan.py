# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Before chips are rented: does the run fit them, and how long would it take at least?

    python -m stepalign_jax.plan --config stepalign --topology v5e:2x4
    python -m stepalign_jax.plan --config small --topology v5e:1x1 --largest --price 1.2

`planning/plan.py` says what is counted.
"""

import sys
from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import write_json
from stepalign_jax.config.cli import ALL_SECTIONS, parse_arguments, read_config, run_command
from stepalign_jax.planning.chips import open_topology
from stepalign_jax.planning.plan import Planner, plan_json
from stepalign_jax.report.plan_tables import (
    compile_table,
    largest_table,
    memory_table,
    time_table,
    verdict,
)

EXIT_DOES_NOT_FIT = 1


def main(argv: list[str]) -> None:
    """Plans, and prints memory by phase, time by phase, and the verdict."""
    arguments = parse_arguments(
        argv,
        description="Compiles a run's programs for chips that are not there: memory and time.",
        example="python -m stepalign_jax.plan --config stepalign --topology v5e:2x4",
        options={
            "--topology": {
                "required": True,
                "metavar": "CHIP:SHAPE",
                "help": "v5e:1x1, v5e:2x4, v6e:2x2, v5p:2x2x1, ...; h100:4 for an estimate",
            },
            "--largest": {
                "action": "store_true",
                "help": "also find the largest numbers of slots and rows that fit",
            },
            "--every_width": {
                "action": "store_true",
                "help": "compile decoding with every width of its cache, not the widest alone",
            },
            "--price": {"type": _price, "metavar": "NUMBER", "help": "of a chip for an hour"},
            "--to": {"metavar": "FILE", "help": "also write everything to this JSON file"},
        },
        sections=ALL_SECTIONS,
    )
    config = read_config(arguments)
    topology = open_topology(arguments.topology)
    planner = Planner(config, topology)
    plan = planner.plan(every_width=arguments.every_width)
    print(memory_table(plan, topology))
    print(time_table(plan, topology, arguments.price))
    print(compile_table(plan))
    if arguments.largest:
        print(largest_table(planner, plan))
    if arguments.to:
        write_json(Path(arguments.to), plan_json(plan, topology))
        print(f"written: {arguments.to}")
    print(verdict(plan, topology))
    if not plan.fits:
        sys.exit(EXIT_DOES_NOT_FIT)


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0 <= price < float("inf"):
        raise UserError(f"--price must be a number that is not negative, and not {text!r}.")
    return price


if __name__ == "__main__":
    run_command(main)
