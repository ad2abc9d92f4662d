# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Names of files and directories that a user gives."""

import os

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.text import surrogate_at

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095  # of Linux, and of nearly every file system


def check_path(key: str, path: str) -> None:
    """Refuses what cannot be a path, before anything is made.

    Args:
      key: the option or config key that holds it.
      path: a leading ~ has been expanded.

    Raises:
      UserError: it is empty, is no Unicode text, holds a NUL, is too long, or starts with a ~
        that stands for nobody's home.
    """
    if not path:
        raise UserError(f"{key} is empty; name a file or directory")
    if surrogate_at(path) is not None or "\0" in path:
        raise UserError(
            f"{key} is {path!r}, but it must be text that UTF-8 can spell, without a NUL: "
            "rename the file or directory, or set LC_ALL=C.UTF-8 if it is"
        )
    if path.startswith("~"):
        raise UserError(
            f"{key} is {path!r}, but ~ stands for a home directory on the command line alone, "
            "and only where there is one: write the whole path, or begin with ./"
        )
    names = [os.fsencode(name) for name in path.split("/")]
    longest, whole = max(map(len, names)), len(os.fsencode(path))
    if longest > MAX_NAME_BYTES or whole > MAX_PATH_BYTES:
        raise UserError(
            f"{key} is {path[:40]!r}..., but a name has at most {MAX_NAME_BYTES} bytes and a "
            f"path {MAX_PATH_BYTES}: choose a shorter one"
        )
