# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A task's own scorer judges: dispatch, full marks, deadlines, and text that is evaluated."""

import json

import pytest
from support.gym import stub_gym  # noqa: F401

from stepalign_jax.base.errors import UserError
from stepalign_jax.grading.grader import NO_ANSWER, Grader
from stepalign_jax.problems.problem import Scored


@pytest.fixture
def grader(stub_gym):  # noqa: F811
    with Grader(deadline_secs=20.0, num_workers=1) as shared:
        yield shared


def scored(task: str, answer: str, *, options: dict | None = None, **metadata) -> Scored:
    entry = {"question": "?", "answer": answer, "metadata": metadata}
    scorer = {"task": task, "entry": entry} | ({"options": options} if options else {})
    return Scored(answer, json.dumps(scorer))


def test_scorers_and_mathematics_judge_side_by_side_in_order(grader):
    words = scored("words", "1/2")
    golds = [words, "1/2", words, "1/2", words]
    # As a word "0.5" is wrong, as a number it is right.
    assert grader.grade(["0.5", "0.5", "1/2", "1/3", None], golds) == [0, 1, 1, 0, 0]
    assert len(grader.process_ids) == 1  # numbers need no worker


def test_only_full_marks_are_right(grader):
    words = scored("words", "tac")
    assert grader.grade(["tac", "it is tac", "", "cat"], [words] * 4) == [1, 0, 0, 0]


def test_a_scorer_has_its_tasks_options(grader):
    short, default = (
        scored("limited", "ab", options=options) for options in ({"limit": 3}, None)
    )
    assert grader.grade(["abcdef", "abcdef"], [short, default]) == [False, True]


def test_an_answer_that_never_ends_costs_one_deadline_and_is_counted(stub_gym):  # noqa: F811
    slow = scored("slow", "tac")
    with Grader(deadline_secs=1.0, num_workers=1) as grader:
        assert grader.grade(["endless", "tac"], [slow, slow]) == [False, True]
        assert grader.grade(["endless"], [slow]) == [False]  # remembered
        assert grader.take_failures() == {"grading_timeouts": 1, "grading_crashes": 0}


def test_what_a_scorer_cannot_read_is_wrong(grader):
    assert grader.grade(["[4,", "[4,4]"], [scored("evaluated", "[4, 4]", n=4)] * 2) == [0, 1]


@pytest.mark.parametrize(
    "attack",
    [
        "[open('{file}', 'w'), [4, 4]][1]",
        "[__import__('os').system('touch {file}'), [4, 4]][1]",
        "[eval('op' + 'en(\"{file}\", \"w\")'), [4, 4]][1]",
        "[().__class__.__base__.__subclasses__(), [4, 4]][1]",
        "(lambda: [4, 4])()",
        "[[4, 4] for _ in [1]][0]",
    ],
)
def test_an_answer_that_does_more_than_compute_is_wrong(grader, tmp_path, attack):
    file = tmp_path / "written"
    gold = scored("evaluated", "[4, 4]", n=4)
    assert grader.grade([attack.replace("{file}", str(file))], [gold]) == [False]
    assert not file.exists()
    assert grader.grade(["[[4, 4], abs(-1)][0]"], [gold]) == [True]


def test_votes_are_counted_by_text(grader):
    answers = ["1/2", "0.5", None, "1/2", ""]
    assert grader.equivalence_classes(answers, by_text=True) == [0, 1, NO_ANSWER, 0, NO_ANSWER]
    assert grader.equivalence_classes(answers) == [0, 0, NO_ANSWER, 0, NO_ANSWER]


def test_a_scorer_that_fails_its_own_answer_is_refused(grader):
    grader.check_scorers(["x+", scored("words", "tac")])
    with pytest.raises(UserError, match="of the task evaluated does not find its own"):
        grader.check_scorers([scored("words", "tac"), scored("evaluated", "[4, 4]", n=5)])
    with pytest.raises(UserError, match="of the task no_such_task"):
        grader.check_scorers([scored("no_such_task", "7")])


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("stepalign_jax.grading.tasks.PACKAGE", "no_such_package")
    with Grader(deadline_secs=5.0, num_workers=1) as grader:
        grader.check_scorers(["7"])
        with pytest.raises(UserError, match=r"task words .*pip install 'stepalign_jax\[gym\]'"):
            grader.check_scorers(["7", scored("words", "tac")])
        assert grader.process_ids == []


# --- the real package ---

CASES = [  # task, another right answer than the entry's or None, a wrong one
    ("countdown", None, "1+1"),
    ("n_queens", None, "__import__('os')"),
    ("spell_backward", None, "zzz"),
    ("sudoku", None, "1 2 3"),
    ("simple_integration", "expand", "x"),
    ("word_sorting", None, "b, a"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "other", "wrong"), CASES)
def test_real_scorers(task, other, wrong):
    gym = pytest.importorskip("reasoning_gym", reason="needs pip install '.[gym]'")
    entry = gym.create_dataset(task, seed=3, size=1)[0]
    gold = Scored(entry["answer"], json.dumps({"task": task, "entry": entry}))
    right = f"({entry['answer']}) + 0" if other else entry["answer"]
    with Grader(deadline_secs=30.0, num_workers=1) as grader:
        grader.check_scorers([gold])
        assert grader.grade([entry["answer"], right, wrong], [gold] * 3) == [True, True, False]
