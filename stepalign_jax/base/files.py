# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""JSON, JSON Lines, and directories: files that appear whole or not at all."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError


@contextlib.contextmanager
def atomic_directory(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields an empty directory that becomes `target` when the block ends without an error.

    The files are made in `.<name>.partial` beside `target`, flushed to the disk, and the
    directory is renamed. When the block raises, it is removed and `target` stays as it was.
    A process killed on the way leaves it behind, and the next attempt starts it anew; one
    killed between the two renames of an overwrite leaves the old directory, whole, as
    `.<name>.old`, and the new one, whole, as `.<name>.partial`.

    Args:
      target: where the files go; its parents are made. An empty directory counts as absent.
      overwrite: whether a directory that holds something may be replaced, all of it.

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
    """Hands every file to the disk, so that the rename cannot outrun what it names."""
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
        partial.rename(target)  # onto an empty directory at most: rename refuses another
    except OSError as error:
        raise UserError(f"{target} was made meanwhile ({error}): choose another.") from error
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes one JSON file, whole or not at all, with sorted keys.

    Raises:
      UserError: the file cannot be written.
      ValueError: a number is not finite.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    _replace_text(path, text + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Returns the value in a JSON file.

    Raises:
      UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): delete it, or put a copy back"
        ) from error


def jsonl_row(row: Mapping[str, Any]) -> str:
    """Returns one row with its newline; equal rows give equal text (sorted keys).

    Raises:
      ValueError: a number is not finite.
    """
    return json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_jsonl(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of one JSON object per line, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    _replace_text(path, "".join(jsonl_row(row) for row in rows))


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
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
                rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):  # only what follows the last newline may be half a row
                raise UserError(
                    f"{path} is damaged at line {number}: delete that line to go on"
                ) from error
    return rows


def _replace_text(path: pathlib.Path, text: str) -> None:
    # Named by process: runs of one comparison may write the same shared file at once.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the name and lose the content
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}: {error.filename})") from error
