# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What people compare on: public benchmarks in their own schemas, from files or from the Hub.

    --on aime2024            the data set on the Hub, by the package `datasets`
    --on gsm8k=DIR           a .jsonl or .parquet file with its fields, or a directory of them

A benchmark is read whole and in its order. Worked solutions beside the answers are not read:
nothing but the solver is evaluated on it.
"""

import importlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.names import nearest
from stepalign_jax.base.paths import check_path
from stepalign_jax.base.progress import waiting
from stepalign_jax.problems.jsonl import number_as_text, read_records, text_field
from stepalign_jax.problems.problem import Problem

_ENDINGS = (".jsonl", ".parquet")


class Benchmark(NamedTuple):
    """Where a benchmark lies, and where a problem stands in its rows.

    Attributes:
      hub: its id on the Hub.
      subset: the data set's configuration on the Hub; None: its only one.
      split: that is evaluated on.
      problem: the field of the question.
      answer: the field of the final answer.
      answer_after: what stands before the final answer in that field; "" where nothing does.
    """

    hub: str
    subset: str | None
    split: str
    problem: str
    answer: str
    answer_after: str


BENCHMARKS = {
    "aime2024": Benchmark("HuggingFaceH4/aime_2024", None, "train", "problem", "answer", ""),
    "aime2025": Benchmark("yentinglin/aime_2025", None, "train", "problem", "answer", ""),
    "math500": Benchmark("HuggingFaceH4/MATH-500", None, "test", "problem", "answer", ""),
    "amc23": Benchmark("math-ai/amc23", None, "test", "question", "answer", ""),
    "gsm8k": Benchmark("openai/gsm8k", "main", "test", "question", "answer", "####"),
}


def parse_on(text: str) -> dict[str, Path | None]:
    """Returns the benchmarks that `--on` names, in order, each with its local path or None.

    Raises:
      UserError: a name is unknown, or stands twice.
    """
    found: dict[str, Path | None] = {}
    for part in text.split(","):
        name, equals, path = part.strip().partition("=")
        if name not in BENCHMARKS:
            raise UserError(
                f"--on has no benchmark {name!r}, but {', '.join(BENCHMARKS)}; did you mean "
                f"{nearest(name, BENCHMARKS)!r}?"
            )
        if name in found:
            raise UserError(f"--on names {name} twice: once is enough")
        if equals:
            check_path("--on", path := os.path.expanduser(path))
        found[name] = Path(path) if equals else None
    return found


def load_benchmark(name: str, path: Path | None) -> list[Problem]:
    """Returns all problems of a benchmark.

    Args:
      name: one of BENCHMARKS.
      path: a file or directory of its rows; None: they are fetched from the Hub.

    Raises:
      UserError: it cannot be had, or a row is not as the benchmark's are.
    """
    benchmark = BENCHMARKS[name]
    if path is None:
        rows = _hub_rows(name, benchmark)
    else:
        rows = (row for file in _files(name, benchmark, path) for row in _file_rows(file))
    problems = [_problem(name, benchmark, record, place) for place, record in rows]
    if not problems:
        raise UserError(f"{path or benchmark.hub} holds no row of {name}")
    return problems


def _problem(name: str, where: Benchmark, record: Mapping[str, Any], place: str) -> Problem:
    for field in (where.problem, where.answer):
        if field not in record:
            hint = f"; the nearest is {nearest(field, record)!r}" if record else ""
            raise UserError(
                f"{place} has no field {field!r}{hint}: a row of {name} has "
                f"{where.problem!r} and {where.answer!r}"
            )
    text = text_field(record, where.problem, place)
    answer = number_as_text(record[where.answer])
    answer = text_field({where.answer: answer}, where.answer, place)
    if where.answer_after:
        _, mark, answer = answer.rpartition(where.answer_after)
        if not (mark and answer.strip()):
            raise UserError(
                f"{place}: {where.answer!r} must end in {where.answer_after!r} and the final "
                "answer"
            )
    return Problem(text, answer.strip(), None, name)


def _files(name: str, benchmark: Benchmark, path: Path) -> list[Path]:
    """The files of the benchmark's split: one that is named, or those of a directory.

    In a directory, which may be a clone from the Hub, these are the ones called like the
    split, and below the subset's own directory if there is one; or else the only file. No row
    may be read twice or be left out: two sets of files are refused, and so is half a set.
    """
    if not path.is_dir():
        if path.is_file() and path.suffix in _ENDINGS:
            return [path]
        raise UserError(
            f"--on {name}={path} is no {' or '.join(_ENDINGS)} file, nor a directory of them"
        )
    files = sorted(f for f in path.rglob("*") if f.suffix in _ENDINGS and f.is_file())
    of_split = [file for file in files if _is_of_split(file.stem, benchmark.split)]
    of_subset = [f for f in of_split if benchmark.subset in f.relative_to(path).parts]
    if not _is_one_set(chosen := of_subset or of_split or files):
        what = f"{len(of_split)} of them" if of_split else "none"
        raise UserError(
            f"{path} holds {len(files)} {' and '.join(_ENDINGS)} files, and {what} called "
            f"{benchmark.split}, so which rows are {name} is not clear: name one with "
            f"--on {name}=FILE, or leave just one whole set"
        )
    return chosen


def _is_of_split(stem: str, split: str) -> bool:
    """`test`, and `test-00000-of-00002` as the Hub calls shards."""
    return stem == split or stem.startswith(f"{split}-")


def _is_one_set(files: list[Path]) -> bool:
    """Whether these are one file, or all shards of one."""
    shards = [re.fullmatch(r".*-\d+-of-(\d+)", file.stem) for file in files]
    numbers = {int(shard[1]) if shard else 1 for shard in shards}
    places = {(file.parent, file.suffix) for file in files}
    return len(places) == 1 and numbers == {len(files)}


def _file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".jsonl":
        yield from read_records(path)
        return
    parquet = _import("pyarrow.parquet")
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own are these two
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} cannot be read as Parquet ({reason}): copy it again"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{path} row {number}", row


def _hub_rows(name: str, benchmark: Benchmark) -> Iterator[tuple[str, Mapping[str, Any]]]:
    datasets, hub, split = _import("datasets"), benchmark.hub, benchmark.split
    # Without a network it tells of five retries, and then fails with what is said below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        with waiting(f"fetching {hub}"):
            rows = datasets.load_dataset(hub, benchmark.subset, split=split)
    except Exception as error:  # of the Hub's client and of many formats; all mean the same
        raise UserError(
            f"cannot fetch {hub} from the Hub ({type(error).__name__}): on a machine with "
            f"network run `hf download {hub} --repo-type dataset --local-dir DIRECTORY`, then "
            f"give --on {name}=DIRECTORY"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{hub} {split} row {number}", row


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)  # seconds to import, and only used here
    except ImportError as error:
        raise UserError(
            f"this needs the package {module.partition('.')[0]}: pip install '.[data]'"
        ) from error
