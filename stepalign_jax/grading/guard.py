# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a text may do that a scorer evaluates as Python.

Some scorers of reasoning_gym 0.1.25 give an answer to `eval` (`n_queens`, `spiral_matrix`, ...)
or to SymPy's `parse_expr`, which is `eval` too (`countdown`, `puzzle24`, ...). The text is a
model's. So while one is judged, an audit hook refuses code with anything but values, operators
and calls of harmless functions, and what writes, starts or sends. It is a guard against what a
model may come to write, and no sandbox against an attacker.
"""

import builtins
import contextlib
import dis
import os
import re
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

_HARMLESS = (abs, bool, complex, dict, float, int, len, list, max, min, pow, range, round, set)
_HARMLESS += (sorted, str, sum, tuple)
_FORBIDDEN_NAMES = frozenset(dir(builtins)) - {each.__name__ for each in _HARMLESS}
# Every way from a value to the interpreter begins with an attribute or an import.
_FORBIDDEN_OPERATIONS = re.compile("IMPORT_NAME|LOAD_(?:ATTR|METHOD)|STORE_.*")
_FORBIDDEN_EVENTS = ("ctypes.", "os.", "pty.", "shutil.", "signal.", "socket.", "subprocess.")
_READING = frozenset(["os.listdir", "os.scandir", "os.walk", "os.fwalk"])
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_is_on = _is_installed = False


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within it, evaluated text that does more than compute raises PermissionError."""
    global _is_on, _is_installed
    if not _is_installed:
        sys.addaudithook(_watch)  # it stays for as long as the process
        _is_installed = True
    _is_on = True
    try:
        yield
    finally:
        _is_on = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _is_on:
        return
    if event == "exec":
        refused = not _computes(arguments[0])
    elif event == "open":
        refused = bool(arguments[2] & _WRITING)
    else:
        refused = event.startswith(_FORBIDDEN_EVENTS) and event not in _READING
    if refused:
        raise PermissionError(f"an answer may not do this: {event}")


def _computes(code: CodeType) -> bool:
    """Whether code that is about to run is a module that is imported, or harmless."""
    # `parse_expr` first runs `from sympy import *` in a scope of its own.
    if os.path.isfile(code.co_filename) or code.co_names == ("sympy",):
        return True
    return (
        _FORBIDDEN_NAMES.isdisjoint(code.co_names)
        and not any(isinstance(constant, CodeType) for constant in code.co_consts)
        and not any(map(_FORBIDDEN_OPERATIONS.fullmatch, _operations(code)))
    )


def _operations(code: CodeType) -> list[str]:
    return [instruction.opname for instruction in dis.get_instructions(code)]
