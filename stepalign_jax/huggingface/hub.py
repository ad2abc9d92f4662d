# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From a path that a user gives to a directory: packaged checkpoints and the Hub."""

import contextlib
import importlib.resources
import re
from pathlib import Path

import huggingface_hub

from stepalign_jax.base.errors import UserError

_PACKAGED = "packaged:"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model"]
_HUB_TIMEOUT_SECS = 5.0
_POINTER = b"version https://git-lfs"


def resolve_checkpoint(path: str, key: str = "model.path") -> Path:
    """The local directory of a checkpoint; a hub id is downloaded (or found in its cache).

    Args:
      path: "packaged:<name>" for `<name>/checkpoint` in this package, a directory, or a hub
        id `owner/name`.
      key: the option that holds the path, for refusals.

    Raises:
      UserError: it is none of these, the download failed, or a file is a Git LFS pointer; it
        says how to get the files.
    """
    if path.startswith(_PACKAGED):
        return _packaged(path.removeprefix(_PACKAGED), key)
    if path and Path(path).is_dir():
        refuse_pointers(Path(path))
        return Path(path)
    if not _HUB_ID.fullmatch(path) or Path(path).exists():
        raise UserError(
            f"{key} {path!r} is not a directory, nor a hub id like Qwen/Qwen3-0.6B: give "
            "the directory that holds config.json and the safetensors files."
        )
    try:
        directory = huggingface_hub.snapshot_download(
            path, allow_patterns=_HUB_FILES, etag_timeout=_HUB_TIMEOUT_SECS
        )
    except Exception as error:  # the hub client's errors share no base; all mean the same
        raise UserError(
            f"{key} {path!r} is not a local directory and could not be fetched from the "
            f"hub ({type(error).__name__}): on a machine with network run `hf download {path} "
            f"--local-dir DIRECTORY`, then give that directory as {key}."
        ) from error
    return Path(str(directory))


def refuse_pointers(directory: Path) -> None:
    """Refuses a directory that was cloned without its large files.

    Pointers to files that are not read (pickles, pictures) may stay.

    Raises:
      UserError: a file that is read is a Git LFS pointer.
    """
    for file in sorted(file for pattern in _HUB_FILES for file in directory.glob(pattern)):
        if _is_pointer(file):
            raise UserError(
                f"{file} is a Git LFS pointer, not the file: run `git lfs pull` in "
                f"{directory}, or download the checkpoint again."
            )


def _is_pointer(file: Path) -> bool:
    # What cannot be opened is refused, with its reason, by who reads it.
    with contextlib.suppress(OSError), file.open("rb") as content:
        return content.read(len(_POINTER)) == _POINTER
    return False


def _packaged(name: str, key: str) -> Path:
    root = Path(str(importlib.resources.files("stepalign_jax")))
    names = sorted(entry.parent.name for entry in root.glob("*/checkpoint"))
    if name not in names:
        raise UserError(
            f"{key} {_PACKAGED}{name} is not in this package: choose one of "
            f"{', '.join(_PACKAGED + known for known in names) or 'none'}."
        )
    return root / name / "checkpoint"
