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
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.training.packing import (
    Packed,
    check_parts,
    pack,
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
        "solver_prompts": prompts(9),
        "teacher_prompts": prompts(30),
        "rollouts": Rollouts(tokens, logprobs, logprobs, lengths, lengths < longest),
        "usable": random.random(num_rows) < 0.8,
        "advantages": random.standard_normal(num_rows).astype(np.float32),
    }


def read(packed: Packed, role: str) -> list[tuple[int, int, list[int]]]:
    """(rollout, column, all that the role reads before the token) of each packed token."""
    part = packed.part
    rows = np.asarray(getattr(part, f"{role}_tokens"))
    shards = part.tokens.shape[0]
    lines = rows.reshape(shards, -1)
    found = []
    for row, column, place in zip(packed.rows, packed.columns, packed.places, strict=True):
        shard, n = divmod(int(place), part.tokens.shape[1])
        at = int(np.asarray(getattr(part, f"{role}_at"))[shard, n])
        start = at // rows.shape[1] * rows.shape[1]
        found.append((int(row), int(column), lines[shard, start : at + 1].tolist()))
    return found


@pytest.mark.parametrize(("num_rows", "num_parts"), [(1, 1), (8, 1), (8, 4), (12, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_token_is_predicted_from_its_own_prefix(num_rows, num_parts, seed):
    work = draw(num_rows, 24, seed=seed)
    parts = pack(**work, num_parts=num_parts, mesh=ONE)
    completions, lengths = work["rollouts"].tokens, work["rollouts"].lengths
    expected = {(r, t) for r in range(num_rows) if work["usable"][r] for t in range(lengths[r])}
    for role in ("solver", "teacher"):
        found = [entry for packed in parts for entry in read(packed, role)]
        assert len(found) == len(expected)
        assert {(row, column) for row, column, _ in found} == expected
        for row, column, prefix in found:
            prompt = work[f"{role}_prompts"][row]
            assert prefix == [*prompt, *completions[row, :column]]
    for packed in parts:
        at = (packed.rows, packed.columns)
        for name, values in (
            ("tokens", completions[at]),
            ("logprobs", work["rollouts"].logprobs[at]),
            ("advantages", work["advantages"][packed.rows]),
        ):
            flat = np.asarray(getattr(packed.part, name)).reshape(-1)
            np.testing.assert_array_equal(flat[packed.places], values)
        counts = np.asarray(packed.part.counts).reshape(-1)
        assert np.flatnonzero(counts).tolist() == packed.places.tolist()


def test_scores_return_to_their_rows():
    work = draw(8, 24, seed=2)
    parts = pack(**work, num_parts=2, mesh=ONE)
    shape = work["rollouts"].tokens.shape
    scores = [
        TokenScores(*(np.asarray(p.part.tokens).reshape(-1) * scale for scale in range(6)))  # pyright: ignore[reportArgumentType]
        for p in parts
    ]
    counts = np.arange(24)[None] < work["rollouts"].lengths[:, None]
    counts &= work["usable"][:, None]
    for scale, found in enumerate(unpack(parts, scores, shape)):
        expected = np.where(counts, work["rollouts"].tokens * scale, 0)
        np.testing.assert_array_equal(found, expected)


def test_short_rollouts_do_not_pay_for_a_long_one():
    work = draw(16, 2048, seed=3)
    lengths = np.array([2048, *[300] * 15], np.int32)
    work["rollouts"] = work["rollouts"].replace(lengths=lengths)
    work["usable"][:] = True
    parts = pack(**work, num_parts=8, mesh=ONE)
    widths = [p.part.solver_tokens.shape[1] for p in parts]
    assert widths == [padded_width(2048 + 9)] + [padded_width(300 + 9)] * 7
    # The head reads about as many states as there are tokens, not 16 x 2,048.
    head = sum(p.part.counts.size for p in parts)
    assert lengths.sum() <= head < 1.2 * lengths.sum()
    assert sum(p.solver_tokens for p in parts) == lengths.sum() + sum(
        map(len, work["solver_prompts"])
    )


def test_a_step_without_a_usable_critique_still_has_a_shape():
    work = draw(4, 8, seed=4)
    work["usable"][:] = False
    [packed] = pack(**work, num_parts=1, mesh=ONE)
    assert packed.part.counts.shape == (1, 16) and not np.asarray(packed.part.counts).any()


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
