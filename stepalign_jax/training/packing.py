# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Cuts a step's rollouts into micro-batches of few shapes, and puts scores back into rows.

A micro-batch pays for its own longest row. Rows are sorted by length first, so rollouts of 300
tokens share one and do not pay for one of 2,048. Widths and numbers of packed tokens are
rounded up, so that shapes are few; a shape compiles once, when it is first met.

The layout of a micro-batch is made once, from lengths. Any list of prompts, one per rollout, is
then packed on it: the solver's, the teacher's, or those of several contexts. All of them end in
the same completion tokens, in the same order:

    rollout 0: y0 y1 y2, rollout 1: z0 z1      layout, one shard
                                               row        0  0  0  1  1  0
                                               column     0  1  2  0  1  0
                                               counts     1  1  1  1  1  0   (fills N up)
    solver prompts p p p and p                 rows       p p p y0 y1 y2 .
                                                          p z0 z1 . . . .
                                               places     2  3  4  7  8  0
    teacher prompts q q and q q q              rows       q q y0 y1 y2 .
                                                          q q q z0 z1 .
                                               places     1  2  3  8  9  0

A place counts along the rows laid end to end, and names the state that predicts the token: the
state over the last p, place 2, predicts y0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh

from stepalign_jax.base.buckets import bucket
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.objectives.divergence import LossScores, TokenScores
from stepalign_jax.parallel.mesh import batch_sharding, num_shards, put

_SMALLEST = 16
_FINER_ABOVE = 512

Scores = TypeVar("Scores", LossScores, TokenScores)


@dataclass(frozen=True)
class Layout:
    """Which rollouts a micro-batch of R rows has, and where each of their tokens is packed.

    With S shards of the batch (S = 1 on one device) shard s has line s of each array; it owns
    rows s R/S to (s + 1) R/S of the micro-batch, and places count within these, so that packing
    moves nothing between devices.

    Attributes:
      rollouts: [S, R / S] the rollout in each row.
      rows: [S, N / S] the row, counted within its shard, of each packed token.
      columns: [S, N / S] its place in the completion.
      counts: [S, N / S] bool, True where a token counts in the loss; the others fill N up.
    """

    rollouts: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    counts: np.ndarray

    @property
    def index(self) -> tuple[np.ndarray, np.ndarray]:
        """[n] rollouts and [n] columns of the tokens that count: an index into [B, T]."""
        rollouts = np.take_along_axis(self.rollouts, self.rows, axis=1)
        return rollouts[self.counts], self.columns[self.counts]

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Packs [B, T] values as [S, N / S]; 0 where a token does not count."""
        packed = np.zeros(self.counts.shape, values.dtype)
        packed[self.counts] = values[self.index]
        return packed


@flax.struct.dataclass
class Sequences:
    """The rows of a micro-batch as one role reads them, on the devices.

    Attributes:
      tokens: [R, W] int32, prompt then completion, right-padded.
      places: [S, N / S] int32, of the states that predict the packed tokens.
    """

    tokens: jax.Array
    places: jax.Array


@flax.struct.dataclass
class Targets:
    """What the loss knows of each packed token, on the devices; 0 where none counts.

    Attributes:
      tokens: [S, N / S] int32, the completions' tokens.
      counts: [S, N / S] bool, True where a token counts.
      weights: [S, N / S] float32, of its loss (`objectives/token_weights.py`).
      advantages: [S, N / S] float32 of policy gradients: the rollout's, on each token.
    """

    tokens: jax.Array
    counts: jax.Array
    weights: jax.Array
    advantages: jax.Array


@dataclass(frozen=True)
class MicroBatch:
    """One part of a step: its layout on the host, and the solver's side on the devices."""

    layout: Layout
    solver: Sequences
    targets: Targets


def padded(length: int, per_doubling: int = 4) -> int:
    """`length` rounded up to a bucket: 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, ...

    See `base.buckets`, which has the table for `per_doubling`.
    """
    return bucket(length, smallest=_SMALLEST, per_doubling=per_doubling)


def padded_width(length: int) -> int:
    """The width of rows up to `length`: above 512 there are eight sizes per doubling.

    There a few steps of padding cost more than a compilation. Numbers of packed tokens, which
    the output head alone pays for, keep to four.
    """
    return padded(length, per_doubling=4 if length <= _FINER_ABOVE else 8)


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


def make_layouts(
    prompts: Sequence[list[int]],
    rollouts: Rollouts,
    usable: np.ndarray,
    *,
    num_parts: int,
    mesh: Mesh,
) -> list[Layout]:
    """Returns the layouts of a step's micro-batches, longest rows first.

    Args:
      prompts: the solver's, B lists of token ids; they count in a row's length.
      rollouts: B rows.
      usable: [B] bool; no token of the others counts, or reaches the output head.
      num_parts: micro-batches, of B / num_parts rows each; see `check_parts`.
      mesh: where the batch lies.
    """
    lengths = np.asarray(rollouts.lengths)
    row_lengths = np.array([len(prompt) for prompt in prompts]) + lengths
    order = np.argsort(-row_lengths, kind="stable")
    counting = np.where(usable, lengths, 0)
    layouts = []
    for chosen in np.split(order, num_parts):
        # Dealt out in turn, so that shards have about equally many tokens; [S, R / S].
        dealt = chosen.reshape(-1, num_shards(mesh)).T
        layouts.append(_make_layout(dealt, counting[dealt]))
    return layouts


def _make_layout(rollouts: np.ndarray, lengths: np.ndarray) -> Layout:
    """The layout of `rollouts` [S, R / S], of which the first `lengths` tokens count."""
    num_tokens = padded(int(lengths.sum(axis=1).max()))
    shape = (len(rollouts), num_tokens)
    rows, columns = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    counts = np.zeros(shape, bool)
    for shard, shard_lengths in enumerate(lengths):
        n = int(shard_lengths.sum())
        #   lengths 3 2    rows 0 0 0 1 1    starts 0 0 0 3 3    columns 0 1 2 0 1
        starts = np.repeat(np.cumsum(shard_lengths) - shard_lengths, shard_lengths)
        rows[shard, :n] = np.repeat(np.arange(len(shard_lengths)), shard_lengths)
        columns[shard, :n] = np.arange(n) - starts
        counts[shard, :n] = True
    return Layout(rollouts, rows, columns, counts)


def pack(
    prompts: Sequence[list[int]],
    rollouts: Rollouts,
    usable: np.ndarray,
    token_weights: np.ndarray,
    advantages: np.ndarray,
    *,
    num_parts: int,
    mesh: Mesh,
) -> list[MicroBatch]:
    """Returns the micro-batches of a step, longest rows first, laid out over `mesh`.

    Args:
      prompts: the solver's, B lists of token ids.
      rollouts: B rows.
      usable: [B] bool; no token of the others counts, or reaches the output head.
      token_weights: [B, T] float32.
      advantages: [B] of policy gradients.
      num_parts: parts, of B / num_parts rows each; see `check_parts`.
      mesh: where the batch lies.
    """
    layouts = make_layouts(prompts, rollouts, usable, num_parts=num_parts, mesh=mesh)
    by_token = {
        "tokens": np.asarray(rollouts.tokens, np.int32),
        "weights": token_weights,
        "advantages": np.broadcast_to(
            advantages.astype(np.float32)[:, None], rollouts.tokens.shape
        ),
    }

    def targets(layout: Layout) -> Targets:
        arrays = {name: layout.gather(values) for name, values in by_token.items()}
        arrays["counts"] = layout.counts
        return Targets(**put(arrays, batch_sharding(mesh, 2)))

    return [
        MicroBatch(layout, pack_prompts(layout, prompts, rollouts, mesh=mesh), targets(layout))
        for layout in layouts
    ]


def pack_prompts(
    layout: Layout, prompts: Sequence[list[int]], rollouts: Rollouts, *, mesh: Mesh
) -> Sequences:
    """Returns the rows of a micro-batch with these prompts before the completions.

    Args:
      layout: of the micro-batch.
      prompts: B lists of token ids, of the whole step; the layout chooses.
      rollouts: B rows.
      mesh: where the batch lies.
    """
    chosen = layout.rollouts.reshape(-1)
    lengths = np.asarray(rollouts.lengths)
    ends = [len(prompts[row]) + int(lengths[row]) for row in chosen]
    width = padded_width(max(ends))
    tokens = np.zeros((len(chosen), width), np.int32)
    for line, row, end in zip(tokens, chosen, ends, strict=True):
        line[:end] = [*prompts[row], *rollouts.tokens[row, : lengths[row]]]
    # The state over the last token of the prompt predicts column 0.
    first = np.array([len(prompts[row]) - 1 for row in chosen]).reshape(layout.rollouts.shape)
    places = layout.rows * width + layout.columns
    places = places + np.take_along_axis(first, layout.rows, axis=1)
    arrays = (tokens, np.where(layout.counts, places, 0).astype(np.int32))
    return Sequences(*put(arrays, batch_sharding(mesh, 2)))


def unpack(
    layouts: Sequence[Layout], scores: Sequence[Scores], shape: tuple[int, ...]
) -> Scores:
    """Returns packed scores [N, ...] of each layout as NumPy [B, T, ...]; 0 elsewhere."""
    fetched = jax.device_get(list(scores))

    def rows_of(name: str) -> np.ndarray:
        packed = [getattr(found, name) for found in fetched]
        values = np.zeros((*shape, *packed[0].shape[1:]), packed[0].dtype)
        for layout, rows in zip(layouts, packed, strict=True):
            values[layout.index] = rows[layout.counts.reshape(-1)]
        return values

    kind = type(scores[0])
    return kind(*map(rows_of, kind._fields))  # pyright: ignore[reportArgumentType]
