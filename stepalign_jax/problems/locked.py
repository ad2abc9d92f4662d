# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The locked test set of a prepared directory: unchanged, and each look at it is counted.

    manifest.json          has the hash of test.jsonl; a changed file is refused
    test_openings.jsonl    one line per evaluation: when, by which command, of what

The more often results on one test set are looked at, the less its best one means. A directory
without a manifest is not locked.
"""

import datetime
import hashlib
import sys
from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import jsonl_row, read_json_object, read_jsonl
from stepalign_jax.base.processes import told_by_first
from stepalign_jax.config.schema import JsonlProblems, ProblemsConfig

MANIFEST, OPENINGS = "manifest.json", "test_openings.jsonl"


def check_locked(file: Path) -> str:
    """Returns the hash of a split's file if a manifest beside it locks it, else "".

    Raises:
      UserError: the file is not the one that the manifest describes.
    """
    path = file.with_name(MANIFEST)
    if not (path.is_file() and file.is_file()):
        return ""
    locked = read_json_object(path).get("files", {}).get(file.name, {}).get("sha256")
    if locked is None:
        return ""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != locked:
        raise UserError(
            f"{file} is not the file that {path} describes: put that one back, prepare the "
            f"problems again, or delete {path.name} to use what you have changed, unlocked"
        )
    return found


def count_opening(
    config: ProblemsConfig, split: str, *, command: str, of: str, goes_on: bool
) -> str:
    """Counts one evaluation on a locked test set; call it before the first problem is asked.

    Of several processes the first counts.

    Args:
      config: where the problems come from.
      split: only "test" is locked.
      command: that evaluates.
      of: the run or the model.
      goes_on: whether a stopped process has counted this evaluation.

    Returns:
      How often the set has been opened, in words; "" for what is not locked.

    Raises:
      UserError: the set is not the one that was locked.
    """
    if split != "test" or not isinstance(config, JsonlProblems):
        return ""
    return told_by_first(lambda: _count(Path(config.path), command, of, goes_on))


def _count(directory: Path, command: str, of: str, goes_on: bool) -> str:
    file = directory / "test.jsonl"
    if not (test := check_locked(file)):
        return ""
    path = file.with_name(OPENINGS)
    if not goes_on:
        when = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        row = {"when": when, "command": command, "of": of, "test": test}
        try:
            with path.open("a", encoding="utf-8") as openings:
                openings.write(jsonl_row(row))
        except OSError as error:
            print(f"warning: not counted in {path}: {error.strerror}", file=sys.stderr)
    rows = read_jsonl(path) if path.exists() else []
    number = sum(row.get("test") == test for row in rows)
    return f"this locked test set has been opened {number} times ({path})"
