# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign_jax.analysis.copying import Copied, common_subsequence, copied

WORDS = st.lists(st.sampled_from("abcd"), max_size=9)


def reference(a: list[str], b: list[str]) -> int:
    """The usual table."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, word in enumerate(a):
        for j, other in enumerate(b):
            longer = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if word == other else longer
    return table[-1][-1]


@given(WORDS, WORDS)
def test_the_longest_common_subsequence_is_that_of_the_table(a, b):
    assert common_subsequence(a, b) == reference(a, b)
    assert common_subsequence(a, b) == common_subsequence(b, a)


def test_long_texts_are_compared():
    text = [str(n % 97) for n in range(5000)]
    assert common_subsequence(text, text[100:]) == 4900


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("3*8=24 47+24=71", Copied(9 / 10, 9 / 10)),
        ("47+24=71", Copied(0, 4 / 10)),
        ("3*8=24\n47 + 24 = 61 ", Copied(1, 1)),
        ("", Copied(0, 0)),
        ("<3*8=24 47+24=61>", Copied(0, 1)),
    ],
)
def test_shares_are_of_the_rollouts_words(context, expected):
    assert copied("3*8=24\n47+24=61", context) == pytest.approx(expected)


def test_a_rollout_without_words_has_no_share():
    assert copied(" \n", "47") is None
