# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Verdicts on pairs judged by hand, and on one number in many spellings."""

import collections
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stepalign_jax.grading import values
from stepalign_jax.grading.grader import Grader
from stepalign_jax.grading.normalise import normalize
from stepalign_jax.grading.spelling import rational
from stepalign_jax.grading.units import word

LIST = Path(__file__).with_name("pairs.jsonl")
PAIRS = [json.loads(line) for line in LIST.read_text(encoding="utf-8").splitlines()]
KINDS = collections.defaultdict(list)
for row in PAIRS:
    KINDS[row["kind"]].append(row)


@pytest.fixture(scope="module")
def grader():
    with Grader(deadline_secs=60.0, num_workers=1) as shared:
        yield shared


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_of_a_kind_are_judged_as_by_hand(grader, kind):
    rows = KINDS[kind]
    found = grader.grade([row["answer"] for row in rows], [row["gold"] for row in rows])
    wrong = [row for row, verdict in zip(rows, found, strict=True) if verdict != row["right"]]
    assert wrong == []


def test_wrong_pairs_are_wrong_the_other_way_round(grader):
    # But 0 is not answered for the equation a+3z=0, and a+3z=0 may say that it is 0.
    rows = [row for row in PAIRS if not row["right"] and "=" not in row["gold"]]
    found = grader.grade([row["gold"] for row in rows], [row["answer"] for row in rows])
    assert [row for row, verdict in zip(rows, found, strict=True) if verdict] == []


def test_every_gold_is_right_by_itself():
    for row in PAIRS:
        grader = Grader(deadline_secs=1.0, num_workers=1)
        assert grader.grade([row["gold"]], [row["gold"]]) == [True]
        assert grader.grade([f"$\\boxed{{{row['gold']}}}$"], [row["gold"]]) == [True]
        assert grader.process_ids == []


def test_normalizing_twice_is_normalizing_once():
    texts = {row[side] for row in PAIRS for side in ("gold", "answer")}
    changed = {t: normalize(t) for t in texts if normalize(normalize(t)) != normalize(t)}
    assert changed == {}


def grouped(digits: str, separator: str) -> str:
    head = len(digits) % 3
    groups = [digits[:head]] if head else []
    groups += [digits[i : i + 3] for i in range(head, len(digits), 3)]
    return separator.join(groups)


SEPARATORS = (",", r"\,", "{,}", " ", "~", r"\ ", r"\;", r",\!", "'", "\u202f", "\u00a0", "_")


@st.composite
def numbers(draw) -> tuple[Fraction, str]:
    """A number, and one spelling of it."""
    whole, shift = draw(st.integers(-(10**12), 10**12)), draw(st.integers(0, 9))
    form = draw(
        st.sampled_from(["plain", "grouped", "decimal", "fraction", "power", "percent"])
    )
    digits, sign = str(abs(whole)), "-" if whole < 0 else ""
    if form == "plain":
        return Fraction(whole), draw(
            st.sampled_from(["{}", "${}$", r"\boxed{{{}}}", "**{}**."])
        ).format(whole)
    if form == "grouped":
        return Fraction(whole), sign + grouped(digits, draw(st.sampled_from(SEPARATORS)))
    value = Fraction(whole, 10**shift)
    if form == "decimal":
        padded = digits.rjust(shift + 1, "0")
        cut = len(padded) - shift
        return value, sign + padded[:cut] + ("." + padded[cut:] if shift else "")
    if form == "power":
        return value, rf"{whole} \times 10^{{-{shift}}}"
    below = draw(st.integers(1, 10**6))
    if form == "percent":
        return Fraction(whole, 100), rf"{whole}\%"
    layout = draw(st.sampled_from([r"\frac{{{}}}{{{}}}", r"\dfrac{{{}}}{{{}}}", "{}/{}"]))
    return Fraction(whole, below), layout.format(whole, below)


def same(gold: str, answer: str) -> bool:
    return values.judge(normalize(gold), normalize(answer))


@settings(max_examples=150, deadline=None)
@given(numbers())
def test_a_number_equals_its_fraction_in_every_spelling(number):
    value, text = number
    assert same(rf"\frac{{{value.numerator}}}{{{value.denominator}}}", text)
    assert same(text, f"{value.numerator}/{value.denominator}")


@settings(max_examples=150, deadline=None)
@given(numbers(), numbers(), st.sampled_from([0, 1e-9, -1e-9, 1e-3]))
def test_another_number_is_not_equal(number, other, shift):
    value, text = number
    if shift:
        near = value * (1 + Fraction(shift))
        other = near, rf"\frac{{{near.numerator}}}{{{near.denominator}}}"
    # A percent sign may be missing in the question: 5% is 5 as well.
    assume(other[0] not in (value, value * 100, value / 100))
    assert not same(text, other[1]) and not same(other[1], text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("ABCDEFG"), min_size=3, max_size=6), st.randoms())
def test_words_of_letters_have_an_order(letters, random):
    shuffled = list(letters)
    random.shuffle(shuffled)
    assert same("".join(letters), "".join(shuffled)) == (letters == shuffled)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_normalized_and_read_without_an_error(text):
    plain = normalize(text)
    assert plain == plain.strip()
    rational(plain)
    word(plain)
    assert values.judge(plain, "7") in (True, False)
