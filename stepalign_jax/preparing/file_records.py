# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Records of one's own files: JSON Lines and Parquet.

Both are read here and not by `datasets`, so that a broken row or file costs no other. Memory is
bounded by the longest line, or by one page of each column.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.preparing.records import (
    BUFFER,
    RECORDS_PER_BATCH,
    Record,
    Records,
    import_data_package,
    nearest_hint,
)
from stepalign_jax.preparing.rows import BadRow

_ENDINGS = (".jsonl", ".parquet")
_NAMED_AS_ON_THE_HUB = re.compile(r"(.+)-\d{5}-of-\d{5}\.\w+")
_LONGEST_LINE = 2**26  # bytes


def open_files(path: Path, split: str) -> Records:
    """Opens a .jsonl or .parquet file, or all of them in a directory.

    Args:
      path: of the file (a .json with an object per line is taken too), or the directory.
      split: of files named as on the Hub (`cot-00000-of-00144.parquet`) only this one's.

    Raises:
      UserError: there is no such file in it, or pyarrow is missing for Parquet.
    """
    root, files = path.parent, [path]
    if path.is_dir():
        root, files = path, sorted(file for file in path.rglob("*") if _belongs(file, split))
    if not files or files[0].suffix not in (*_ENDINGS, ".json"):
        raise UserError(f"{path} holds no {' or '.join(_ENDINGS)} file of problems ({split})")
    if any(file.suffix == ".parquet" for file in files):
        import_data_package("pyarrow.parquet")
    stats = {str(file.relative_to(root)): file.stat() for file in files}

    def read(part: str, columns: Sequence[str]) -> Iterator[tuple[int, Record] | BadRow]:
        file = root / part
        reader = _read_parquet if file.suffix == ".parquet" else _read_jsonl
        return reader(file, part, columns)

    sizes = [{"name": name, "bytes": stat.st_size} for name, stat in stats.items()]
    changed = str([stat.st_mtime_ns for stat in stats.values()])
    return Records(list(stats), read, {"path": str(path), "files": sizes}, changed)


def _belongs(file: Path, split: str) -> bool:
    named = _NAMED_AS_ON_THE_HUB.fullmatch(file.name)
    is_other = named is not None and named[1] != split
    return file.suffix in _ENDINGS and not is_other and file.is_file()


def _read_jsonl(
    path: Path, part: str, columns: Sequence[str]
) -> Iterator[tuple[int, Record] | BadRow]:
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                if line is None:
                    yield BadRow(part, number, "", f"longer than {_LONGEST_LINE} bytes")
                elif line.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield _parse(line, part, number)
    except OSError as error:
        yield BadRow(part, number + 1, "", f"cannot be read on from here: {error.strerror}")


def _lines(file: Any) -> Iterator[bytes | None]:
    """Lines in bounded memory; None for one that is too long."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) < _LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_LINE)
        yield None


def _parse(line: bytes, part: str, number: int) -> tuple[int, Record] | BadRow:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRow(part, number, "", f"not UTF-8 at byte {error.start}")
    except RecursionError:
        return BadRow(part, number, "", "not JSON: nested too deeply")
    except ValueError as error:
        return BadRow(part, number, "", f"not JSON: {str(error).partition(';')[0]}")
    if not isinstance(record, dict):
        return BadRow(part, number, "", "not a JSON object")
    return number, record


def _read_parquet(
    path: Path, part: str, columns: Sequence[str]
) -> Iterator[tuple[int, Record] | BadRow]:
    parquet = import_data_package("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
    except (OSError, ValueError) as error:  # pyarrow's own are these two
        yield BadRow(part, 0, "", f"cannot be opened: {_first_line(error)}")
        return
    with file:
        known = file.schema_arrow.names
        for column in columns:
            if column not in known:
                reason = f"the file has no such column{nearest_hint(column, known)}"
                yield BadRow(part, 0, column, reason)
                return
        before = 0
        for group in range(file.num_row_groups):
            done = 0
            try:
                for record in _group_records(file, group, columns or known):
                    done += 1
                    yield before + done, record
            except (OSError, ValueError) as error:
                last = before + file.metadata.row_group(group).num_rows
                reason = f"rows up to {last} cannot be read: {_first_line(error)}"
                yield BadRow(part, before + done + 1, "", reason)
            before += file.metadata.row_group(group).num_rows


def _group_records(file: Any, group: int, columns: Sequence[str]) -> Iterator[Record]:
    wanted = {"row_groups": [group], "columns": list(columns)}
    for batch in file.iter_batches(RECORDS_PER_BATCH, **wanted):
        yield from batch.to_pylist()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
