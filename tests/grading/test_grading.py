# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepalign_jax.base.errors import UserError
from stepalign_jax.grading import values
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import NO_ANSWER, Grader, describe_unparsable
from stepalign_jax.grading.normalise import normalize

ROOT = Path(__file__).resolve().parents[2]
TAG = r"<answer>([\s\S]*?)</answer>"
ENDLESS = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def grader():
    with Grader(deadline_secs=30.0, num_workers=1) as shared:
        yield shared


# --- extract_answer ---


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 7 </answer>", "7"),
        ("<answer>7</answer> no: <answer>8</answer>", "8"),
        (r"<answer>7</answer> so \boxed{8}", "7"),
        (r"<answer>  </answer> \boxed{8}", "8"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3} and then cut off: \boxed{\frac{1}{2", None),
        (r"\boxed{\frac{1}{2} and then \boxed{3}", "3"),
        ("<answer>\n\\boxed{4</answer>", None),
        (r"so \boxed 5.", "5"),
        (r"so \boxed5, or \boxed{6", None),
        (r"so \boxed\frac12", r"\frac12"),
        (r"so \fbox{5}", "5"),
        (r"<think>Try 6+6, so \boxed{12}? No, that misses", None),
        ("<think>I could write <answer>12</answer>, but", None),
        (r"<think>\boxed{12}?</think> It is \boxed{13}", "13"),
        (r"\boxed{12}? No.</think> I give up", None),
        ("<think>no</think><answer>7</answer>", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \mid x > 0 \right.}", r"\left\{ x \mid x > 0 \right."),
        (r"the set { of all \boxed {4}", "4"),
        (r"\boxed{5} goes into \boxed{}", "5"),
        ("no answer", None),
        ("", None),
        ("<answer>7", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text, TAG) == answer


pieces = st.sampled_from(["\\boxed{", "\\boxed", "{", "}", "\\{", "\\}", "\\", "<answer>", "7"])


@settings(deadline=None)
@given(st.lists(pieces | st.text(max_size=3)).map("".join))
def test_extract_answer_never_raises_and_is_stripped(text):
    answer = extract_answer(text, TAG)
    assert answer is None or (answer and answer == answer.strip() and answer in text)


nested = st.recursive(
    st.text("ab1+ ", min_size=1), lambda inner: inner.map(lambda text: f"f{{{text}}}g")
)


@settings(deadline=None)
@given(nested.filter(str.strip), st.text("ab{ "))
def test_extract_answer_finds_any_balanced_box(content, before):
    text = f"{before}\\boxed{{{content}}} b"
    assert extract_answer(text, TAG) == content.strip()


def test_extract_answer_is_linear_in_unclosed_boxes():
    started = time.monotonic()
    assert extract_answer(r"\boxed{1}" + r"\boxed{" * 50_000, TAG) is None
    assert time.monotonic() - started < 5.0  # quadratic time would take minutes


@pytest.mark.parametrize("pattern", ["Answer: .*", "Answer: ("])
def test_extract_answer_refuses_an_unusable_pattern(pattern):
    with pytest.raises(UserError, match="answer_pattern"):
        extract_answer("Answer: 7", pattern)


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        (" 7 ", "7"),
        ("$$7$$", "7"),
        (r"\( x \)", "x"),
        (r"\[\boxed{$x  + 1$}\]", "x+1"),
        ("$1$ or $2$", "1, 2"),
        (r"**\(1\,234.50\)**.", "1234.50"),
        (r"\boxed{1} \boxed{2}", r"\boxed{1}\boxed{2}"),
        ("$", "$"),
    ],
)
def test_normalize(answer, plain):
    assert normalize(answer) == plain


# --- verdicts ---


integers = st.integers(-(10**15) + 1, 10**15 - 1)
spellings = st.sampled_from(["{}", "{:+}", "{:04}"])


@settings(max_examples=60, deadline=None)
@given(integers, integers | st.integers(-3, 3), st.booleans(), spellings)
def test_integer_shortcut_is_the_workers_verdict(a, b, same, spelling):
    gold, answer = str(a), spelling.format(a if same else b)
    grader = Grader(deadline_secs=1.0, num_workers=1)
    verdict = grader.grade([answer], [gold])[0]
    assert grader.process_ids == []  # so it was the shortcut
    # The workers' reading is the same.
    assert verdict == values.same(gold, answer) == (int(gold) == int(answer))


def test_text_alone_starts_no_worker():
    grader = Grader(deadline_secs=1.0, num_workers=1)
    answers = [None, "", "7", "$7$", "07", "8", "no idea"]
    golds = ["7", "", "7", "7", "7", "7", "no idea"]
    expected = [False, False, True, True, True, False, True]
    assert grader.grade(answers, golds) == expected
    assert grader.process_ids == []


def test_grade_wants_one_gold_per_answer():
    with pytest.raises(ValueError):
        Grader(deadline_secs=1.0, num_workers=1).grade(["1", "2"], ["1"])


def test_unparsable_gold_is_right_for_an_equal_string_only():
    with Grader(deadline_secs=30.0, num_workers=1) as grader:
        gold = "2^floor(n/2)*floor(n/2)!"
        assert grader.grade(["7", "2", gold, "x"], [gold] * 4) == [False, False, True, False]
        assert grader.counts() == (1, 0, 0)
        grader.close()
        assert grader.grade(["8"], [gold]) == [False]
        assert grader.counts().unparsable_golds == 1


def test_golds_that_cannot_be_read_are_found(grader):
    golds = ["7", "No", r"\frac12", "x+", "(1,2]", "n+1 for all p", "x+", r"1\,000", "A"]
    found = grader.unparsable(golds)
    assert found == ["x+", "n+1 for all p"]
    line = describe_unparsable(found, 9)
    assert line.startswith("2 of 9 expected answers") and "'x+', 'n+1 for all p'" in line


def test_failures_are_taken_once(grader):
    with Grader(deadline_secs=1.0, num_workers=1) as grader:
        assert grader.grade([ENDLESS], [r"\sqrt{2}"]) == [False]
        assert grader.take_failures() == {"grading_timeouts": 1, "grading_crashes": 0}
        assert grader.take_failures() == {"grading_timeouts": 0, "grading_crashes": 0}
        assert grader.counts().timeouts == 1


def test_endless_answers_cost_a_deadline_each_not_one_per_pair():
    endless = [f"{base}^{{9^{{9^{{9}}}}}}" for base in (5, 6, 7)]
    answers = ["0.5", endless[0], r"\sqrt{2}", endless[1], endless[2], r"\frac{2}{\sqrt2}"]
    with Grader(deadline_secs=2.0, num_workers=1) as grader:
        assert grader.equivalence_classes(answers) == [0, 1, 2, 3, 4, 2]
        assert grader.counts().timeouts == 3
        # Nor does any of them cost another one as a gold answer.
        assert grader.grade([r"\sqrt{2}", endless[1]], [endless[0], endless[2]]) == [
            False,
            False,
        ]
        assert grader.counts().timeouts == 3


def test_verdicts_are_remembered():
    with Grader(deadline_secs=30.0, num_workers=1) as grader:
        assert grader.grade(["2^{1/2}"], [r"\sqrt{2}"]) == [True]
        grader.close()
        again = grader.grade(["2^{1/2}", "$2^{1/2}$"], [r"\sqrt{2}", r" \sqrt2"])
        assert again == [True, True]
        assert grader.process_ids == []


def test_equivalence_classes(grader):
    answers = ["1/2", None, "0.5", "3", "", r"\frac12", "3.0", "x", "1/2"]
    expected = [0, NO_ANSWER, 0, 1, NO_ANSWER, 0, 1, 2, 0]
    assert grader.equivalence_classes(answers) == expected
    assert grader.equivalence_classes([None, None]) == [NO_ANSWER, NO_ANSWER]
    assert grader.equivalence_classes([]) == []
