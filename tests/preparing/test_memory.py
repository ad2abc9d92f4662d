# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory does not grow with what is read."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.openmath import openmath_row

ROOT = Path(__file__).parents[2]
ROWS_PER_GROUP = 500

# The process's own peak above what its imports take, in MiB.
MEASURE = """
import re, sys
from pathlib import Path
import pyarrow.parquet
from support.openmath import prepare_files

def peak():  # getrusage would begin with what the process has that starts this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before = peak()
prepare_files(Path(sys.argv[1]), Path(sys.argv[2]))
print(peak() - before)
"""


def write_large(path: Path, num_groups: int) -> None:
    """Solutions of 16 KiB that no two rows share, without compression: 8 MB a group."""
    table = pa.Table.from_pylist([openmath_row(0)])
    with pq.ParquetWriter(path, table.schema, compression="NONE", use_dictionary=False) as file:
        for group in range(num_groups):
            numbers = range(group * ROWS_PER_GROUP, (group + 1) * ROWS_PER_GROUP)
            rows = [
                openmath_row(
                    n, generated_solution=f"<think>{n} {'x' * 16_000}</think>It is {n}"
                )
                for n in numbers
            ]
            file.write_table(pa.Table.from_pylist(list(rows), table.schema))


def peak(source: Path, target: Path) -> float:
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    printed = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(target)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=True, timeout=1800, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    return float(printed)


def test_five_times_the_rows_take_no_more_memory(tmp_path):
    small, large = tmp_path / "small.parquet", tmp_path / "large.parquet"
    write_large(small, 3)
    write_large(large, 15)
    assert large.stat().st_size > 120e6
    of_small, of_large = (peak(path, tmp_path / path.stem) for path in (small, large))
    print(of_small, of_large)
    # Batches, SQLite's cache and what the allocators keep; the file grew by 96 MB.
    assert of_large - of_small < 32


@pytest.mark.slow
def test_of_a_gigabyte(tmp_path):
    write_large(tmp_path / "huge.parquet", 125)
    assert (tmp_path / "huge.parquet").stat().st_size > 1e9
    assert peak(tmp_path / "huge.parquet", tmp_path / "out") < 128
