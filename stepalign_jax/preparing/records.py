# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Records with named columns, and the rows of problems that are made of them."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.names import nearest
from stepalign_jax.base.text import surrogate_at
from stepalign_jax.preparing.rows import BadRow, Dropped, Row
from stepalign_jax.problems.jsonl import number_as_text

Record = Mapping[str, Any]

RECORDS_PER_BATCH = 64
BUFFER = 2**20  # bytes of a column that are read at a time
_PEEKED = 100  # records whose keys tell the columns of JSON Lines


class FieldError(Exception):
    """A field of one record cannot be used."""

    def __init__(self, field: str, reason: str):
        """Args: the field, or "" for the record as a whole; the reason, in words."""
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


class Records(NamedTuple):
    """Records of a data set.

    Attributes:
      parts: names of its files or shards.
      read: (part, columns) -> its records in order, with their numbers from 1. It may read no
        more than the columns. A broken record is a BadRow.
      details: JSON for the manifest.
      identity: changes when a file does.
    """

    parts: Sequence[str]
    read: Callable[[str, Sequence[str]], Iterator[tuple[int, Record] | BadRow]]
    details: Mapping[str, Any]
    identity: str


def rows_of(
    records: Records,
    columns: Sequence[str],
    take: Callable[[Record, str], Row | Dropped],
) -> Callable[[str, int], Iterator[Row | Dropped | BadRow]]:
    """Returns the `read` of a Source.

    Args:
      records: of a data set.
      columns: what `take` looks at.
      take: (record, where it stands) -> what becomes of it; a FieldError makes it a BadRow.
    """

    def read(part: str, skip: int) -> Iterator[Row | Dropped | BadRow]:
        for found in islice(records.read(part, columns), skip, None):
            if isinstance(found, BadRow):
                yield found
                continue
            number, record = found
            try:
                yield take(record, f"{part} row {number}")
            except FieldError as error:
                yield BadRow(part, number, error.field, error.reason)

    return read


def text_field(record: Record, field: str) -> str:
    """Returns a text, stripped.

    Raises:
      FieldError: it is missing, is no text, or cannot be written as UTF-8.
    """
    if field not in record:
        raise FieldError(field, f"missing{nearest_hint(field, record)}")
    value = record[field]
    if not isinstance(value, str):
        raise FieldError(field, f"must be text, not {_kind(value)}")
    if (place := surrogate_at(value)) is not None:
        raise FieldError(field, f"holds half a character at character {place}")
    return value.strip()


def answer_field(record: Record, field: str) -> str:
    """Returns a text or a number as text.

    Raises:
      FieldError: it is neither.
    """
    if field in record:
        record = {**record, field: number_as_text(record[field])}
    return text_field(record, field)


def question_field(record: Record, field: str) -> str:
    """Returns a text that is not blank.

    Raises:
      FieldError: it is not such a text.
    """
    if not (text := text_field(record, field)):
        raise FieldError(field, "must not be blank")
    return text


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def nearest_hint(field: str, known: Iterable[str]) -> str:
    """Words about the name most like `field`, if there is any."""
    return f"; the nearest is {nearest(field, known)!r}" if known else ""


def check_columns(records: Records, columns: Mapping[str, str]) -> None:
    """Refuses a data set that lacks a column, before it is read.

    Args:
      records: of the data set; the first part is looked at.
      columns: the names of the columns, and the option that names each, or "".

    Raises:
      UserError: it says in which file, in which row, which column, and the one most like it.
    """
    part = records.parts[0]
    first, known = None, set[str]()
    for found in islice(records.read(part, ()), _PEEKED):
        if not isinstance(found, BadRow):
            first = first or found[0]
            known |= found[1].keys()
    for column, option in columns.items():
        if known and column not in known:
            mend = f"name the right one with {option}" if option else "is it that data set?"
            lacks = f"has no column {column!r}{nearest_hint(column, sorted(known))}"
            raise UserError(f"{part} row {first} {lacks}: {mend}")


def import_data_package(name: str) -> Any:
    """Imports a package of the extra `data`.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)  # a second to import, and only used here
    except ImportError as error:
        raise UserError(
            f"this data needs the package {name.partition('.')[0]}: install it with "
            "pip install 'stepalign_jax[data]'"
        ) from error
