# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Cuts a step's rollouts into parts of few shapes, and puts their scores back into rows.

A part pays for its own longest row. Rows are sorted by length first, so rollouts of 300 tokens
share a part and do not pay for one of 2,048. Widths and numbers of packed tokens are rounded
up, so that shapes are few; a shape compiles once, when it is first met.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.parallel.mesh import batch_sharding
from stepalign_jax.training.scoring import Part

_SMALLEST = 16
_FINER_ABOVE = 512


@dataclass(frozen=True)
class Packed:
    """One part on the devices, and where its tokens came from.

    Attributes:
      part: see `Part`.
      rows: [n] the rollout of each token that counts.
      columns: [n] its place in the completion.
      places: [n] its index among the part's N.
      solver_tokens: tokens that the solver's rows hold without their padding.
      teacher_tokens: the same of the teacher's.
    """

    part: Part
    rows: np.ndarray
    columns: np.ndarray
    places: np.ndarray
    solver_tokens: int
    teacher_tokens: int


def padded(length: int, per_doubling: int = 4) -> int:
    """The size that stands for `length`: 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, ...

    With `per_doubling` sizes from one power of two to the next, less than a
    (per_doubling + 1)-th of a size is padding.
    """
    if length <= _SMALLEST:
        return _SMALLEST
    step = (1 << (length - 1).bit_length()) // (2 * per_doubling)
    return -(-length // step) * step


def padded_width(length: int) -> int:
    """The width of rows up to `length`: above 512 there are eight sizes per doubling.

    There a few steps of padding cost more than a compilation. Numbers of packed tokens, which
    the output head alone pays for, keep to four.
    """
    return padded(length, per_doubling=4 if length <= _FINER_ABOVE else 8)


def num_shards(mesh: Mesh) -> int:
    """Into how many shards the mesh cuts a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_parts(num_rows: int, num_parts: int, mesh: Mesh) -> None:
    """Refuses a step whose parts do not have the same number of rows on every device.

    Raises:
      UserError: with the numbers to change.
    """
    shards = num_shards(mesh)
    if num_rows % (num_parts * shards):
        raise UserError(
            f"a step has {num_rows} sequences (train.problems_per_step * "
            f"train.samples_per_problem), which train.micro_batches = {num_parts} parts on "
            f"{shards} batch shards (parallel.data * parallel.fsdp) do not divide: make the "
            f"number of sequences a multiple of {num_parts * shards}."
        )


def pack(
    solver_prompts: Sequence[list[int]],
    teacher_prompts: Sequence[list[int]],
    rollouts: Rollouts,
    usable: np.ndarray,
    advantages: np.ndarray,
    *,
    num_parts: int,
    mesh: Mesh,
) -> list[Packed]:
    """Returns the parts of a step, longest rows first, laid out over `mesh`.

    Args:
      solver_prompts: B lists of token ids.
      teacher_prompts: B lists.
      rollouts: B rows.
      usable: [B] bool; no token of the others counts, or reaches the output head.
      advantages: [B] of policy gradients.
      num_parts: parts, of B / num_parts rows each; see `check_parts`.
      mesh: where the batch lies.
    """
    lengths = np.asarray(rollouts.lengths)
    order = np.argsort(
        [-len(p) - n for p, n in zip(solver_prompts, lengths, strict=True)], kind="stable"
    )
    shards = num_shards(mesh)
    packed = []
    for chosen in np.split(order, num_parts):
        # Dealt out in turn, so that shards have about equally many tokens; [S, R / S].
        rows = chosen.reshape(-1, shards).T
        packed.append(
            _pack_part(
                rows, solver_prompts, teacher_prompts, rollouts, usable, advantages, mesh
            )
        )
    return packed


def _pack_part(
    rows: np.ndarray,
    solver_prompts: Sequence[list[int]],
    teacher_prompts: Sequence[list[int]],
    rollouts: Rollouts,
    usable: np.ndarray,
    advantages: np.ndarray,
    mesh: Mesh,
) -> Packed:
    solver_tokens, solver_first = _join(rows.reshape(-1), solver_prompts, rollouts)
    teacher_tokens, teacher_first = _join(rows.reshape(-1), teacher_prompts, rollouts)
    counting = np.where(usable, rollouts.lengths, 0)[rows]  # [S, R / S]
    num_tokens = padded(int(counting.sum(axis=1).max()))
    shape = (len(rows), num_tokens)
    row_of, column_of = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    slot_of, counts = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for shard, shard_counts in enumerate(counting):
        n = int(shard_counts.sum())
        slots = np.repeat(np.arange(len(shard_counts)), shard_counts)
        starts = np.repeat(np.cumsum(shard_counts) - shard_counts, shard_counts)
        row_of[shard, :n] = rows[shard][slots]
        column_of[shard, :n] = np.arange(n) - starts
        slot_of[shard, :n] = slots
        counts[shard, :n] = True

    def at(first: np.ndarray, width: int) -> np.ndarray:
        """Places in the rows of a shard laid end to end; `first` is of column 0, [R]."""
        own = np.take_along_axis(first.reshape(rows.shape), slot_of, axis=1)
        return np.where(counts, slot_of * width + own + column_of, 0).astype(np.int32)

    arrays = {
        "solver_tokens": solver_tokens,
        "teacher_tokens": teacher_tokens,
        "solver_at": at(solver_first, solver_tokens.shape[1]),
        "teacher_at": at(teacher_first, teacher_tokens.shape[1]),
        "tokens": np.where(counts, rollouts.tokens[row_of, column_of], 0).astype(np.int32),
        "counts": counts,
        "logprobs": np.where(counts, rollouts.logprobs[row_of, column_of], 0.0),
        "advantages": np.where(counts, advantages[row_of], 0.0).astype(np.float32),
    }
    part = Part(**jax.device_put(arrays, batch_sharding(mesh, 2)))
    completions = int(rollouts.lengths[rows].sum())
    return Packed(
        part,
        rows=row_of[counts],
        columns=column_of[counts],
        places=np.flatnonzero(counts),
        solver_tokens=int((solver_first + 1).sum()) + completions,
        teacher_tokens=int((teacher_first + 1).sum()) + completions,
    )


def _join(
    rows: np.ndarray, prompts: Sequence[list[int]], rollouts: Rollouts
) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [R, W], prompt then completion then padding, and [R] the column of the
    state that predicts the completion's first token."""
    ends = [len(prompts[row]) + int(rollouts.lengths[row]) for row in rows]
    tokens = np.zeros((len(rows), padded_width(max(ends))), np.int32)
    for line, row, end in zip(tokens, rows, ends, strict=True):
        line[:end] = [*prompts[row], *rollouts.tokens[row, : rollouts.lengths[row]]]
    return tokens, np.array([len(prompts[row]) - 1 for row in rows])


def unpack(
    packed: Sequence[Packed], scores: Sequence[TokenScores], shape: tuple[int, ...]
) -> TokenScores:
    """Returns the scores as NumPy arrays [B, T]; 0 where a token does not count."""
    fetched = jax.device_get(list(scores))

    def rows_of(name: str) -> np.ndarray:
        values = np.zeros(shape, np.float32)
        for part, found in zip(packed, fetched, strict=True):
            values[part.rows, part.columns] = getattr(found, name)[part.places]
        return values

    return TokenScores(*map(rows_of, TokenScores._fields))  # pyright: ignore[reportArgumentType]
