# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One process at a time trains in a run's directory."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, TextIO

from stepalign_jax.base.errors import UserError
from stepalign_jax.runs.directory import RunDirectory

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None


@contextlib.contextmanager
def lock_run(run: RunDirectory) -> Iterator[bool]:
    """Holds the run for this process; the lock ends with the process, however it dies.

    Yields:
      Whether it is locked: False on a file system, or an operating system, without locks.

    Raises:
      UserError: another process holds it; which one, where and since when.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        file = run.lock_file.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot make the run directory {run.path} ({error.strerror}: {error.filename}): "
            "choose a place that can be written with --runs_dir=..."
        ) from error
    with file:
        held = fcntl is not None and _lock(run, file)
        file.truncate(0)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        file.write(json.dumps(holder))
        file.flush()
        yield held


def _lock(run: RunDirectory, file: TextIO) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(file)
        raise UserError(
            f"{run.path} is in use by process {holder.get('process', '?')} on "
            f"{holder.get('host', '?')} since {holder.get('since', '?')}: wait for it, or "
            "choose another name with --name=..."
        ) from error
    except OSError:
        # A file system without locks: better an unguarded run than none.
        return False
    return True


def _holder(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        return json.loads(file.read())
    except ValueError:  # it is being written
        return {}
