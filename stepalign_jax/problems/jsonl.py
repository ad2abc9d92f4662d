# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Problems of one's own, from a JSON Lines file."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.text import surrogate_at
from stepalign_jax.problems.problem import Problem

SOURCE = "jsonl"


def read_problems(path: str | Path) -> list[Problem]:
    """The problems of a file, in its order.

    Each line is one object with the strings `problem` and `answer`, and `reference` (a
    worked solution) where there is one; null means none. `scorer` is an object with the
    string `task` and the object `entry` where a task's own scorer judges the answer
    (`grading/scorers.py`). Other keys are ignored, and so are blank lines.

    Raises:
      UserError: the file is missing, unreadable or empty, or a line is not such an object.
    """
    problems = [_problem(record, place) for place, record in read_records(path)]
    if not problems:
        raise UserError(f"{path} is empty; it needs one problem per line, as a JSON object")
    return problems


def read_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file, each behind its place ("FILE line 3"); skips blank lines.

    Raises:
      UserError: the file is missing or unreadable, or a line is not an object.
    """
    for number, line in enumerate(_read(Path(path)).split("\n"), start=1):
        if line.strip():
            place = f"{path} line {number}"
            yield place, _parse_line(line, place)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except FileNotFoundError:
        raise UserError(
            f"there is no problem file {path}: make it, one object with problem, answer and "
            "reference per line (the config's own notes say from what), or name another "
            "directory with --problems.path=..."
        ) from None
    except OSError as error:
        raise UserError(f"cannot read the problem file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; convert it") from error


def _parse_line(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits too
        deep = isinstance(error, RecursionError)
        reason = "nested too deeply" if deep else str(error).partition(";")[0]
        raise UserError(f"{place} is not JSON ({reason}); write one object per line") from error
    if not isinstance(record, dict):
        raise UserError(f"{place} is not a JSON object, but {json.dumps(record)[:40]}")
    return record


def _problem(record: dict[str, Any], place: str) -> Problem:
    reference = record.get("reference")
    return Problem(
        text=text_field(record, "problem", place),
        answer=text_field(record, "answer", place),
        reference=None if reference is None else text_field(record, "reference", place),
        source=SOURCE,
        scorer=_scorer(record.get("scorer"), place),
    )


def _scorer(value: object, place: str) -> str | None:
    if value is None:
        return None
    parts = value if isinstance(value, dict) else {}
    if not (isinstance(parts.get("task"), str) and isinstance(parts.get("entry"), dict)):
        raise UserError(
            f"{place}: 'scorer' must be an object with the string 'task' and the object "
            "'entry'; leave it out where the answer is mathematics"
        )
    return scorer_text(parts)


def scorer_text(scorer: Mapping[str, Any]) -> str:
    """Returns `Problem.scorer`: one text for one scorer."""
    return json.dumps(scorer, sort_keys=True)


def number_as_text(value: Any) -> Any:
    """Returns a finite number as text, as some data sets give answers; else what it is."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    return value


def text_field(record: Mapping[str, Any], key: str, place: str) -> str:
    """Returns the text under a key.

    Raises:
      UserError: it is missing, blank, no text, or cannot be written as UTF-8.
    """
    if key not in record:
        raise UserError(f"{place} has no key {key!r}; add it as a string")
    value = record[key]
    if not isinstance(value, str):
        found = json.dumps(value, default=str)[:40]  # a Parquet file has more types than JSON
        raise UserError(f"{place}: {key!r} must be a string, not {found}")
    if not value.strip():
        raise UserError(f"{place}: {key!r} must not be blank")
    if (found := surrogate_at(value)) is not None:
        raise UserError(
            f"{place}: {key!r} holds half a character ({value[found]!a}) at character {found}; "
            "write it again"
        )
    return value
