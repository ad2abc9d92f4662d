# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Problems from a data set of one's own or of the Hub, by the names of its columns.

An answer may stand at the end of a worked solution, as in GSM8K:

    {"question": "...", "answer": "He has 3*4=12. #### 12"}     answer_after="####"
"""

import re
from pathlib import Path
from typing import NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.preparing.file_records import open_files
from stepalign_jax.preparing.hub_records import open_hub, pinned_revision
from stepalign_jax.preparing.records import (
    FieldError,
    Record,
    Records,
    answer_field,
    check_columns,
    question_field,
    rows_of,
    text_field,
)
from stepalign_jax.preparing.rows import Dropped, Row, Source

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class Columns(NamedTuple):
    """Where a problem stands in a record.

    Attributes:
      problem, answer: names of columns.
      reference: the column of worked solutions, or None.
      answer_after: what stands before the answer, the last time it occurs; None: the column
        holds nothing but the answer.
    """

    problem: str
    answer: str
    reference: str | None
    answer_after: str | None


def columns_source(records: Records, columns: Columns, licence: str) -> Source:
    """Problems in named columns.

    Raises:
      UserError: the data set lacks one of them.
    """
    options = {
        columns.problem: "--problem-column",
        columns.answer: "--answer-column",
        **({columns.reference: "--reference-column"} if columns.reference else {}),
    }
    check_columns(records, options)

    def take(record: Record, where: str) -> Row | Dropped:
        problem = question_field(record, columns.problem)
        answer = answer_field(record, columns.answer)
        reference = None
        if columns.reference is not None and record.get(columns.reference) is not None:
            reference = text_field(record, columns.reference) or None
        if answer and columns.answer_after is not None:
            _, mark, answer = answer.rpartition(columns.answer_after)
            if not mark:
                raise FieldError(columns.answer, f"does not hold {columns.answer_after!r}")
            answer = answer.strip()
        if not answer:
            return Dropped("answerless")
        return Row(problem, answer, reference, where=where)

    return Source(
        name="columns",
        parts=records.parts,
        read=rows_of(records, list(options), take),
        filters=("answerless",),
        details=records.details,
        licence=licence,
        identity=f"{records.identity} {columns}",
    )


def open_records(
    path: str, *, subset: str | None, split: str, revision: str | None, work: Path
) -> Records:
    """Opens files, or else a data set of the Hub.

    Args:
      path: a file, a directory, or the id of a data set on the Hub.
      subset: the Hub's configuration of the data set; None: its only one.
      split: of a data set on the Hub, or of files named as there.
      revision: of a data set on the Hub; None: the newest, or the one that was begun with.
      work: what is kept of the command until it is done.

    Raises:
      UserError: it is none of these, or a package is missing.
    """
    if Path(path).exists():
        return open_files(Path(path), split)
    if not _HUB_ID.fullmatch(path):
        raise UserError(
            f"there is no file or directory {path}, and it is no id of a data set on the Hub "
            "such as openai/gsm8k: give one of them as --from"
        )
    revision = revision or pinned_revision(path, work)
    return open_hub(path, subset=subset, split=split, revision=revision)
