# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""tests/run_slow.py: a page in which each file's section is the last that was run."""

import runpy
from pathlib import Path

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "run_slow.py"), run_name="run_slow")
SAID = "tests/a.py::test PASSED\n## not a heading\n===== 1 passed in 2.00s =====\n"


def test_a_section_is_replaced_and_the_others_stay():
    page = TOOL["with_section"]("", "tests/b.py", said=SAID, when="Monday")
    page = TOOL["with_section"](page, "tests/a.py", said=SAID, when="Tuesday")
    again = SAID.replace("1 passed", "1 failed")
    page = TOOL["with_section"](page, "tests/b.py", said=again, when="Friday")
    first, second = TOOL["sections"](page).items()
    assert first == ("tests/a.py", f"1 passed in 2.00s: Tuesday\n\n```\n{SAID.strip()}\n```")
    assert second == ("tests/b.py", f"1 failed in 2.00s: Friday\n\n```\n{again.strip()}\n```")
    assert page.startswith("# Slow tests\n") and page.count("\n## tests/") == 2


def test_files_that_hold_a_slow_test_are_found(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    found = TOOL["slow_files"](["tests/launch", "tests/base/test_run_slow.py"])
    assert found == ["tests/launch/test_histories.py", "tests/launch/test_scripts.py"]
