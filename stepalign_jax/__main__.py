# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The installed command: `stepalign train ...` is `python -m stepalign_jax.train ...`."""

import runpy
import sys
from pathlib import Path

_HERE = Path(__file__).parent
# The modules beside this one, and the package that is a command too.
COMMANDS = sorted(
    {path.stem for path in _HERE.glob("*.py") if not path.stem.startswith("__")}
    | {path.parent.name for path in _HERE.glob("*/__main__.py")}
)


def main() -> None:
    """Runs the command that the first argument names, with the arguments behind it.

    Without one, or with `--help`, it prints the commands. An unknown one ends the process with
    one line on stderr and status 2.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: stepalign COMMAND [--help] ...\n\ncommands:", ", ".join(COMMANDS))
    elif name in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"stepalign_jax.{name}", run_name="__main__", alter_sys=True)
    else:
        known = ", ".join(COMMANDS)
        print(f"error: no command {name!r}; the commands are {known}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
