# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.grading.grader import Grader
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.setup import check_golds


def problems(*golds: str) -> list[Problem]:
    return [Problem(f"problem {i}", gold, None, "a test") for i, gold in enumerate(golds)]


def test_golds_that_cannot_be_read_are_named_in_one_line(capsys):
    with Grader(deadline_secs=30.0, num_workers=1) as grader:
        check_golds(grader, problems("7", "x+", "x+", "n+1 for all p", r"\frac12"))
    out, line = capsys.readouterr()
    assert not out and line.count("\n") == 1
    assert "2 of 4 expected answers" in line and "'x+', 'n+1 for all p'" in line


def test_plain_golds_start_no_worker_and_say_nothing(capsys):
    with Grader(deadline_secs=30.0, num_workers=1) as grader:
        check_golds(grader, problems("7", "1/2", "No", r"1\,000"))
        assert grader.process_ids == []
    assert capsys.readouterr() == ("", "")


def test_a_scorer_that_cannot_be_had_is_refused_before_all_else(monkeypatch):
    monkeypatch.setattr("stepalign_jax.grading.tasks.PACKAGE", "no_such_package")
    scorer = '{"task": "sorting", "entry": {"answer": "a, b"}}'
    scored = Problem("Sort.", "a, b", None, "a test", scorer=scorer)
    with Grader(deadline_secs=30.0, num_workers=1) as grader:
        with pytest.raises(
            UserError, match=r"task sorting .*pip install 'stepalign_jax\[gym\]'"
        ):
            check_golds(grader, [*problems("7", "x+"), scored])
        assert grader.process_ids == []
