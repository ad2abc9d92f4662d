# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Problems for training and evaluation, from a data set: filtered, split, with a manifest.

    python -m stepalign_jax.prepare --source openmath --to data/openmath
    python -m stepalign_jax.prepare --source columns --from openai/gsm8k --subset main \\
        --problem-column question --answer-column answer --answer-after '####' --to data/gsm8k
    python -m stepalign_jax.prepare --source gym --num-train 2000 --to data/gsm

With --config the solver and the critic that it names filter the problems too.

docs/data.md says what each source and filter does. A stopped command, given again, goes on
where it was and ends with the same manifest.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.hashing import content_hash
from stepalign_jax.config.cli import parse_arguments, read_config, run_command
from stepalign_jax.preparing.columns import Columns, columns_source, open_records
from stepalign_jax.preparing.gym import WORD_PROBLEMS, Task, gym_source, parse_options
from stepalign_jax.preparing.model_stages import StageOptions, model_stages
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
        "choices": ("openmath", "columns", "gym"),
        "help": "nvidia/OpenMathReasoning or files with its columns; a data set whose columns "
        "you name; or a task of reasoning_gym",
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
    "--task": {"metavar": "NAME", "help": f"gym: of the package (default: {WORD_PROBLEMS})"},
    "--seed": {"type": int, "metavar": "N", "help": "gym: of what is generated (default: 0)"},
    "--set": {
        "action": "append",
        "metavar": "KEY=VALUE",
        "help": "gym: a setting of the task; may be given again",
    },
    "--held-out-templates": {
        "type": int,
        "metavar": "N",
        "help": f"gym: test on N templates of {WORD_PROBLEMS} that no other split has",
    },
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
    "--attempts": {
        "type": int,
        "default": 4,
        "metavar": "N",
        "help": "with --config: of the solver, for the next two filters (default: 4)",
    },
    "--format-rate": {
        "type": float,
        "default": 0.75,
        "metavar": "SHARE",
        "help": "with --config: of them with a reasoning step and an answer (default: 0.75)",
    },
    "--skip-critic": {
        "action": "store_true",
        "help": "with --config: also keep problems that the critic does not solve",
    },
    "--overwrite": {"action": "store_true", "help": "replace what --to holds"},
}
_OPTIONS_OF = {
    "columns": (
        *("problem_column", "answer_column", "reference_column", "answer_after", "licence"),
    ),
    "gym": ("task", "seed", "set", "held_out_templates"),
}
_RECORD_OPTIONS = ("from", "subset", "hub_split", "revision")
# `seed` is not among them: what is filtered depends on no run's.
_SECTIONS = (
    *("runs_dir", "model", "trainable", "problems", "prompts", "sampling", "critic"),
    *("critiques", "evaluation", "parallel"),
)
_NO_OPTIONS = ("to", "overwrite", "sections", "print_config", "overrides")


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses options that are impossible, or that the source does not read.

    Raises:
      UserError: names them.
    """
    for name in ("pass_rate_above", "validation_share", "test_share", "format_rate"):
        if not 0 <= getattr(arguments, name) <= 1:
            raise UserError(f"{_option(name)} is {getattr(arguments, name)}: give 0 to 1")
    if arguments.validation_share + arguments.test_share > 1:
        raise UserError("--validation-share and --test-share are above 1 together")
    for name in (f"num_{split}" for split in SPLITS):
        if (getattr(arguments, name) or 0) < 0:
            raise UserError(f"{_option(name)} is {getattr(arguments, name)}: give 0 or more")
    for source, names in _OPTIONS_OF.items():
        given = [name for name in names if getattr(arguments, name) is not None]
        if arguments.source != source and given:
            raise UserError(f"{_option(given[0])} is read with --source {source} only")
    given = [name for name in _RECORD_OPTIONS if getattr(arguments, name) is not None]
    if arguments.source == "gym" and given:
        raise UserError(f"{_option(given[0])} is not read with --source gym")
    if arguments.overrides and arguments.config is None:
        raise UserError(f"{arguments.overrides[0]} changes a config: name it with --config")
    if arguments.attempts < 1:
        raise UserError(f"--attempts is {arguments.attempts}: give 1 or more")
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
    if arguments.source == "gym":
        task = Task(
            arguments.task or WORD_PROBLEMS,
            arguments.seed or 0,
            parse_options(arguments.set or ()),
            arguments.held_out_templates or 0,
        )
        return gym_source(task, _limits(arguments), _rule(arguments))
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

    Raises:
      UserError: the config cannot be used.
    """
    if arguments.config is None:
        return None
    how = StageOptions(
        arguments.attempts, arguments.format_rate, asks_critic=not arguments.skip_critic
    )
    return model_stages(read_config(arguments), how)


def _rule(arguments: argparse.Namespace) -> SplitRule:
    return SplitRule(arguments.validation_share, arguments.test_share)


def _limits(arguments: argparse.Namespace) -> dict[str, int | None]:
    return {split: getattr(arguments, f"num_{split}") for split in SPLITS}


def main(argv: list[str]) -> None:
    """Prepares, and prints what each filter took and what is left."""
    arguments = parse_arguments(
        argv,
        description="Makes a directory of train, validation and test problems of a data set.",
        example="python -m stepalign_jax.prepare --source openmath --to data/openmath "
        "--num-train 282",
        options=_OPTIONS,
        sections=_SECTIONS,
        config="optional",
    )
    check_options(arguments)
    target = Path(arguments.to)
    stages = make_stages(arguments)
    options = {k: v for k, v in vars(arguments).items() if k not in _NO_OPTIONS}
    if stages is not None:
        overrides = list(arguments.overrides)
        options |= {"overrides": overrides, "stages": content_hash(stages.details)}
    manifest = None if arguments.overwrite else find_prepared(target, options)
    if manifest is not None:
        print(f"{target} is prepared: nothing was read (--overwrite reads it again)\n")
    else:
        manifest = prepare(
            make_source(arguments, work_directory(target)),
            target,
            rule=_rule(arguments),
            limits=_limits(arguments),
            options=options,
            stages=stages,
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
