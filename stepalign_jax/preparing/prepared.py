# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From a source to a prepared directory; a stopped process goes on with the same command.

source ──► gathered on disk ──► filters that ask a model ──► splits and manifest
           one row per problem       (if there are any)      appear whole or not at all

<target>                    the prepared directory
.<target>.preparing/        beside it, until it is done: what has been read so far
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import atomic_directory, atomic_file, jsonl_row, read_json_object
from stepalign_jax.base.hashing import digest
from stepalign_jax.base.stopping import EXIT_CAN_GO_ON, Stopped
from stepalign_jax.preparing.gather import Gathered, open_gathered
from stepalign_jax.preparing.rows import Dropped, Row, Source, Stages
from stepalign_jax.preparing.write import FORMAT, SplitRule, write_manifest, write_splits
from stepalign_jax.problems.locked import MANIFEST, OPENINGS

BAD_ROWS, CONFLICTS = "bad_rows.jsonl", "gold_conflicts.jsonl"


def work_directory(target: Path) -> Path:
    """What is kept of a command until it is done lies here."""
    target = target.resolve()
    return target.with_name(f".{target.name}.preparing")


def find_prepared(target: Path, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest if the same options have prepared `target`; None if it is free.

    What a process that was killed at its very end has left beside it is removed.

    Raises:
      UserError: it holds something else.
    """
    if not target.is_dir() or not any(target.iterdir()):
        return None  # a file is refused when the directory is made
    path = target / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{target} holds files that this command did not make: give another --to, or "
            "--overwrite to replace all of it"
        )
    manifest = read_json_object(path)
    is_same = digest(manifest.get("options")) == digest(options)  # a tuple is a list in JSON
    if manifest.get("format") == FORMAT and is_same:
        shutil.rmtree(work_directory(target), ignore_errors=True)
        return manifest
    before = manifest.get("options", {})
    changed = [name for name in options if before.get(name) != options[name]]
    raise UserError(
        f"{target} was prepared with another {', '.join(changed) or 'version'}: give another "
        "--to, or --overwrite to replace all of it"
    )


def prepare(
    source: Source,
    target: Path,
    *,
    rule: SplitRule,
    limits: Mapping[str, int | None],
    options: Mapping[str, Any],
    stages: Stages | None,
    overwrite: bool,
) -> dict[str, Any]:
    """Reads, filters, splits and writes; returns the manifest.

    Args:
      source: of rows.
      target: the directory.
      rule: the shares of the splits.
      limits: the most problems of each split; None: all.
      options: of the command, for the manifest.
      stages: filters that ask a model, or None.
      overwrite: whether `target` may be replaced. What counts how often a test set was opened
        is kept.

    Raises:
      UserError: no problem is left, or something cannot be read or written.
      Stopped: by a signal; the same command goes on.
    """
    work = work_directory(target)
    try:
        if (openings := target / OPENINGS).exists():  # whatever becomes of the directory
            with atomic_file(work / OPENINGS) as file:
                file.write(openings.read_bytes())
        with open_gathered(work / "rows.sqlite", source) as gathered:
            gathered.read(source)
            with atomic_directory(target, overwrite=overwrite) as directory:
                counts, splits = _write(directory, source, gathered, rule, limits, stages, work)
                details = None if stages is None else stages.details
                manifest = write_manifest(
                    directory, source, rule, counts, splits, options, details
                )
                if (openings := work / OPENINGS).exists():
                    shutil.copy(openings, directory / OPENINGS)
    except Stopped as stopped:
        words = f"{stopped}; what was read is kept, and the same command goes on"
        raise Stopped(words, EXIT_CAN_GO_ON) from stopped
    shutil.rmtree(work)
    return manifest


def _write(
    directory: Path,
    source: Source,
    gathered: Gathered,
    rule: SplitRule,
    limits: Mapping[str, int | None],
    stages: Stages | None,
    work: Path,
) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Writes all but the manifest; returns the counts of filters, and problems per split."""
    counts, dropped = gathered.counts(source), dict[str, int]()
    items: Iterable[Row | Dropped] = gathered.rows()
    if stages is not None:
        dropped = dict.fromkeys(stages.filters, 0)
        items = stages.apply(gathered.rows(), work)
    splits = write_splits(directory, _kept(items, dropped), rule, limits)
    counts += dropped.items()
    over = gathered.num_problems - sum(dropped.values()) - sum(splits.values())
    counts.append(("over_the_limits", over))
    if not any(splits.values()):
        raise UserError(_nothing_left(counts, gathered))
    _write_rows(directory / BAD_ROWS, gathered.bad_rows())
    _write_rows(directory / CONFLICTS, gathered.conflicts())
    return counts, splits


def _kept(items: Iterable[Row | Dropped], dropped: dict[str, int]) -> Iterator[Row]:
    for item in items:
        if isinstance(item, Row):
            yield item
        else:
            dropped[item.filter] += 1


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("wb") as file:  # in a directory that appears whole
        file.writelines(jsonl_row(row).encode() for row in rows)


def _nothing_left(counts: list[tuple[str, int]], gathered: Gathered) -> str:
    told = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in counts if number)
    first = next(gathered.bad_rows(), None)
    example = "" if first is None else "; the first bad row: {file} row {row} {field}: {reason}"
    return f"no problem is left ({told or 'nothing was read'})" + example.format(**first or {})
