# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: Orbax for the arrays, and a manifest of our own for trust.

Orbax restores some flipped bits without a word. So every finished checkpoint gets a manifest
with the SHA-256 of each of its files, written last. A checkpoint without one was never
finished and is passed over; one that does not match its manifest is refused.

    <directory>/<step>/state/...      arrays, by Orbax
    <directory>/<step>/run/...        position in the data
    <directory>/<step>/manifest.json  ours
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import write_json
from stepalign_jax.base.processes import told_by_first
from stepalign_jax.base.progress import waiting
from stepalign_jax.runs.directory import listed, step_directories
from stepalign_jax.runs.plain_name import plain_name

MANIFEST = "manifest.json"


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: optimizer steps done when it was saved.
      state: pytree of jax.Array, of the structure that was asked for.
      data_state: position in the problems, JSON.
    """

    step: int
    state: Any
    data_state: Any


class Checkpoints:
    """Writes the checkpoints of one run and keeps the newest few.

    On several hosts every process makes one and calls `save` at the same steps.
    """

    def __init__(self, directory: epath.PathLike, *, num_to_keep: int) -> None:
        """Opens a directory for writing; what an interrupted save left there is deleted.

        Args:
          directory: where the checkpoints go; made if need be.
          num_to_keep: checkpoints that stay, the newest ones; at least 1.

        Raises:
          UserError: the directory cannot be made, or `num_to_keep` is below 1.
        """
        if num_to_keep < 1:
            raise UserError(
                f"train.checkpoints_to_keep={num_to_keep} leaves nothing to resume from: "
                "give 1 or more"
            )
        self._directory = epath.Path(directory).absolute()
        self._num_to_keep = num_to_keep
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                _delete_unfinished(self._directory)
        except OSError as error:
            raise UserError(
                f"cannot write checkpoints to {directory}: {error.strerror}; choose another "
                "place with --runs_dir=..."
            ) from error
        _wait_for_all("checkpoints_opened")
        self._open = contextlib.ExitStack()
        self._manager = self._open.enter_context(_open_manager(self._directory))
        self._open.enter_context(_late_writes_unreported())

    def save(self, step: int, state: Any, *, data_state: Any) -> None:
        """Saves one checkpoint, and returns when it is on disk and has its manifest.

        Older checkpoints go only after that, so a kill at any moment leaves a usable one.

        Args:
          step: optimizer steps done; saving a step that is already there replaces it.
          state: pytree of jax.Array (dicts, NamedTuples, flax.struct dataclasses).
          data_state: JSON, the position in the problems.

        Raises:
          UserError: the checkpoint cannot be written.
        """
        if step in self._manager.all_steps():
            self._delete(step)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            run=ocp.args.JsonSave({"data_state": data_state}),
        )
        try:
            saved = self._manager.save(step, args=items, force=True)
        except (OSError, ValueError) as error:  # a full disk is a ValueError to Orbax
            reason = self._reason(error, step, state)
            raise UserError(
                f"cannot write checkpoint {self._directory / str(step)}: {reason}; the "
                "checkpoints before it are whole, and the same command goes on from there"
            ) from error
        if not saved:
            raise RuntimeError(f"Orbax declined to save step {step} in {self._directory}")
        if jax.process_index() == 0:
            _write_manifest(self._directory / str(step), state)
        _wait_for_all(f"checkpoint_{step}_written")
        # The manager's own list, not the disk: it is the same in every process at this point.
        for old_step in sorted(self._manager.all_steps())[: -self._num_to_keep]:
            self._delete(old_step)

    def close(self) -> None:
        self._open.close()

    def _reason(self, error: Exception, step: int, state: Any) -> str:
        """Why a checkpoint could not be written, in a few words. What there is of it goes."""
        in_words = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's
        number = getattr(error, "errno", None) or (int(in_words[1]) if in_words else None)
        if number is None:
            return str(error).splitlines()[0]
        if number not in (errno.ENOSPC, errno.EDQUOT):
            return os.strerror(number)
        if jax.process_index() == 0:
            for path in listed(self._directory):
                if path.name.startswith(f"{step}."):
                    path.rmtree(missing_ok=True)
        if _is_bucket(self._directory):
            return os.strerror(number)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._directory).free
        return (
            f"{os.strerror(number)}, where it takes about {needed / 1e6:.1f} MB and "
            f"{free / 1e6:.1f} MB are free"
        )

    def _delete(self, step: int) -> None:
        # Manifest first: a half-deleted checkpoint then counts as unfinished, not as damaged.
        if jax.process_index() == 0:
            (self._directory / str(step) / MANIFEST).unlink(missing_ok=True)
        _wait_for_all(f"checkpoint_{step}_dropped")
        self._manager.delete(step)


def finished_steps(directory: epath.PathLike) -> list[int]:
    """Returns the steps whose checkpoints have a manifest, oldest first.

    Of several processes the first looks.
    """
    return told_by_first(
        lambda: sorted(
            int(d.name) for d in step_directories(directory) if (d / MANIFEST).exists()
        )
    )


@waiting("reading the newest checkpoint")
def restore_latest(directory: epath.PathLike, abstract_state: Any) -> Restored | None:
    """Returns the newest finished checkpoint, bit for bit as it was saved, or None.

    Writes nothing, so it is safe beside a run that is still training.

    Args:
      directory: where the checkpoints are; it need not exist.
      abstract_state: pytree of jax.Array or jax.ShapeDtypeStruct. A leaf with a sharding is
        restored to it, one without goes to the first device of this process.

    Raises:
      UserError: a file of the checkpoint is missing or differs from its manifest, or the
        checkpoint holds a state of another structure, shape or dtype.
    """
    directory = epath.Path(directory).absolute()
    steps = finished_steps(directory)
    if not steps:
        return None
    step_directory = directory / str(steps[-1])
    manifest = read_manifest(step_directory)
    _require_same_state(step_directory, manifest["state"], _describe_state(abstract_state))
    require_intact(step_directory, manifest)
    with _open_manager(directory, read_only=True) as manager:
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(_with_sharding, abstract_state)),
            run=ocp.args.JsonRestore(),
        )
        restored = manager.restore(steps[-1], args=items)
    run = restored["run"]
    return Restored(steps[-1], restored["state"], run["data_state"])


@waiting("reading a checkpoint")
def restore_part(directory: epath.PathLike, abstract_part: dict[str, Any], step: int) -> Any:
    """Returns some fields of the state of one of `finished_steps`; the others are not read.

    Args:
      directory: where the checkpoints are.
      abstract_part: {field of the state: pytree}, leaves as in `restore_latest`.
      step: which checkpoint.

    Raises:
      UserError: as `restore_latest`.
    """
    directory = epath.Path(directory).absolute()
    step_directory = directory / str(step)
    manifest = read_manifest(step_directory)
    saved = [row for row in manifest["state"] if row[0].split("/")[0] in abstract_part]
    _require_same_state(step_directory, saved, _describe_state(abstract_part))
    require_intact(step_directory, manifest)
    item = jax.tree.map(_with_sharding, abstract_part)
    restore = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    with _open_manager(directory, read_only=True) as manager:
        return manager.restore(step, args=ocp.args.Composite(state=restore))["state"]


def read_manifest(step_directory: epath.Path) -> dict[str, Any]:
    """Returns {"files": {path: SHA-256}, "state": [[path, dtype, shape], ...]}.

    Raises:
      UserError: the manifest is damaged.
    """
    path = step_directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, state = manifest["files"], manifest["state"]
        leaves = all(isinstance(path, str) for path, _, _ in state)
        intact = isinstance(files, dict) and leaves and bool(files and state)
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        intact = False
    if not intact:
        raise UserError(f"{path} is damaged; {_mend(step_directory)}")
    return manifest


def require_intact(step_directory: epath.Path, manifest: dict[str, Any]) -> None:
    """Compares every file of a checkpoint with its manifest.

    Raises:
      UserError: a file is missing or has other bytes than were saved.
    """
    for name, digest in manifest["files"].items():
        path = step_directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing; {_mend(step_directory)}")
        if _sha256(path) != digest:
            raise UserError(f"{path} is damaged: its hash differs; {_mend(step_directory)}")


def _mend(step_directory: epath.Path) -> str:
    earlier = [s for s in finished_steps(step_directory.parent) if s < int(step_directory.name)]
    then = f"go on from step {earlier[-1]}" if earlier else "start the run again from step 0"
    return f"delete {step_directory} to {then}"


@contextlib.contextmanager
def _late_writes_unreported() -> Iterator[None]:
    """Where one write fails, Orbax is done with its loop before the others know.

    Each of them would be a traceback, "Event loop is closed", beside the sentence that counts.
    """
    report = sys.unraisablehook

    def ignore(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            report(found)

    sys.unraisablehook = ignore
    try:
        yield
    finally:
        sys.unraisablehook = report


@contextlib.contextmanager
def _open_manager(
    directory: epath.Path, *, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
    options = ocp.CheckpointManagerOptions(
        # Ours to do: Orbax would delete the old one before the new one has its manifest.
        max_to_keep=None,
        create=False,
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=False,
        read_only=read_only,
    )
    named = contextlib.nullcontext(directory)
    if not _is_bucket(directory):
        named = plain_name(Path(directory))
    with named as name, ocp.CheckpointManager(name, options=options) as manager:
        yield manager


def _is_bucket(directory: epath.Path) -> bool:
    return "://" in str(directory)


def _write_manifest(step_directory: epath.Path, state: Any) -> None:
    files = sorted(
        folder / name for folder, _, names in step_directory.walk() for name in names
    )
    digests = {path.relative_to(step_directory).as_posix(): _sha256(path) for path in files}
    manifest = {"files": digests, "state": _describe_state(state)}
    if _is_bucket(step_directory):  # where an object appears whole or not at all
        (step_directory / MANIFEST).write_text(json.dumps(manifest))
    else:
        write_json(Path(step_directory / MANIFEST), manifest)


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def _delete_unfinished(directory: epath.Path) -> None:
    for step_directory in step_directories(directory):
        if not (step_directory / MANIFEST).exists():
            step_directory.rmtree()


def _describe_state(state: Any) -> list[list[Any]]:
    """Returns [path, dtype, shape] of every leaf, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [
        [jax.tree_util.keystr(path, simple=True, separator="/"), str(x.dtype), list(x.shape)]
        for path, x in leaves
    ]


def _require_same_state(
    step_directory: epath.Path, saved: list[list[Any]], wanted: list[list[Any]]
) -> None:
    if saved == wanted:
        return
    saved_leaves = {path: f"{dtype}{shape}" for path, dtype, shape in saved}
    wanted_leaves = {path: f"{dtype}{shape}" for path, dtype, shape in wanted}
    path = next(
        p
        for p in [*wanted_leaves, *saved_leaves]
        if saved_leaves.get(p) != wanted_leaves.get(p)
    )
    raise UserError(
        f"{step_directory} was saved by another config: its {path} is "
        f"{saved_leaves.get(path, 'absent')}, and this config needs "
        f"{wanted_leaves.get(path, 'none')}; use the config it was saved with, or choose "
        "another name with --name=..."
    )


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
