# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A directory that appears whole or not at all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

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
