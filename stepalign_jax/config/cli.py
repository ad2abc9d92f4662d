# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What every command shares: its arguments, its config, its exit status."""

import argparse
import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NoReturn

from stepalign_jax.base.compilation import CompilationNotices, use_compilation_cache
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.flags import pin_flags
from stepalign_jax.base.output import lost_output, nobody_reads, prepare_output
from stepalign_jax.base.paths import check_path
from stepalign_jax.base.processes import exit_process
from stepalign_jax.base.stopping import EXIT_INTERRUPTED, INTERRUPTED, stop_signals
from stepalign_jax.config.describe import keys_help, resolved
from stepalign_jax.config.fields import annotations
from stepalign_jax.config.load import CONFIG_FILE, config_from_json, load_config
from stepalign_jax.config.schema import Config

EXIT_USER_ERROR = 2
EXIT_NOBODY_READS = 141  # 128 + SIGPIPE, as shells report it

ALL_SECTIONS = tuple(annotations(Config))  # for a command that reads the whole config

MODEL_CONFIG = "stepalign"  # has the prompts of a model that is named without a config

_PATH_METAVARS = ("PATH", "DIR", "FILE")  # of options whose leading ~ expands

_KEYS_HELP = """\
keys of the config that this command reads, each with what it takes; any may be
given as an argument (lists are separated by commas), and what is unknown or
impossible is refused before anything is computed:"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def run_command(main: Callable[[list[str]], None]) -> None:
    """Runs `main` on the command line's arguments and ends the process.

    Programs that it compiles are kept for the next command (`use_compilation_cache`); what
    takes long to compile is named.

    README.md lists the exit statuses. A `UserError`, a stop signal and output that cannot be
    written become one line on stderr. Output that nobody reads any more (`... | head -1`) ends
    the command quietly. Any other exception is a bug and keeps its traceback.
    """
    prepare_output()
    pin_flags()
    use_compilation_cache()
    # Orbax remarks on how it is opened, and prints what it then raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    status, line = _outcome(main)
    if line:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
    lost_output()
    exit_process(status)


def _outcome(main: Callable[[list[str]], None]) -> tuple[int, str]:
    """Runs `main`; returns the exit status and a line for stderr, or ""."""
    try:
        with stop_signals(), closing(CompilationNotices()):
            _require_working_directory()
            try:
                main(sys.argv[1:])
            except SystemExit as end:  # after --help or --print_config
                if end.code:
                    raise
    except UserError as error:
        return EXIT_USER_ERROR, f"error: {error}"
    except KeyboardInterrupt as stopped:  # most often Stopped
        return getattr(stopped, "exit_code", EXIT_INTERRUPTED), str(stopped) or INTERRUPTED
    except RuntimeError as error:
        if "initialize backend" not in str(error):
            raise
        return EXIT_USER_ERROR, f"error: JAX has no device to run on: {error}"
    except OSError as error:
        lost = lost_output()
        if lost is None and not (isinstance(error, BrokenPipeError) and nobody_reads()):
            raise
        return _without_output(lost or error)
    lost = lost_output()
    return (0, "") if lost is None else _without_output(lost)


def _require_working_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the working directory is gone: change to one that exists") from error


def _without_output(lost: OSError) -> tuple[int, str]:
    if isinstance(lost, BrokenPipeError):
        return EXIT_NOBODY_READS, ""
    return EXIT_USER_ERROR, f"error: cannot write the output: {lost.strerror}"


def parse_arguments(
    argv: Sequence[str],
    *,
    description: str,
    example: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    sections: Sequence[str] | None = None,
    config: Literal["required", "optional", "of_run"] = "required",
) -> argparse.Namespace:
    """Parses a command's own options, and its config and overrides if it reads any.

    `--help` lists the keys of `sections`; `--print_config` prints the config that the
    arguments give, and exits.

    Args:
      argv: the arguments without the program's name.
      description: what the command does, for `--help`.
      example: one command line to copy, for `--help`.
      options: the command's own options: name (`--run`) to the keyword arguments of
        `argparse.ArgumentParser.add_argument`. One with the metavar PATH, DIR or FILE is
        checked as a path, and a leading ~ expands.
      sections: the sections and keys of the config that the command reads; None: it has no
        config.
      config: where the config comes from: "required" is `--config`; "of_run" is the
        directory that the option `--run` names; "optional" is either.

    Returns:
      A namespace with one attribute per option; if there are `sections`, for `read_config`:
      `config` (str, or None), `overrides` (tuple of str) and `sections`.

    Raises:
      UserError: for a missing or malformed argument.
    """
    parser = _make_parser(description, f"example:\n  {example}", options)
    argv = _with_dashed_values(argv, options or {})
    if sections is None:
        return parser.parse_args(argv)
    parser.epilog = f"{_KEYS_HELP}\n{keys_help(sections)}\n\n{parser.epilog}"
    if config != "of_run":
        parser.add_argument(
            "--config",
            required=config == "required",
            metavar="CONFIG[:VARIANT]",
            help="a file, or a config of this package by name, and which of its variants "
            "(mine/first.py, tiny, tiny:refsol)",
        )
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved config and exit"
    )
    arguments, rest = parser.parse_known_args(argv)
    for argument in rest:
        _check_override_form(argument, parser.prog)
    arguments.config = getattr(arguments, "config", None)
    arguments.overrides, arguments.sections = tuple(rest), tuple(sections)
    if arguments.print_config:
        print(resolved(read_config(arguments)))
        sys.exit(0)
    return arguments


def read_config(arguments: argparse.Namespace) -> Config:
    """Returns the config of `--config`, or else of the run that `--run` names, overridden.

    A command with an option `--model` puts that model into the config, or else into the one
    that ships as MODEL_CONFIG.

    Args:
      arguments: what `parse_arguments` returned.

    Raises:
      UserError: none is given, or the config cannot be read or is impossible.
    """
    spec, overrides = arguments.config, arguments.overrides
    if (model := getattr(arguments, "model", None)) is not None:
        spec, overrides = spec or MODEL_CONFIG, (f"--model.path={model}", *overrides)
    if spec is not None:
        return load_config(spec, overrides)
    if (run := getattr(arguments, "run", None)) is None:
        model = ", or a model with --model" if hasattr(arguments, "model") else ""
        raise UserError(f"name a config with --config, or a run with --run{model}")
    sections = {entry.partition(".")[0] for entry in arguments.sections}
    return config_from_json(Path(run) / CONFIG_FILE, arguments.overrides, tuple(sections))


def _with_dashed_values(
    argv: Sequence[str], options: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Arguments in which `--prompt -5` is `--prompt=-5`; argparse takes -5 for an option."""
    joined: list[str] = []
    for argument in argv:
        last = joined[-1] if joined else ""
        is_value = re.match(r"-[^-]", argument) and "action" not in options.get(last, {})
        if is_value and last in options:
            joined[-1] = f"{last}={argument}"
        else:
            joined.append(argument)
    return joined


def _make_parser(
    description: str, epilog: str, options: Mapping[str, Mapping[str, Any]] | None
) -> _Parser:
    parser = _Parser(
        prog=_program_name(),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, keywords in (options or {}).items():
        if keywords.get("metavar") in _PATH_METAVARS:
            keywords = {"type": functools.partial(_path, name), **keywords}
        parser.add_argument(name, **keywords)
    return parser


def _path(option: str, text: str) -> str:
    check_path(option, path := os.path.expanduser(text))
    return path


def _program_name() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name}" if spec else "stepalign_jax"


def _check_override_form(argument: str, program: str) -> None:
    if not argument.startswith("--"):
        raise UserError(f"unexpected argument {argument!r}; see {program} --help")
    if argument.partition("=")[0] == "--config":
        raise UserError("--config is not read here: a run has its own config.json")
    if "=" not in argument:
        raise UserError(
            f"unknown option {argument}; a config value is overridden with "
            f"--section.key=value, and {program} --help lists the options"
        )
