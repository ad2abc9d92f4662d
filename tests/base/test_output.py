# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a command prints reaches any place that can be written, and ends it nowhere oddly."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = """
import logging, os, sys
from stepalign_jax.base.errors import UserError
from stepalign_jax.config.cli import parse_arguments, run_command

def main(argv):
    if argv == ["refused"]:
        logging.getLogger("absl").error("printed by a library, before it raises")
        print("done \u2192 caf\\udce9")
        raise UserError("na\u00efve \u6570")
    if argv == ["descriptors"]:
        numbers = []
        for number in range(3):
            os.fstat(number)
        print("to stdout")
        print("to stderr", file=sys.stderr)
        with open(os.environ["TO"], "w") as file:
            file.write(str(file.fileno() > 2))
        return
    if argv == ["lines"]:
        while True:
            print("a line", flush=True)
    if argv == ["line"]:
        print("a line")
        return
    parse_arguments(argv, description="Prints.", example="")

run_command(main)
"""


def run(arguments: str, stdout: int = subprocess.PIPE, **variables: str) -> Any:
    """Runs the command from a shell, with redirections among its arguments."""
    return subprocess.run(
        ["sh", "-c", f'exec "$PYTHON" -c "$COMMAND" {arguments}'],
        env={
            **{name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"},
            "PYTHON": sys.executable,
            "COMMAND": COMMAND,
            "PYTHONPATH": str(ROOT),
            **variables,
        },
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:strict"])
def test_what_an_encoding_lacks_is_escaped(encoding: str) -> None:
    ended = run("refused", PYTHONIOENCODING=encoding)
    assert ended.returncode == 2
    if encoding == "utf-8:strict":
        assert (ended.stdout, ended.stderr) == ("done → caf\\udce9\n", "error: naïve 数\n")
    else:
        assert ended.stdout == "done \\u2192 caf\\udce9\n"
        i = "\\xef" if encoding == "ascii" else "\N{REPLACEMENT CHARACTER}"  # 0xEF is no UTF-8
        assert ended.stderr == f"error: na{i}ve \\u6570\n"


@pytest.mark.parametrize(
    ("argument", "unbuffered"), [("lines", ""), ("lines", "1"), ("line", ""), ("--help", "")]
)
def test_a_command_whose_output_nobody_reads_ends_quietly(argument, unbuffered) -> None:
    """Also where only what is left at the end cannot be written."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes):
        ended = run(argument, stdout=writes, PYTHONUNBUFFERED=unbuffered)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_output_that_cannot_be_written_is_one_sentence() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    ended = run("line > /dev/full")
    assert ended.returncode == 2
    assert ended.stderr == "error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-"])
def test_closed_descriptors_are_nobody_elses(closed: str, tmp_path: Path) -> None:
    """Else messages of a library may go into a file that a run writes."""
    ended = run(f"descriptors {closed}", TO=str(tmp_path / "file"))
    assert ended.returncode == 0
    assert (tmp_path / "file").read_text() == "True"
    assert (ended.stdout, ended.stderr) == ("" if ">&- 2" in closed else "to stdout\n", "")
