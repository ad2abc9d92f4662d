# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Problems for training and evaluation, from a data set: filtered, split, with a manifest.

    python -m stepalign_jax.prepare --source openmath --to data/openmath
    python -m stepalign_jax.prepare --source columns --from openai/gsm8k --subset main \\
        --problem-column question --answer-column answer --answer-after '####' --to data/gsm8k

docs/data.md says what each source and filter does. A stopped command, given again, goes on
where it was and ends with the same manifest.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.cli import parse_arguments, run_command
from stepalign_jax.preparing.columns import Columns, columns_source, open_records
from stepalign_jax.preparing.openmath import HUB_NAME, HUB_SPLIT, openmath_source
from stepalign_jax.preparing.prepared import find_prepared, prepare, work_directory
from stepalign_jax.preparing.rows import Source, Stages
from stepalign_jax.preparing.write import SplitRule
from stepalign_jax.problems.locked import MANIFEST
from stepalign_jax.problems.sources import SPLITS
from stepalign_jax.report.tables import prepared_table

_OPTIONS: dict[str, dict[str, Any]] = {
    "--source": {
        "required": True,
        "choices": ("openmath", "columns"),
        "help": "nvidia/OpenMathReasoning or files with its columns; or a data set whose "
        "columns you name",
    },
    "--to": {"required": True, "metavar": "DIR", "help": "the directory to make"},
    "--from": {
        "metavar": "PATH-OR-ID",
        "help": "a .jsonl or .parquet file, a directory of them, or a data set on the Hub "
        f"(default for openmath: {HUB_NAME})",
    },
    "--subset": {"metavar": "NAME", "help": "configuration of a data set on the Hub"},
    "--hub-split": {
        "metavar": "NAME",
        "help": "split of a data set on the Hub, or of files named as there "
        f"(default: {HUB_SPLIT} for openmath, else train)",
    },
    "--revision": {
        "metavar": "COMMIT",
        "help": "of a data set on the Hub; default: the newest",
    },
    "--pass-rate-above": {
        "type": float,
        "default": 0.85,
        "metavar": "SHARE",
        "help": "openmath: keep problems that a 72B model solves more often (default: 0.85)",
    },
    "--think": {
        "default": "remove",
        "choices": ("remove", "keep"),
        "help": "openmath: <think>...</think> in references (default: remove)",
    },
    "--problem-column": {"metavar": "NAME", "help": "columns: the question"},
    "--answer-column": {"metavar": "NAME", "help": "columns: the final answer"},
    "--reference-column": {"metavar": "NAME", "help": "columns: a worked solution, if any"},
    "--answer-after": {
        "metavar": "TEXT",
        "help": "columns: the answer is what follows the last TEXT in its column",
    },
    "--licence": {"metavar": "TEXT", "help": "columns: of the data, for the manifest"},
    "--validation-share": {
        "type": float,
        "default": 0.1,
        "metavar": "SHARE",
        "help": "of all problems, by hash (default: 0.1)",
    },
    "--test-share": {
        "type": float,
        "default": 0.1,
        "metavar": "SHARE",
        "help": "of all problems, by hash; locked (default: 0.1)",
    },
    **{
        f"--num-{split}": {"type": int, "metavar": "N", "help": f"at most N {split} problems"}
        for split in SPLITS
    },
    "--overwrite": {"action": "store_true", "help": "replace what --to holds"},
}
_COLUMN_OPTIONS = (
    *("problem_column", "answer_column", "reference_column", "answer_after", "licence"),
)


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses options that are impossible, or that the source does not read.

    Raises:
      UserError: names them.
    """
    for name in ("pass_rate_above", "validation_share", "test_share"):
        if not 0 <= getattr(arguments, name) <= 1:
            raise UserError(f"{_option(name)} is {getattr(arguments, name)}: give 0 to 1")
    if arguments.validation_share + arguments.test_share > 1:
        raise UserError("--validation-share and --test-share are above 1 together")
    for name in (f"num_{split}" for split in SPLITS):
        if (getattr(arguments, name) or 0) < 0:
            raise UserError(f"{_option(name)} is {getattr(arguments, name)}: give 0 or more")
    given = [name for name in _COLUMN_OPTIONS if getattr(arguments, name) is not None]
    if arguments.source == "openmath" and given:
        raise UserError(f"{_option(given[0])} is read with --source columns only")
    for name in ("from", "problem_column", "answer_column"):
        if arguments.source == "columns" and getattr(arguments, name) is None:
            raise UserError(f"--source columns needs {_option(name)}")
    if Path(arguments.to).exists() and not Path(arguments.to).is_dir():
        raise UserError(f"--to {arguments.to} is a file: give a directory")
    if arguments.answer_after == "":
        raise UserError("--answer-after is empty: leave it out")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def make_source(arguments: argparse.Namespace, work: Path) -> Source:
    """The source that the options name; what is kept of it until it is read lies in `work`.

    Raises:
      UserError: it cannot be opened, or lacks a column.
    """
    is_openmath = arguments.source == "openmath"
    records = open_records(
        getattr(arguments, "from") or HUB_NAME,
        subset=arguments.subset,
        split=arguments.hub_split or (HUB_SPLIT if is_openmath else "train"),
        revision=arguments.revision,
        work=work,
    )
    if is_openmath:
        return openmath_source(
            records,
            pass_rate_above=arguments.pass_rate_above,
            keep_thinking=arguments.think == "keep",
        )
    columns = Columns(
        arguments.problem_column,
        arguments.answer_column,
        arguments.reference_column,
        arguments.answer_after,
    )
    return columns_source(records, columns, arguments.licence or "not stated")


def make_stages(arguments: argparse.Namespace) -> Stages | None:
    """Filters that ask the solver of `--config`; without that option there are none.

    Stages(filters, apply, details) of preparing/model_stages.py belong here, where
    apply(rows, directory) = apply_model_stages(config, rows, directory).
    """
    return None


def main(argv: list[str]) -> None:
    """Prepares, and prints what each filter took and what is left."""
    arguments = parse_arguments(
        argv,
        description="Makes a directory of train, validation and test problems of a data set.",
        example="python -m stepalign_jax.prepare --source openmath --to data/openmath "
        "--num-train 282",
        options=_OPTIONS,
    )
    check_options(arguments)
    target = Path(arguments.to)
    options = {k: v for k, v in vars(arguments).items() if k not in ("to", "overwrite")}
    manifest = None if arguments.overwrite else find_prepared(target, options)
    if manifest is not None:
        print(f"{target} is prepared: nothing was read (--overwrite reads it again)\n")
    else:
        manifest = prepare(
            make_source(arguments, work_directory(target)),
            target,
            rule=SplitRule(arguments.validation_share, arguments.test_share),
            limits={split: getattr(arguments, f"num_{split}") for split in SPLITS},
            options=options,
            stages=make_stages(arguments),
            overwrite=arguments.overwrite,
        )
    print(prepared_table(manifest))
    for split, number in manifest["problems"].items():
        if not number:
            print(f"warning: no {split} problem: raise its share", file=sys.stderr)
    written = (target / MANIFEST).read_bytes()
    print(f"written: {target / MANIFEST} (sha256 {hashlib.sha256(written).hexdigest()})")


if __name__ == "__main__":
    run_command(main)
