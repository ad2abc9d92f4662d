# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run trained, or its rollouts, as files for other programs.

    python -m stepalign_jax.export --run runs/stepalign --to exports/merged
    python -m stepalign_jax.export --run runs/stepalign --to exports/adapter --form adapter
    python -m stepalign_jax.export --run runs/stepalign --to exports/best --best --dtype float32
    python -m stepalign_jax.export --run runs/stepalign --to rollouts.jsonl --rollouts prime-rl
    python -m stepalign_jax.export --run runs/stepalign --to rollouts.eval --rollouts inspect

`merged` is a whole Hugging Face checkpoint, `adapter` a directory in PEFT's layout. With
--rollouts it is the rollouts of training, or with --scores those of an analysis, and numbers
of each token (docs/exports.md). The run's own config.json is read; use overrides such as
--model.path=DIR if files have moved.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.analysis.told import told_by_scores
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import atomic_directory, write_json
from stepalign_jax.config.cli import parse_arguments, run_command
from stepalign_jax.config.schema import Config
from stepalign_jax.exporting.forms import RECORD, check_target, export_adapter, export_merged
from stepalign_jax.exporting.inspect_log import LogHead, write_inspect_log
from stepalign_jax.exporting.prime_rl import token_records, write_token_records
from stepalign_jax.exporting.rounding import describe_rounding, rounding_warning
from stepalign_jax.exporting.told import Told, told_by_run
from stepalign_jax.exporting.trained import SECTIONS, config_of_run, find_trained
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.tokenizer import load_tokenizer
from stepalign_jax.runs.directory import RunDirectory

METRICS = ("avg_at_k", "pass_at_k", "maj_at_k", "greedy")
DTYPES = ("float32", "bfloat16", "float16")


def _problem_set(config: Config) -> str:
    return str(getattr(config.problems, "kind", type(config.problems).__name__))


def _write_prime_rl(
    path: Path,
    run: str,
    config: Config,
    _roles: Roles,
    rollouts: list[Told],
    context: str | None,
) -> None:
    records = token_records(
        rollouts, run=run, environment=_problem_set(config), context=context
    )
    write_token_records(path, records)


def _write_inspect(
    path: Path, run: str, config: Config, roles: Roles, rollouts: list[Told], _context: None
) -> None:
    metadata = {"condition": config.condition, "seed": config.seed}
    head = LogHead(run, config.model.path, _problem_set(config), metadata)
    write_inspect_log(path, head, rollouts, lambda token: roles.tokenizer.decode([token]))


ROLLOUT_FORMS: dict[str, Callable[..., None]] = {
    "prime-rl": _write_prime_rl,
    "inspect": _write_inspect,
}

_OPTIONS: dict[str, dict[str, Any]] = {
    "--run": {"required": True, "metavar": "DIR", "help": "the run"},
    "--to": {
        "required": True,
        "metavar": "DIR",
        "help": "where the files go; with --rollouts the one file",
    },
    "--form": {
        "default": "merged",
        "choices": ("merged", "adapter"),
        "help": "a whole checkpoint (default), or a PEFT adapter",
    },
    "--rollouts": {
        "choices": tuple(ROLLOUT_FORMS),
        "help": "instead of weights: rollouts, as prime-rl's token records or an Inspect log",
    },
    "--scores": {
        "metavar": "DIR",
        "help": "with --rollouts: those of this analysis, with all its numbers; default: those "
        "of training",
    },
    "--context": {
        "metavar": "NAME",
        "help": "with --rollouts prime-rl: whose advantages stand in `advantages`; default: "
        "each rollout's first",
    },
    "--step": {
        "type": int,
        "metavar": "N",
        "help": "which checkpoint, default: the newest; of which step of training the "
        "rollouts are, default: all",
    },
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


# By what stands only with it: options of the other kind of export are refused.
_OF_WEIGHTS = ("form", "best", "dtype", "max_shard_gb", "probe_texts")
_OF_ROLLOUTS = ("scores", "context")


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses options that contradict each other.

    Raises:
      UserError: names them.
    """
    others = _OF_ROLLOUTS if arguments.rollouts is None else _OF_WEIGHTS
    for name in others:
        option = f"--{name.replace('_', '-')}"
        if getattr(arguments, name) != _OPTIONS[option].get("default"):
            verb = "goes with" if arguments.rollouts is None else "is of weights: not with"
            raise UserError(f"{option} {verb} --rollouts")
    if arguments.context is not None and arguments.rollouts != "prime-rl":
        raise UserError("--context goes with --rollouts prime-rl: the log has all contexts")
    if arguments.scores is not None and arguments.step is not None:
        raise UserError("--step chooses rollouts of training: leave it out with --scores")
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
    if arguments.rollouts is not None:
        num_rollouts = export_rollouts(run, target, arguments)
        print(f"{run.path}, {num_rollouts} rollouts, {arguments.rollouts}: {target}")
        return
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


def export_rollouts(run: RunDirectory, target: Path, arguments: argparse.Namespace) -> int:
    """Writes rollouts for other programs; returns how many.

    Raises:
      UserError: `target` is taken, or there are no rollouts.
    """
    if target.exists() and (target.is_dir() or not arguments.overwrite):
        mend = "choose a file" if target.is_dir() else "pass --overwrite to replace it"
        raise UserError(f"{target} exists: {mend}.")
    config = config_of_run(run, arguments.overrides)
    roles = Roles(load_tokenizer(resolve_checkpoint(config.model.path)), config.prompts)
    if arguments.scores is None:
        rollouts = told_by_run(run, config, roles, arguments.step)
    else:
        rollouts = told_by_scores(ScoredRollouts.load(Path(arguments.scores)), roles)
    if arguments.context is not None:
        known = {name for told in rollouts for name in told.contexts}
        if arguments.context not in known:
            there = ", ".join(sorted(known))
            raise UserError(f"--context is {arguments.context!r}, but there are {there}.")
    name = run.path.resolve().name
    ROLLOUT_FORMS[arguments.rollouts](target, name, config, roles, rollouts, arguments.context)
    return len(rollouts)


if __name__ == "__main__":
    run_command(main)
