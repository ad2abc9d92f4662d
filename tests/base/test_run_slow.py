# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""tests/run_slow.py: a page in which each file's section is the last that was run."""

import runpy
from pathlib import Path

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "run_slow.py"), run_name="run_slow")
SAID = "tests/a.py::test PASSED\n## not a heading\n===== 1 passed in 2.00s =====\n"


def test_a_section_is_replaced_and_the_others_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tests").mkdir()
    for name in "ab":
        Path(f"tests/{name}.py").touch()
    page = TOOL["with_section"]("", "tests/b.py", said=SAID, when="Monday")
    page = TOOL["with_section"](page, "tests/a.py", said=SAID, when="Tuesday")
    again = SAID.replace("1 passed", "1 failed")
    page = TOOL["with_section"](page, "tests/b.py", said=again, when="Friday")
    first, second = TOOL["sections"](page).items()
    assert first == ("tests/a.py", f"1 passed in 2.00s: Tuesday\n\n```\n{SAID.strip()}\n```")
    assert second == ("tests/b.py", f"1 failed in 2.00s: Friday\n\n```\n{again.strip()}\n```")
    assert page.startswith("# Slow tests\n") and page.count("\n## tests/") == 2
    Path("tests/b.py").unlink()  # a file that is gone takes its section along
    page = TOOL["with_section"](page, "tests/a.py", said=SAID, when="Sunday")
    assert list(TOOL["sections"](page)) == ["tests/a.py"]


def test_files_that_hold_a_slow_test_are_found(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    found = TOOL["slow_files"](["tests/launch", "tests/base/test_run_slow.py"])
    assert found == ["tests/launch/test_histories.py", "tests/launch/test_scripts.py"]


def test_a_failure_is_told_and_a_file_may_have_an_interpreter_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("test_x.py").write_text(
        "import pytest\n@pytest.mark.slow\ndef test_x():\n    assert 1 == 2\n"
    )
    status, said = TOOL["run"]("test_x.py")
    assert status == 1 and "assert 1 == 2" in said and str(tmp_path) not in said
    monkeypatch.setitem(TOOL["INTERPRETERS"], "test_x.py", "echo")
    status, said = TOOL["run"]("test_x.py")
    assert status == 0 and said.startswith("-m pytest -m slow")


def test_files_with_an_interpreter_of_their_own_exist():
    root = Path(__file__).parents[2]
    assert [file for file in TOOL["INTERPRETERS"] if not (root / file).exists()] == []
