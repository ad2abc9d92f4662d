# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run trained, as files for other programs.

    python -m stepalign_jax.export --run runs/stepalign --to exports/merged
    python -m stepalign_jax.export --run runs/stepalign --to exports/adapter --form adapter
    python -m stepalign_jax.export --run runs/stepalign --to exports/best --best --dtype float32

`merged` is a whole Hugging Face checkpoint, `adapter` a directory in PEFT's layout. The run's
own config.json is read; use overrides such as --model.path=DIR if files have moved.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import atomic_directory, write_json
from stepalign_jax.config.cli import parse_arguments, run_command
from stepalign_jax.exporting.forms import RECORD, check_target, export_adapter, export_merged
from stepalign_jax.exporting.rounding import describe_rounding, rounding_warning
from stepalign_jax.exporting.trained import SECTIONS, find_trained
from stepalign_jax.runs.directory import RunDirectory

METRICS = ("avg_at_k", "pass_at_k", "maj_at_k", "greedy")
DTYPES = ("float32", "bfloat16", "float16")

_OPTIONS: dict[str, dict[str, Any]] = {
    "--run": {"required": True, "metavar": "DIR", "help": "the run"},
    "--to": {"required": True, "metavar": "DIR", "help": "where the files go"},
    "--form": {
        "default": "merged",
        "choices": ("merged", "adapter"),
        "help": "a whole checkpoint (default), or a PEFT adapter",
    },
    "--step": {"type": int, "metavar": "N", "help": "which checkpoint; default: the newest"},
    "--best": {
        "nargs": "?",
        "const": METRICS[0],
        "choices": METRICS,
        "help": f"the kept checkpoint with the best validation, by {METRICS[0]} or another",
    },
    "--dtype": {"choices": DTYPES, "help": "of the merged weights; default: the base's"},
    "--max-shard-gb": {"type": float, "default": 5.0, "metavar": "GB", "help": "default: 5"},
    "--probe-texts": {
        "type": int,
        "default": 16,
        "metavar": "N",
        "help": "rollouts on which the cost of rounding is measured; 0 is off (default: 16)",
    },
    "--overwrite": {"action": "store_true", "help": "replace an earlier export"},
}


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses options that contradict each other.

    Raises:
      UserError: names them.
    """
    if arguments.step is not None and arguments.best is not None:
        raise UserError("--step and --best each name a checkpoint: give one of them.")
    if arguments.max_shard_gb <= 0:
        raise UserError(f"--max-shard-gb is {arguments.max_shard_gb}, but must be above 0.")
    if arguments.probe_texts < 0:
        raise UserError(f"--probe-texts is {arguments.probe_texts}, but must be at least 0.")
    if arguments.form == "adapter" and arguments.dtype not in (None, "float32"):
        raise UserError("--form adapter is always written in float32: leave --dtype out.")


def main(argv: list[str]) -> None:
    """Exports, and prints the size of the files and the cost of rounding."""
    arguments = parse_arguments(
        argv,
        description="Writes what a run trained as a Hugging Face checkpoint or PEFT adapter.",
        example="python -m stepalign_jax.export --run runs/tiny-stepalign --to exports/tiny",
        options=_OPTIONS,
        sections=SECTIONS,
        config="of_run",
    )
    check_options(arguments)
    run, target = RunDirectory(Path(arguments.run)), Path(arguments.to)
    trained = find_trained(run, arguments.overrides, step=arguments.step, metric=arguments.best)
    check_target(target, trained, overwrite=arguments.overwrite)
    with atomic_directory(target, overwrite=arguments.overwrite) as directory:
        found: dict[str, Any] = {}
        if arguments.form == "adapter":
            export_adapter(trained, directory)
        else:
            found = export_merged(
                trained,
                directory,
                dtype_name=arguments.dtype,
                max_shard_bytes=int(arguments.max_shard_gb * 1e9),
                num_probe_texts=arguments.probe_texts,
            )
        record = {"run": str(run.path), "step": trained.step, "form": arguments.form, **found}
        write_json(directory / RECORD, record | {"base": trained.config.model.path})
        size = sum(path.stat().st_size for path in directory.iterdir())
    print(f"{run.path}, step {trained.step}, {arguments.form}: {target} ({size / 1e6:.1f} MB)")
    if found:
        print(describe_rounding(found))
        if warning := rounding_warning(found):
            print(warning, file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
