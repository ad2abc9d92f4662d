# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The prepared directory: one file per split, and a manifest that says what they came from.

    train.jsonl, validation.jsonl, test.jsonl   {"problem", "answer", "reference"?, ...}
    manifest.json                               counts, options, hashes; no time of day

Which split a problem belongs to depends on nothing but its text and the shares: rows that are
added later move no other problem.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stepalign_jax.base.files import jsonl_row, write_json
from stepalign_jax.base.hashing import digest
from stepalign_jax.base.version import package_version
from stepalign_jax.preparing.rows import Row, Source
from stepalign_jax.problems.locked import MANIFEST
from stepalign_jax.problems.sources import SPLITS

FORMAT = 1


class SplitRule(NamedTuple):
    """Shares of all problems, by hash; the rest trains.

    Attributes:
      validation, test: in 0..1, with a sum of at most 1.
    """

    validation: float
    test: float


def problem_key(problem: str) -> bytes:
    """32 bytes that stand for a problem, however its white space and accents are written."""
    text = " ".join(unicodedata.normalize("NFC", problem).split())
    return hashlib.sha256(text.encode()).digest()


def split_of(problem: str, rule: SplitRule) -> str:
    """Returns the one split that a problem belongs to."""
    # The last bytes; the first ones order the rows, in which the splits so are mixed.
    place = int.from_bytes(problem_key(problem)[-8:], "big") / 2**64
    if place < rule.test:
        return "test"
    return "validation" if place < rule.test + rule.validation else "train"


def write_splits(
    directory: Path, rows: Iterable[Row], rule: SplitRule, limits: Mapping[str, int | None]
) -> dict[str, int]:
    """Writes the files of the splits, and returns the number of problems in each.

    The rows come in an order that has nothing to do with the splits (`Gathered.rows`), so a
    limit takes an even sample.

    Args:
      directory: exists.
      rows: one per problem. Once every split is full, no further row is asked for.
      rule: the shares.
      limits: the most problems of each split; None: all.
    """
    counts: dict[str, int] = dict.fromkeys(list[str](SPLITS), 0)
    files = {split: (directory / f"{split}.jsonl").open("wb") for split in SPLITS}
    try:
        if not all(limits[split] == 0 for split in SPLITS):
            for row in rows:
                split = row.split or split_of(row.problem, rule)
                limit = limits[split]
                if limit is None or counts[split] < limit:
                    files[split].write(jsonl_row(_record(row)).encode())
                    counts[split] += 1
                if all(counts[split] == limits[split] for split in SPLITS):
                    break
    finally:
        for file in files.values():
            file.close()
    return counts


def _record(row: Row) -> dict[str, Any]:
    optional = {"reference": row.reference, "scorer": row.scorer, "where": row.where or None}
    found = {name: value for name, value in optional.items() if value is not None}
    return {"problem": row.problem, "answer": row.answer, **found}


def write_manifest(
    directory: Path,
    source: Source,
    rule: SplitRule,
    counts: Sequence[tuple[str, int]],
    splits: Mapping[str, int],
    options: Mapping[str, Any],
    stages: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Writes the manifest beside the files it describes, and returns it.

    Args:
      directory: holds the files of the splits, and what else is listed with its hash.
      source: what was read.
      rule: how it was split.
      counts: (what, number) in the order of the filters; the first is what was read.
      splits: the number of problems in each.
      options: of the command.
      stages: what decides the filters that ask a model; None: there were none.
    """
    files = {path.name: _file(path) for path in sorted(directory.glob("*.jsonl"))}
    manifest = {
        "format": FORMAT,
        "version": package_version(),
        "source": {"name": source.name, **source.details},
        "licence": source.licence,
        "options": dict(options),
        "stages": stages and dict(stages),
        "split": rule._asdict(),
        "counts": [{"what": what, "number": number} for what, number in counts],
        "problems": dict(splits),
        "files": files,
        "content": digest({name: file["sha256"] for name, file in files.items()}),
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": found, "bytes": path.stat().st_size}
