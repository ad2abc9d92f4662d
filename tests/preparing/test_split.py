# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The splitter, and one row per problem: properties for any rows."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
from hypothesis import given, settings

from stepalign_jax.base.files import read_jsonl
from stepalign_jax.preparing.gather import open_gathered, same_answer
from stepalign_jax.preparing.rows import BadRow, Dropped, Row, Source
from stepalign_jax.preparing.write import SplitRule, problem_key, split_of, write_splits
from stepalign_jax.problems.sources import SPLITS

NO_LIMITS = dict.fromkeys(SPLITS)
problems = st.text("ab 1∑é\u0301\n\t", min_size=1, max_size=8).filter(str.strip)
shares = st.floats(0, 0.5)
rules = st.builds(SplitRule, shares, shares)
items = st.lists(
    st.one_of(
        st.builds(
            Row,
            st.sampled_from("abcdefgh"),
            st.sampled_from(["1", "2", "$1$"]),
            st.sampled_from([None, "r", "s"]),
            st.none(),
            st.just("f row 1"),
        ),
        st.just(Dropped("filtered")),
        st.builds(BadRow, st.just("f"), st.integers(1, 9), st.just("x"), st.just("broken")),
    ),
    max_size=30,
)


@given(st.lists(problems, unique_by=problem_key), st.lists(problems), rules)
def test_rows_that_are_added_move_no_problem(first, added, rule):
    before = {problem: split_of(problem, rule) for problem in first}
    after = {problem: split_of(problem, rule) for problem in first + added}
    assert before.items() <= after.items()


@given(problems, rules)
def test_white_space_and_spelling_of_accents_make_no_other_problem(problem, rule):
    spaced = f" {problem}\n".replace(" ", "\t ")
    assert split_of(spaced, rule) == split_of(problem, rule)
    assert problem_key("caf\u00e9") == problem_key("cafe\u0301")


def test_the_shares_are_what_was_asked_for():
    found = Counter(split_of(f"problem {i}", SplitRule(0.1, 0.3)) for i in range(20_000))
    # Four standard deviations of a binomial count.
    assert abs(found["validation"] - 2000) < 4 * 42.5
    assert abs(found["test"] - 6000) < 4 * 64.9


def test_the_split_does_not_depend_on_the_order_in_which_limits_cut():
    ordered = sorted((f"problem {i}" for i in range(4000)), key=problem_key)
    shares = [split_of(problem, SplitRule(0.0, 0.5)) for problem in ordered]
    halves = Counter(shares[:2000]), Counter(shares[2000:])
    assert all(abs(half["test"] - 1000) < 4 * 22.4 for half in halves)


@given(st.lists(problems, unique_by=problem_key), rules, st.integers(0, 3))
def test_every_problem_stands_in_one_file_and_limits_take_a_beginning(texts, rule, limit):
    rows = [Row(text, "1", None) for text in sorted(texts, key=problem_key)]
    with TemporaryDirectory() as path:
        whole, cut = Path(path, "whole"), Path(path, "cut")
        whole.mkdir()
        cut.mkdir()
        counts = write_splits(whole, rows, rule, NO_LIMITS)
        write_splits(cut, rows, rule, dict.fromkeys(SPLITS, limit))
        found = {
            s: [row["problem"] for row in read_jsonl(whole / f"{s}.jsonl")] for s in SPLITS
        }
        for split in SPLITS:
            assert counts[split] == len(found[split])
            assert all(split_of(text, rule) == split for text in found[split])
            written = [row["problem"] for row in read_jsonl(cut / f"{split}.jsonl")]
            assert written == found[split][:limit]
    assert Counter(texts) == Counter(text for split in SPLITS for text in found[split])


@settings(max_examples=60)
@given(items, st.integers(1, 7))
def test_one_row_per_problem_and_every_row_counted_once(rows, size):
    parts = [str(start) for start in range(0, len(rows), size)]
    source = Source(
        name="any",
        parts=parts,
        read=lambda part, skip: iter(rows[int(part) + skip : int(part) + size]),
        filters=("filtered",),
        details={},
        licence="",
    )
    with (
        TemporaryDirectory() as path,
        open_gathered(Path(path) / "rows.sqlite", source) as gathered,
    ):
        gathered.read(source)
        counts, kept = dict(gathered.counts(source)), list(gathered.rows())
        bad, conflicts = list(gathered.bad_rows()), list(gathered.conflicts())
    good = [row for row in rows if isinstance(row, Row)]
    by_problem = {p: [row for row in good if row.problem == p] for p in "abcdefgh"}
    agree = {
        p: same
        for p, same in by_problem.items()
        if same and all(same_answer(same[0].answer, row.answer) for row in same)
    }
    assert {row.problem for row in kept} == agree.keys() and len(kept) == len(agree)
    for row in kept:
        rows_of_it = agree[row.problem]
        references = [r.reference for r in rows_of_it if r.reference is not None]
        assert row.answer == rows_of_it[0].answer
        assert row.reference == (references[0] if references else None)
    assert counts["rows_read"] == len(rows)
    assert counts["bad"] == len(bad) == sum(isinstance(row, BadRow) for row in rows)
    assert counts["gold_conflicts"] == len(conflicts)
    taken = sum(number for name, number in counts.items() if name != "rows_read")
    assert len(rows) == taken + len(kept)


def test_answers_are_compared_as_text_and_as_fractions():
    assert same_answer(r"\frac{1}{2}", "1/2") and same_answer("$0.5$", r"\dfrac12")
    assert same_answer("1,000", "1000")
    assert not same_answer("3", "4") and not same_answer("x", "y")
