# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Files in the nine columns of nvidia/OpenMathReasoning, with what we plant in them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stepalign_jax.preparing import prepared
from stepalign_jax.preparing.file_records import open_files
from stepalign_jax.preparing.openmath import openmath_source
from stepalign_jax.preparing.write import SplitRule

TEXT_COLUMNS = (
    *("expected_answer", "problem_type", "problem_source", "generation_model"),
    *("pass_rate_72b_tir", "problem", "generated_solution", "inference_mode"),
)


def openmath_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row that every filter keeps, about a problem of this number, with changes."""
    return {
        "expected_answer": str(number + 1),
        "problem_type": "has_answer_extracted",
        "problem_source": "aops_c4_high_school_math",
        "generation_model": "DeepSeek-R1",
        "pass_rate_72b_tir": "0.96875",
        "problem": f"What follows {number}?",
        "generated_solution": f"<think>\nhm, {number}\n</think>\nAfter {number} comes another.",
        "inference_mode": "cot",
        "used_in_kaggle": False,
    } | changes


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], **options: Any) -> None:
    import pyarrow as pa  # here, because processes that are killed start faster without it
    import pyarrow.parquet as pq

    texts = [(name, pa.string()) for name in TEXT_COLUMNS]
    schema = pa.schema([*texts, ("used_in_kaggle", pa.bool_())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(map(dict, rows)), schema), path, **options)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> None:
    """JSON Lines; a text stands as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def planted_rows() -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows with faults that Parquet can hold, and what each filter has to count of them."""
    row = openmath_row
    faults = {
        "bad": [
            row(900, problem=None),
            row(901, problem=" \n"),
            row(902, problem_type=None),
            row(903, problem_type="made up"),
            row(904, pass_rate_72b_tir="often"),
            row(905, pass_rate_72b_tir="1.5"),
            row(906, pass_rate_72b_tir="nan"),
        ],
        "proofs": [row(910 + i, problem_type="converted_proof") for i in range(6)],
        "voted_answers": [row(920 + i, problem_type="no_answer_extracted") for i in range(5)],
        "answerless": [row(930, expected_answer=None), row(931, expected_answer=" ")],
        "pass_rate_unknown": [row(940 + i, pass_rate_72b_tir="n/a") for i in range(4)],
        # 0.85 itself is not above 0.85.
        "pass_rate": [row(950 + i, pass_rate_72b_tir=r) for i, r in enumerate(["0.85", "0"])],
        "duplicate_problems": [
            row(0, generated_solution="another"),
            row(0, problem="What  follows\n0? "),  # white space does not make a problem
            row(1, expected_answer="$2$"),  # layout does not make an answer
            row(2, expected_answer="4"),  # disagrees with 3
            row(2, expected_answer="5"),
            row(3, expected_answer="five"),
            # Rows that an earlier filter takes have no say in what the answer is.
        ],
    }
    silent = row(4, expected_answer="77", pass_rate_72b_tir="0.1")
    faults["pass_rate"].append(silent)
    kept = [row(number) for number in range(60)]
    taken = [found for rows in faults.values() for found in rows]
    # The first of a problem is the one that is kept, so duplicates follow.
    rows = kept + taken
    counts = {"rows_read": len(rows)} | {name: len(found) for name, found in faults.items()}
    return rows, counts | {"gold_conflicts": 2}


def prepare_files(source: Path, target: Path) -> str:
    """Prepares as the command does, and returns the hash of the manifest."""
    options = {"from": str(source)}
    if prepared.find_prepared(target, options) is None:
        records = open_files(source, "cot")
        prepared.prepare(
            openmath_source(records, pass_rate_above=0.85, keep_thinking=False),
            target,
            rule=SplitRule(0.1, 0.2),
            limits={"train": 30, "validation": None, "test": None},
            options=options,
            stages=None,
            overwrite=False,
        )
    return hashlib.sha256((target / "manifest.json").read_bytes()).hexdigest()
