# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs the tests marked `slow`, a file at a time, and keeps what they said in a page.

    python tests/run_slow.py --page docs/test-slow.md                        # all
    python tests/run_slow.py --page docs/test-slow.md tests/launch tests/model  # some

All of them take hours, so each file has a section of its own, written when the file has ended.
A run that is cut off has lost one file, and a section says of which commit it is.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

# Inspect asks for other versions than constraints.txt has, which .venv-slow is made with.
INTERPRETERS = {"tests/exporting/test_inspect_log.py": ".venv-inspect/bin/python"}
HEAD = "# Slow tests\n\nWhat `make test-slow` said, by file, and of which commit.\n"


def sections(page: str) -> dict[str, str]:
    """Returns what stands under each file's heading, by file."""
    found = re.split(r"^## (tests/\S+\.py)$", page, flags=re.MULTILINE)[1:]
    return {file: text.strip("\n") for file, text in zip(found[::2], found[1::2], strict=True)}


def with_section(page: str, file: str, *, said: str, when: str) -> str:
    """Returns the page with a file's section replaced, or added in the order of names.

    Sections of files that are gone go too.

    Args:
      page: Markdown; empty at first.
      file: of tests, from the repository's root.
      said: pytest's output.
      when: date, commit and Python.
    """
    last = said.strip().splitlines()[-1].strip("= ")
    there = {name: text for name, text in sections(page).items() if Path(name).exists()}
    of_file = there | {file: f"{last}: {when}\n\n```\n{said.strip()}\n```"}
    return HEAD + "".join(f"\n## {name}\n\n{text}\n" for name, text in sorted(of_file.items()))


def slow_files(paths: list[str]) -> list[str]:
    """Returns the files under the paths that hold a slow test, in the order of names."""
    command = [sys.executable, "-m", "pytest", "-m", "slow", "--collect-only", "-q", *paths]
    listed = subprocess.run(command, capture_output=True, text=True)
    files = {line.split("::")[0] for line in listed.stdout.splitlines() if "::" in line}
    if listed.returncode or not files:
        raise SystemExit(f"No slow test was found:\n{listed.stdout[-3000:]}")
    return sorted(files)


def run(file: str) -> tuple[int, str]:
    """Returns the exit status and the output of a file's slow tests; shows it as it comes."""
    python = INTERPRETERS.get(file, sys.executable)
    options = ["-m", "slow", "-v", "-rs", "--no-header", "--durations=0", "--timeout=1800"]
    # What is compiled here is what a user's machine compiles, unlike in `make test`.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    said = []
    with subprocess.Popen(
        [python, "-m", "pytest", *options, file],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    return process.returncode, "".join(said).replace(f"{Path.cwd()}/", "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", default=["tests"], metavar="PATH")
    parser.add_argument("--page", required=True, type=Path, metavar="MD")
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    failed = []
    for file in slow_files(arguments.paths):
        status, said = run(file)
        when = f"{datetime.date.today()}, commit {commit}, Python {platform.python_version()}"
        page = arguments.page.read_text(encoding="utf-8") if arguments.page.exists() else ""
        page = with_section(page, file, said=said, when=when)
        arguments.page.write_text(page, encoding="utf-8")
        if status:
            failed.append(file)
    if failed:
        raise SystemExit(f"Slow tests failed in {', '.join(failed)}.")


if __name__ == "__main__":
    main()
