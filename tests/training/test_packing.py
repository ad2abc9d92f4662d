# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Rollouts become parts and scores become rollouts again, and no token is lost on the way."""

from typing import Any

import jax
import numpy as np
import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.training.packing import (
    Layout,
    MicroBatch,
    Sequences,
    check_parts,
    pack,
    pack_prompts,
    padded,
    padded_width,
    unpack,
)

ONE = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])


def draw(num_rows: int, longest: int, *, seed: int) -> dict[str, Any]:
    """Arguments of `pack`: prompts and completions of any length, every token another."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, size=num_rows).astype(np.int32)
    unlike = iter(range(1, 10**6))

    def prompts(most: int) -> list[list[int]]:
        sizes = random.integers(1, most + 1, size=num_rows)
        return [[next(unlike) for _ in range(n)] for n in sizes]

    tokens = np.full((num_rows, longest), -1, np.int32)
    for line, n in zip(tokens, lengths, strict=True):
        line[:n] = [next(unlike) for _ in range(n)]
    logprobs = random.standard_normal(tokens.shape).astype(np.float32)
    return {
        "prompts": prompts(9),
        "rollouts": Rollouts(tokens, logprobs, lengths, lengths < longest),
        "usable": random.random(num_rows) < 0.8,
        "token_weights": random.random(tokens.shape, np.float32),
        "advantages": random.standard_normal(num_rows).astype(np.float32),
    }


def pack_step(work: dict[str, Any], num_parts: int) -> list[MicroBatch]:
    return pack(**work, num_parts=num_parts, mesh=ONE)


def read(layout: Layout, packed: Sequences) -> list[tuple[int, int, list[int]]]:
    """(rollout, column, all that is read before the token) of each token that counts."""
    lines = np.asarray(packed.tokens).reshape(len(layout.counts), -1)
    width = packed.tokens.shape[1]
    found = []
    for rollout, column, (shard, n) in zip(
        *layout.index, np.argwhere(layout.counts), strict=True
    ):
        at = int(np.asarray(packed.places)[shard, n])
        prefix = lines[shard, at // width * width : at + 1]
        found.append((int(rollout), int(column), prefix.tolist()))
    return found


@pytest.mark.parametrize(("num_rows", "num_parts"), [(1, 1), (8, 1), (8, 4), (12, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_token_is_predicted_from_its_own_prefix(num_rows, num_parts, seed):
    work = draw(num_rows, 24, seed=seed)
    batches, rollouts = pack_step(work, num_parts), work["rollouts"]
    lengths = rollouts.lengths
    expected = {(r, t) for r in range(num_rows) if work["usable"][r] for t in range(lengths[r])}
    # Any prompts go on the same layout: the solver's own, and two contexts'.
    contexts = [draw(num_rows, 40, seed=seed + n)["prompts"] for n in (2, 3)]
    for prompts in (work["prompts"], *contexts):
        found = [
            entry
            for batch in batches
            for entry in read(
                batch.layout,
                batch.solver
                if prompts is work["prompts"]
                else pack_prompts(batch.layout, prompts, rollouts, mesh=ONE),
            )
        ]
        assert len(found) == len(expected)
        assert {(row, column) for row, column, _ in found} == expected
        for row, column, prefix in found:
            assert prefix == [*prompts[row], *rollouts.tokens[row, :column]]


def test_targets_are_those_of_their_tokens():
    work = draw(8, 24, seed=5)
    for batch in pack_step(work, 2):
        rows, columns = batch.layout.index
        counts = np.asarray(batch.targets.counts)
        np.testing.assert_array_equal(counts, batch.layout.counts)
        for name, values in (
            ("tokens", work["rollouts"].tokens[rows, columns]),
            ("weights", work["token_weights"][rows, columns]),
            ("advantages", work["advantages"][rows]),
        ):
            packed = np.asarray(getattr(batch.targets, name))
            np.testing.assert_array_equal(packed[counts], values)
            assert not packed[~counts].any()


def test_the_worked_example_of_the_module():
    rollouts = Rollouts(
        tokens=np.array([[5, 6, 7], [8, 9, 0]], np.int32),
        logprobs=np.zeros((2, 3), np.float32),
        lengths=np.array([3, 2], np.int32),
        finished=np.ones(2, bool),
    )
    ones, usable = np.ones((2, 3), np.float32), np.ones(2, bool)
    solver, teacher = [[1, 1, 1], [1]], [[2, 2], [2, 2, 2]]
    [batch] = pack(solver, rollouts, usable, ones, ones[:, 0], num_parts=1, mesh=ONE)
    layout, width = batch.layout, 16  # the smallest bucket, where the comment has 7 and 6
    assert layout.rows[0, :6].tolist() == [0, 0, 0, 1, 1, 0]
    assert layout.columns[0, :6].tolist() == [0, 1, 2, 0, 1, 0]
    assert layout.counts[0, :6].tolist() == [True] * 5 + [False]
    packed = pack_prompts(layout, teacher, rollouts, mesh=ONE)
    assert np.asarray(packed.tokens)[:, :6].tolist() == [[2, 2, 5, 6, 7, 0], [2, 2, 2, 8, 9, 0]]
    assert packed.places[0, :6].tolist() == [1, 2, 3, width + 2, width + 3, 0]
    assert batch.solver.places[0, :6].tolist() == [2, 3, 4, width, width + 1, 0]


def test_scores_return_to_their_rows():
    work = draw(8, 24, seed=2)
    batches = pack_step(work, 2)
    scores = [
        LossScores(*(batch.targets.tokens.reshape(-1) * scale for scale in range(3)))
        for batch in batches
    ]
    counts = np.arange(24)[None] < work["rollouts"].lengths[:, None]
    counts &= work["usable"][:, None]
    found = unpack([batch.layout for batch in batches], scores, counts.shape)
    assert isinstance(found, LossScores)
    for scale, values in enumerate(found):
        expected = np.where(counts, work["rollouts"].tokens * scale, 0)
        np.testing.assert_array_equal(values, expected)


def test_short_rollouts_do_not_pay_for_a_long_one():
    work = draw(16, 2048, seed=3)
    lengths = np.array([2048, *[300] * 15], np.int32)
    work["rollouts"] = work["rollouts"].replace(lengths=lengths)
    work["usable"][:] = True
    batches = pack_step(work, 8)
    widths = [batch.solver.tokens.shape[1] for batch in batches]
    assert widths == [padded_width(2048 + 9)] + [padded_width(300 + 9)] * 7
    # The head reads about as many states as there are tokens, not 16 x 2,048.
    head = sum(batch.layout.counts.size for batch in batches)
    assert lengths.sum() <= head < 1.2 * lengths.sum()


def test_a_step_without_a_usable_critique_still_has_a_shape():
    work = draw(4, 8, seed=4)
    work["usable"][:] = False
    [batch] = pack_step(work, 1)
    assert batch.layout.counts.shape == (1, 16) and not batch.layout.counts.any()
    assert not any(values.size for values in batch.layout.index)


def test_sizes_are_few_and_waste_less_than_a_fifth():
    lengths = range(1, 4097)
    sizes = [padded(length) for length in lengths]
    assert sorted(set(sizes))[:10] == [16, 20, 24, 28, 32, 40, 48, 56, 64, 80]
    assert sorted(set(sizes))[20:25] == [512, 640, 768, 896, 1024]
    widths = [padded_width(length) for length in lengths]
    above = [576, 640, 704, 768, 832, 896, 960, 1024, 1152, 1280]
    assert sorted(set(widths))[20:31] == [512, *above]
    assert (len(set(sizes)), len(set(widths))) == (33, 45)
    for length, size, width in zip(lengths, sizes, widths, strict=True):
        assert length <= width <= size
        assert padded(size) == size and padded_width(width) == width
        assert length <= 16 or size - length < size / 5
        assert length <= 512 or width - length < width / 9


def test_a_step_that_the_devices_cannot_share_is_refused():
    eight = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2), devices=jax.devices()[:1] * 8)
    check_parts(16, 4, eight)  # 4 parts of 4 rows, one for each of 4 shards
    with pytest.raises(UserError, match=r"a step has 12 sequences .* a multiple of 16\."):
        check_parts(12, 4, eight)
