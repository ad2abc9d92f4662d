# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a source of problems gives: one item for each row that it reads.

    source  ──► Row | Dropped | BadRow   one of them per row, in an order that never changes
    filter  ──► Row | Dropped            of the rows that reached it

So the rows that were read are the sum of what was kept and of every count in the manifest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A problem that may be kept.

    Attributes:
      problem: the question.
      answer: the expected final answer.
      reference: a worked solution, or None.
      scorer: JSON that says how answers are judged where that is no mathematics, or None.
      where: file and row that it comes from, for the reader of the prepared files.
      split: the one that the source puts it in; "": the split rule decides.
    """

    problem: str
    answer: str
    reference: str | None
    scorer: Mapping[str, Any] | None = None
    where: str = ""
    split: str = ""


class BadRow(NamedTuple):
    """A row that cannot be used; it is counted and listed, and never fatal.

    Attributes:
      file: the part of the source.
      row: counted from 1; 0 is the file as a whole.
      field: the column, or "" where it is the row as a whole.
      reason: in words.
    """

    file: str
    row: int
    field: str
    reason: str


class Dropped(NamedTuple):
    """A good row that a filter took out.

    Attributes:
      filter: its name, one of those that the source or the filter declares.
    """

    filter: str


class Source(NamedTuple):
    """Where rows come from.

    Attributes:
      name: for the manifest and for messages.
      parts: what is read one after the other: files, shards, or one name for all of it.
      read: (part, skip) -> an iterator over the part's items behind its first `skip` ones. The
        same part always gives the same items in the same order.
      filters: names of the filters in it, in the order in which they are applied.
      details: JSON for the manifest: what was read, and the options that decide the rows.
      licence: of the data, in words.
      identity: changes when what would be read does; unlike `details` it is in no manifest.
    """

    name: str
    parts: Sequence[str]
    read: Callable[[str, int], Iterator[Row | Dropped | BadRow]]
    filters: Sequence[str]
    details: Mapping[str, Any]
    licence: str
    identity: str = ""


class Stages(NamedTuple):
    """Filters that look at one row per problem, before the split.

    Attributes:
      filters: their names, in order.
      apply: (rows, directory) -> the rows, each as it was or Dropped, in the same order. The
        directory lasts until the command is done, so that one that was stopped can go on. No
        more rows are asked for once every split is full.
      details: JSON for the manifest: all that decides what they drop.
    """

    filters: Sequence[str]
    apply: Callable[[Iterator[Row], Path], Iterator[Row | Dropped]]
    details: Mapping[str, Any]
