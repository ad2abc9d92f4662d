# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Files and directories that appear whole or not at all; JSON and JSON Lines.

A writer killed at any moment leaves the old content or the new one under a name, never half
of it:

    atomic_file         <name>.<process>.tmp, flushed, then renamed
    atomic_directory    .<name>.partial, flushed, then renamed
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from stepalign_jax.base.errors import UserError


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a binary file that becomes `path` when the block ends without an error.

    Parents are made. When the block raises, `path` stays as it was.

    Raises:
      UserError: the file cannot be written.
    """
    # Named by process: runs of one comparison may write the same shared file at once.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(
                    file.fileno()
                )  # else a power cut may keep the name and lose the content
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise UserError(f"cannot write {path} ({error.strerror}{where})") from error


@contextlib.contextmanager
def atomic_directory(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields an empty directory that becomes `target` when the block ends without an error.

    When the block raises, the directory is removed and `target` stays as it was. A killed
    process leaves `.<name>.partial` behind, which the next attempt replaces. One that is
    killed between the two renames of an overwrite leaves both directories whole: the old one
    as `.<name>.old`, the new one as `.<name>.partial`.

    Args:
      target: its parents are made; an empty directory counts as absent.
      overwrite: whether a directory with content may be replaced, all of it.

    Raises:
      UserError: `target` is taken, its parent cannot be written to, or the disk is full.
    """
    # Resolved, so that a link stays a link and "." has a name.
    target = target.resolve()
    _refuse_taken(target, overwrite)
    partial = target.with_name(f".{target.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {target.parent} ({error}): choose another target."
        ) from error
    try:
        yield partial
        _flush(partial)
        _move(partial, target, overwrite)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no room for {target} ({error}): free some, or choose another."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_taken(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: choose a directory to write to.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UserError(
            f"{target} exists and holds files: choose another target, or pass --overwrite to "
            "replace all of it."
        )


def _flush(directory: Path) -> None:
    """Flushes every file to the disk; a rename may otherwise reach it before the content."""
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(partial: Path, target: Path, overwrite: bool) -> None:
    old = target.with_name(f".{target.name}.old")
    if overwrite and target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        partial.rename(target)  # rename refuses any target but an empty directory
    except OSError as error:
        raise UserError(f"{target} was made meanwhile ({error}): choose another.") from error
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON file, whole or not at all, with sorted keys.

    Raises:
      UserError: the file cannot be written.
      ValueError: a number is not finite.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as file:
        file.write(f"{text}\n".encode())


def read_json(path: Path) -> Any:
    """Returns the value in a JSON file.

    Raises:
      UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({error}): put a whole copy in its place."
        ) from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      UserError: the file is missing, is not JSON, or holds another kind of value.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: put a whole copy in its place.")
    return content


def jsonl_row(row: Mapping[str, Any]) -> str:
    """Returns one row with its newline; equal rows give equal text (sorted keys).

    Raises:
      ValueError: a number is not finite.
    """
    return json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("the row is no JSON object")
    return value


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of one JSON object per line, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    text = "".join(jsonl_row(row) for row in rows)
    with atomic_file(path) as file:
        file.write(text.encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file; a last row that a kill cut short is left out.

    Raises:
      UserError: the file cannot be read, or a row before the last is damaged.
    """
    try:
        # A kill may cut a character in two; that row fails to parse like any other cut row.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                rows.append(_object(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if number < len(lines):  # only what follows the last newline may be half a row
                raise UserError(
                    f"{path} is damaged at line {number}: put a whole copy in its place"
                ) from error
    return rows
