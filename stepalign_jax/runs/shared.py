# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A command that several processes run together: one of them writes its files.

    process 0      works with the files themselves: locks the run it trains, and writes
    the others     work in copies of the small ones, in a scratch directory of their own,
                   which goes when they end; what they write there is what process 0 writes

So each finds what it would find alone (an evaluation that is done, a critique that was asked
for), all of them find the same, and no file has two writers. Checkpoints alone are read and
written together, in the run's own directory, which every host must then see, or where
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
from stepalign_jax.sampling.kept import partial_file

_NOT_COPIED = ("checkpoints", "rollouts", "tensorboard", "report", "set_aside", "lock.json")


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
        if not is_alone() and not config.hosts.checkpoints_dir:
            _check_seen(run)
        own, copy, _ = stack.enter_context(own_files(config, run))
        assert copy is not None
        yield own, copy


@contextlib.contextmanager
def own_files(
    config: Config, run: RunDirectory | None = None, result: Path | None = None
) -> Iterator[tuple[Config, RunDirectory | None, Path | None]]:
    """What a command reads and writes beside the problems, or copies of it, for this process.

    Args:
      config: names the runs' directory and the shared store of critiques.
      run: that the command reads, if any.
      result: the file that it writes, if any.

    Yields:
      The three by which this process works; those given in the first one.
    """
    if is_alone():
        yield config, run, result
        return
    files = told_by_first(lambda: dict(_small_files(config, run, result)))
    if is_first():
        yield config, run, result
        return
    with tempfile.TemporaryDirectory(prefix="stepalign-") as scratch:
        place = Path(scratch)
        for name, content in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        own = dataclasses.replace(config, runs_dir=str(place / "runs"))
        if config.critiques.shared_store:
            critiques = dataclasses.replace(config.critiques, shared_store=str(place / "store"))
            own = dataclasses.replace(own, critiques=critiques)
        if run is not None:
            run = RunDirectory(place / "runs" / run.path.name, shared=run.path)
        yield own, run, place / "result" / result.name if result else None


def check_seen_checkpoint(run: RunDirectory, step: int) -> None:
    """Refuses a checkpoint that only some hosts see: all of them read it.

    Raises:
      UserError: in every process.
    """
    if is_alone():
        return
    if agreed("" if (run.checkpoints / str(step)).exists() else "one does not"):
        place = told_by_first(lambda: str(run.checkpoints))
        raise UserError(
            f"not every host sees {place}: put the run where all do, on a network file system, "
            "or evaluate on one host."
        )


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


def _small_files(
    config: Config, run: RunDirectory | None, result: Path | None
) -> Iterator[tuple[str, bytes]]:
    """What decides what a command does next, by its name in a scratch directory."""
    places = {f"runs/{SELECTED}": Path(config.runs_dir) / SELECTED}
    if run is not None:
        places[f"runs/{run.path.name}"] = run.path
    if config.critiques.shared_store:
        places["store"] = Path(config.critiques.shared_store)
    for where, place in places.items():
        for name, content in _files(place):
            yield f"{where}/{name}", content
    if result is not None and (partial := partial_file(result)).is_file():
        yield f"result/{partial.name}", partial.read_bytes()


def _files(place: Path) -> Iterator[tuple[str, bytes]]:
    if not place.is_dir():
        return
    # What is not copied is not read either: checkpoints are large.
    for top in sorted(path for path in place.iterdir() if path.name not in _NOT_COPIED):
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            name = path.relative_to(place).as_posix()
            # Of analyses training reads those of its probe set; others may be large.
            of_probe_set = name.startswith("analysis/step_")
            if path.is_file() and (of_probe_set or top.name != "analysis"):
                yield name, path.read_bytes()
