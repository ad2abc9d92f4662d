# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stepalign_jax.runs.repetition import LONGEST_BLOCK, NUM_COPIES, SHORTEST, ends_in_loop

STOP = 99


def as_rows(rows: list[list[int]], padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(rows), max(map(len, rows), default=0)), padding, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.array([len(row) for row in rows])


def found(*rows: list[int]) -> list[bool]:
    return ends_in_loop(*as_rows(list(rows))).tolist()


def by_hand(row: list[int]) -> bool:
    """The same, one block length and one token at a time."""
    for block in range(1, LONGEST_BLOCK + 1):
        needed = max(NUM_COPIES * block, SHORTEST)
        end = row[-needed:]
        if len(row) >= needed and all(a == b for a, b in zip(end[block:], end, strict=False)):
            return True
    return False


def test_three_copies_are_a_loop_and_fewer_are_not():
    block = list(range(10, 20))
    assert found([1, 2, *block * 3], [1, 2, *block * 2], [*block * 3]) == [True, False, True]


def test_a_loop_that_is_cut_anywhere_is_a_loop():
    block = list(range(10, 20))
    assert found(*([5, *block * 3, *block[:n]] for n in range(10))) == [True] * 10


def test_a_loop_that_the_model_left_is_none():
    block = list(range(10, 20))
    assert found([*block * 5, STOP], [*block * 5, 1, 2, 3]) == [False, False]


def test_a_short_number_is_no_loop_and_one_token_for_long_is():
    assert found([4, 5, 1, 1, 1], [7] * (SHORTEST - 1), [7] * SHORTEST) == [False, False, True]


def test_padding_does_not_count():
    row = [1, 2, 3]
    tokens, lengths = as_rows([row, [*range(60)]], padding=0)
    assert ends_in_loop(tokens, lengths).tolist() == [False, False]


def test_blocks_have_a_longest_length():
    assert found([*range(LONGEST_BLOCK)] * 3, [*range(LONGEST_BLOCK + 1)] * 3) == [True, False]


def test_rows_without_tokens():
    assert (
        ends_in_loop(np.zeros((2, 0), np.int32), np.zeros(2, np.int32)).tolist() == [False] * 2
    )


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), max_size=6),
            st.lists(st.integers(0, 2), min_size=1, max_size=12),
            st.integers(0, 40),
        ).map(lambda parts: [*parts[0], *(parts[1] * 40)[: parts[2]]]),
        min_size=1,
        max_size=5,
    )
)
def test_it_is_what_one_finds_by_hand(rows):
    assert ends_in_loop(*as_rows(rows)).tolist() == [by_hand(row) for row in rows]
