# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A run that several processes train together: one of them writes its files.

    process 0      works in the run's directory: locks it, and writes every file
    the others     work in copies of its small files, in a scratch directory of their own,
                   which goes when they end; what they write there is what process 0 writes

So each finds what it would find alone (an evaluation that is done, a critique that was asked
for), all of them find the same, and no file has two writers. Checkpoints alone are written
together, in the run's own directory, which every host must then see, or where
`hosts.checkpoints_dir` says.
"""

import contextlib
import dataclasses
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.processes import agreed, is_alone, is_first, told_by_first
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.difficulty import SELECTED
from stepalign_jax.runs.directory import RunDirectory, open_run
from stepalign_jax.runs.lock import lock_run

_NOT_COPIED = ("checkpoints", "rollouts", "tensorboard", "report", "set_aside", "lock.json")

Files = dict[str, bytes]


@contextlib.contextmanager
def enter_run(config: Config) -> Iterator[tuple[Config, RunDirectory]]:
    """Locks and opens the run of `config`, or a copy of it, for this process.

    Yields:
      The config and the directory by which this process works; those of the run itself in the
      first one.

    Raises:
      UserError: the run is in use, or of another config; or a host does not see its directory.
    """
    with contextlib.ExitStack() as stack:
        run = told_by_first(lambda: _open(config, stack))
        if is_alone():
            yield config, run
            return
        if not config.hosts.checkpoints_dir:
            _check_seen(run)
        places = _small_files(run), _files(_shared_store(config))
        files, store = told_by_first(lambda: tuple(dict(place) for place in places))
        if is_first():
            yield config, run
            return
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stepalign-")))
        own = dataclasses.replace(config, runs_dir=str(scratch / "runs"))
        _write(files, Path(own.runs_dir))
        if store:
            _write(store, scratch / "store")
        if config.critiques.shared_store:
            critiques = dataclasses.replace(
                config.critiques, shared_store=str(scratch / "store")
            )
            own = dataclasses.replace(own, critiques=critiques)
        yield own, dataclasses.replace(RunDirectory.of(own), shared=run.path)


def _open(config: Config, stack: contextlib.ExitStack) -> RunDirectory:
    run = RunDirectory.of(config)
    locked = stack.enter_context(lock_run(run))
    open_run(config)
    if locked:
        run.sweep()
    return run


def _check_seen(run: RunDirectory) -> None:
    """Refuses a directory that only some hosts see: checkpoints could not be written there."""
    path = run.path / ".seen"

    def show() -> str:
        token = secrets.token_hex(8)
        path.write_text(token, encoding="utf-8")
        return token

    token = told_by_first(show)
    try:
        blind = "" if path.read_text(encoding="utf-8") == token else "one does not"
    except OSError:
        blind = "one does not"
    blind = agreed(blind)
    told_by_first(path.unlink)
    if blind:
        raise UserError(
            f"{run.path} is not the directory that the first process writes to: set runs_dir "
            "to one that every host sees, such as a network file system, or "
            "hosts.checkpoints_dir to a bucket."
        )


def _small_files(run: RunDirectory) -> Iterator[tuple[str, bytes]]:
    """What of a run, and of what the runs beside it share, decides what it does next."""
    for place in (run.path, run.path.parent / SELECTED):
        for name, content in _files(place):
            yield f"{place.name}/{name}", content


def _files(place: Path | None) -> Iterator[tuple[str, bytes]]:
    if place is None or not place.is_dir():
        return
    # What is not copied is not read either: checkpoints are large.
    for top in sorted(path for path in place.iterdir() if path.name not in _NOT_COPIED):
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                yield path.relative_to(place).as_posix(), path.read_bytes()


def _shared_store(config: Config) -> Path | None:
    return Path(config.critiques.shared_store) if config.critiques.shared_store else None


def _write(files: Files, place: Path) -> None:
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
