# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One row per problem, kept on disk, so that memory does not grow with what is read.

A database in SQLite holds the problems found so far, the bad rows, every count, and how far the
source has been read, and changes all of them in one transaction. A process that was killed
therefore goes on behind the last transaction, and ends with the same rows and counts.

    problem's first row  ──► kept, with its answer and reference
    further rows         ──► counted; one that brings the first reference lends it, one that
                             disagrees on the answer sets the problem aside
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.hashing import digest
from stepalign_jax.base.progress import progress
from stepalign_jax.grading.normalise import normalize
from stepalign_jax.grading.spelling import rational
from stepalign_jax.preparing.rows import BadRow, Dropped, Row, Source
from stepalign_jax.preparing.write import problem_key

_ITEMS_PER_TRANSACTION = 500
_TABLES = """
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE bad (file TEXT, row INTEGER, field TEXT, reason TEXT);
CREATE TABLE problems (key BLOB PRIMARY KEY, problem TEXT, answer TEXT, reference TEXT,
                       scorer TEXT, place TEXT, split TEXT,
                       other_answer TEXT, other_place TEXT);
"""


class Gathered:
    """The rows of one source, read so far; made by `open_gathered`."""

    def __init__(self, database: sqlite3.Connection):
        """Args: `database` has the tables."""
        self._database = database
        found = dict(database.execute("SELECT name, value FROM state"))
        self._counts: dict[str, int] = json.loads(found.get("counts", "{}"))
        self._part, self._taken = json.loads(found.get("place", "[0, 0]"))

    def read(self, source: Source) -> None:
        """Reads what has not been read of the source, with a bar."""
        with progress(description=f"read {source.name}") as bar:
            bar.update(self._count("rows_read"))
            while self._part < len(source.parts):
                items = source.read(source.parts[self._part], self._taken)
                while batch := list(islice(items, _ITEMS_PER_TRANSACTION)):
                    self._take(batch)
                    bar.update(len(batch))
                    bar.set_postfix_str(self._words())
                with self._database:
                    self._moved(self._part + 1, 0)

    def counts(self, source: Source) -> list[tuple[str, int]]:
        """What was read and what each filter took, in the filters' order.

        Further rows of a problem count as `duplicate_problems`; a problem whose rows disagree
        counts once more, as one of `gold_conflicts`.
        """
        names = ("rows_read", "bad", *source.filters, "duplicate_problems")
        conflicts = self._number("SELECT count(*) FROM problems WHERE other_answer NOTNULL")
        counted = [(name, self._count(name)) for name in names]
        return [*counted, ("gold_conflicts", conflicts)]

    @property
    def num_problems(self) -> int:
        """Problems whose rows agree."""
        return self._number("SELECT count(*) FROM problems WHERE other_answer ISNULL")

    def rows(self) -> Iterator[Row]:
        """One row per problem whose rows agree, in the order of the problems' hashes."""
        columns = "problem, answer, reference, scorer, place, split"
        query = f"SELECT {columns} FROM problems WHERE other_answer ISNULL ORDER BY key"
        for problem, answer, reference, scorer, *rest in self._database.execute(query):
            yield Row(problem, answer, reference, json.loads(scorer), *rest)

    def bad_rows(self) -> Iterator[dict[str, Any]]:
        """The bad rows as JSON, in the order in which they were read."""
        query = "SELECT file, row, field, reason FROM bad ORDER BY rowid"
        for values in self._database.execute(query):
            yield BadRow(*values)._asdict()

    def conflicts(self) -> Iterator[dict[str, Any]]:
        """The problems whose rows disagree as JSON, with the first two answers."""
        query = "SELECT problem, answer, place, other_answer, other_place FROM problems "
        for problem, *found in self._database.execute(
            query + "WHERE other_answer NOTNULL ORDER BY key"
        ):
            yield {"problem": problem, "answers": found[::2], "where": found[1::2]}

    def _take(self, batch: list[Row | Dropped | BadRow]) -> None:
        with self._database:  # one transaction
            for item in batch:
                self._add("rows_read")
                if isinstance(item, Row):
                    self._take_row(item)
                elif isinstance(item, Dropped):
                    self._add(item.filter)
                else:
                    self._add("bad")
                    self._database.execute("INSERT INTO bad VALUES (?, ?, ?, ?)", item)
            self._moved(self._part, self._taken + len(batch))

    def _take_row(self, row: Row) -> None:
        key, run = problem_key(row.problem), self._database.execute
        query = "SELECT answer, other_answer FROM problems WHERE key = ?"
        if (known := run(query, (key,)).fetchone()) is None:
            scorer = json.dumps(row.scorer, sort_keys=True)
            values = (key, row.problem, row.answer, row.reference, scorer, row.where, row.split)
            run("INSERT INTO problems VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL)", values)
            return
        self._add("duplicate_problems")
        if row.reference is not None:
            change = "UPDATE problems SET reference = coalesce(reference, ?) WHERE key = ?"
            run(change, (row.reference, key))
        if known[1] is None and not same_answer(known[0], row.answer):
            change = "UPDATE problems SET other_answer = ?, other_place = ? WHERE key = ?"
            run(change, (row.answer, row.where, key))

    def _moved(self, part: int, taken: int) -> None:
        values = [("counts", json.dumps(self._counts)), ("place", json.dumps([part, taken]))]
        self._database.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", values)
        self._part, self._taken = part, taken

    def _add(self, name: str) -> None:
        self._counts[name] = self._count(name) + 1

    def _count(self, name: str) -> int:
        return self._counts.get(name, 0)

    def _number(self, query: str) -> int:
        return self._database.execute(query).fetchone()[0]

    def _words(self) -> str:
        problems = 2 * self._count("rows_read") - sum(self._counts.values())
        return f"{problems} problems, {self._count('bad')} bad rows"


def same_answer(left: str, right: str) -> bool:
    """Whether two expected answers are one text, but for LaTeX's layout, or one fraction.

    SymPy is not asked, because it may run out of time on one machine and not on another: what
    is kept depends on the text alone.
    """
    if left == right:
        return True
    left, right = normalize(left), normalize(right)
    value = rational(left)
    return left == right or (value is not None and value == rational(right))


@contextlib.contextmanager
def open_gathered(path: Path, source: Source) -> Iterator[Gathered]:
    """Opens what a stopped process has gathered of the same source, or an empty database.

    Args:
      path: the file; its parents are made.
      source: what will be read. A file that was gathered from another source is emptied.

    Raises:
      UserError: the file cannot be written, is damaged, or another process has it open.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {path.parent} ({error.strerror}): another --to?"
        ) from error
    identity = digest(source.name, source.details, list(source.parts), source.identity)
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=0.0)) as database:
            _prepare_tables(database, identity)
            yield Gathered(database)
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise UserError(
                f"{path.parent} is in use by another process: wait for it, or give another --to"
            ) from error
        raise UserError(
            f"cannot keep rows in {path} ({error}): make room for it, or delete {path.parent} "
            "to read the source again"
        ) from error


def _prepare_tables(database: sqlite3.Connection, identity: str) -> None:
    database.executescript(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL;"
        "PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 0;"
    )
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    query = "SELECT value FROM state WHERE name = 'identity'"
    if "state" in tables and database.execute(query).fetchone() == (identity,):
        return
    drop = "".join(f"DROP TABLE IF EXISTS {name};" for name in ("state", "bad", "problems"))
    database.executescript(f"BEGIN EXCLUSIVE; {drop} {_TABLES} COMMIT;")
    with database:
        database.execute("INSERT INTO state VALUES ('identity', ?)", (identity,))
