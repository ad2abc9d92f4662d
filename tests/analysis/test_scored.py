# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Scored rollouts on disk: the same bits again, or one sentence."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign_jax.analysis.scored import TOP, ScoredRollouts
from stepalign_jax.base.errors import UserError


def scored(lengths: list[int], num_contexts: int) -> ScoredRollouts:
    """Rollouts of so many tokens, every bit of every number drawn."""
    rng = np.random.default_rng(0)
    num, tokens = len(lengths), sum(lengths)

    def bits(dtype: type, *shape: int) -> np.ndarray:
        whole = rng.integers(-(2**31), 2**31, shape, np.int32)
        return (whole > 0) if dtype is bool else whole.view(dtype)

    of_solver = {"logprobs": (), "entropy": (), "top_logprobs": (TOP,)}
    return ScoredRollouts(
        contexts=[f"context {c}" for c in range(num_contexts)],
        rows=[{"id": f"{r}", "rollout": "\u2028 ü \x00"} for r in range(num)],
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        tokens=bits(np.int32, tokens),
        ends=bits(np.int32, tokens),
        reasoning_step=bits(np.int32, tokens),
        markup=bits(bool, tokens),
        correct=bits(bool, num),
        first_error=bits(np.int32, num),
        usable=bits(bool, num_contexts, num),
        kl=bits(np.float32, num_contexts, tokens),
        solver_top_ids=bits(np.int32, tokens, TOP),
        teacher_top_ids=bits(np.int32, num_contexts, tokens, TOP),
        **{f"solver_{k}": bits(np.float32, tokens, *v) for k, v in of_solver.items()},
        **{
            f"teacher_{k}": bits(np.float32, num_contexts, tokens, *v)
            for k, v in of_solver.items()
        },
    )


@given(lengths=st.lists(st.integers(0, 5), max_size=4), num_contexts=st.integers(0, 3))
def test_what_is_saved_is_read_to_the_same_bits(tmp_path_factory, lengths, num_contexts):
    directory, saved = tmp_path_factory.mktemp("scores"), scored(lengths, num_contexts)
    saved.save(directory)
    loaded = ScoredRollouts.load(directory)
    assert loaded.contexts == saved.contexts and loaded.rows == saved.rows
    for field in dataclasses.fields(saved)[2:]:
        before, after = getattr(saved, field.name), getattr(loaded, field.name)
        assert before.dtype == after.dtype and before.shape == after.shape
        assert before.tobytes() == after.tobytes()


def test_tokens_of_a_rollout_are_those_of_the_worked_example():
    found = scored([3, 2], 2)
    assert (found.of(0), found.of(1)) == (slice(0, 3), slice(3, 5))
    assert found.rollout_of_token().tolist() == [0, 0, 0, 1, 1]
    expected = found.teacher_logprobs[1] - found.solver_logprobs
    np.testing.assert_array_equal(found.advantage[1], expected)


@pytest.mark.parametrize("kept", [0, 10, -30])
def test_scores_that_were_cut_are_refused_in_one_sentence(tmp_path, kept):
    scored([3, 2], 1).save(tmp_path)
    file = Path(tmp_path / "tokens.npz")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cannot read the scores in .*: make them again"):
        ScoredRollouts.load(tmp_path)
