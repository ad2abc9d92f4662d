# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What every command shares: its arguments, its exit status, its progress bar."""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from stepalign_jax.base.compilation import use_compilation_cache
from stepalign_jax.base.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_OVERRIDES_HELP = """\
any value of the config may be overridden by its dotted name:
  --train.num_steps=30 --optimizer.learning_rate=1e-4 --seed=1
  booleans are true or false, lists are separated by commas
  (--trainable.targets=q_proj,v_proj); an unknown name or an impossible value is
  refused before anything is computed."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def run_command(main: Callable[[list[str]], None]) -> None:
    """Runs `main` on the command line's arguments and ends the process on a failure.

    Programs that it compiles are kept for the next command (`use_compilation_cache`).

    A `UserError` becomes one line on stderr and status 2, an interrupt one line and
    status 130. Any other exception is a bug and keeps its traceback.
    """
    use_compilation_cache()
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax remarks on how it is opened
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted before the command was done", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def parse_arguments(
    argv: Sequence[str],
    *,
    description: str,
    example: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    config_required: bool = True,
) -> argparse.Namespace:
    """Parses `--config`, a command's own options, and `--section.key=value` overrides.

    Args:
      argv: the arguments without the program's name.
      description: what the command does, for `--help`.
      example: one command line to copy, for `--help`.
      options: the command's own options: name (`--run`) to the keyword arguments of
        `argparse.ArgumentParser.add_argument`.
      config_required: False where a command can do without `--config`.

    Returns:
      A namespace with `config` (str, or None), `overrides` (tuple of the arguments for
      `load_config`), and one attribute per option.

    Raises:
      UserError: for a missing or malformed argument.
    """
    parser = _make_parser(description, f"{_OVERRIDES_HELP}\n\nexample:\n  {example}", options)
    parser.add_argument(
        "--config",
        required=config_required,
        metavar="FILE[:VARIANT]",
        help="a config file, and which of its variants (configs/tiny.py:refsol)",
    )
    arguments, rest = parser.parse_known_args(list(argv))
    for argument in rest:
        _check_override_form(argument, parser.prog)
    arguments.overrides = tuple(rest)
    return arguments


def parse_options(
    argv: Sequence[str],
    *,
    description: str,
    example: str,
    options: Mapping[str, Mapping[str, Any]],
) -> argparse.Namespace:
    """Parses the options of a command that has no config.

    Args and Raises: as for `parse_arguments`.

    Returns:
      A namespace with one attribute per option.
    """
    return _make_parser(description, f"example:\n  {example}", options).parse_args(list(argv))


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
        parser.add_argument(name, **keywords)
    return parser


def _program_name() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name}" if spec else "stepalign_jax"


def _check_override_form(argument: str, program: str) -> None:
    if not argument.startswith("--"):
        raise UserError(f"unexpected argument {argument!r}; see {program} --help")
    if "=" not in argument:
        raise UserError(
            f"unknown option {argument}; a config value is overridden with "
            f"--section.key=value, and {program} --help lists the options"
        )
