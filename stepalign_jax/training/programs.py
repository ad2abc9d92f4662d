# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The compiled programs of an optimizer step, and their arguments without data.

A program is made from values alone. With the `abstract_*` arguments, shapes with shardings, it
compiles where no weight has been read and no device of the mesh exists:

    with use_mesh(mesh):
        programs = make_programs(method, shardings=state_shardings(state))
        programs.whole.lower(state, base, sequences, targets, hidden).compile()

where `mesh` may be that of a topology (jax.experimental.topologies), `state` an
`abstract_state`, and the others are made below.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import abstract_params
from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.parallel.mesh import batch_sharding, num_shards, param_shardings, unboxed
from stepalign_jax.training import step
from stepalign_jax.training.packing import MicroBatch, Sequences, Targets
from stepalign_jax.training.state import TrainState


class Programs(NamedTuple):
    """The jitted functions of `step.py`; each compiles once per shape of a micro-batch.

    `hidden` is the teacher's, None for a policy gradient.

    Attributes:
      teacher_hidden: (state, base, sequences) -> [N, D]; nothing is saved for a gradient.
      whole: (state, base, sequences, targets, hidden) -> (state, metrics, scores [N]) of a
        step that is one micro-batch. `state` is donated.
      accumulate: (sums, state, base, sequences, targets, hidden) -> (sums, scores). `sums` is
        donated.
      zeros: state -> the sums to start from.
      finish: (state, sums) -> (state, metrics). `state` is donated.
    """

    teacher_hidden: jax.stages.Wrapped
    whole: jax.stages.Wrapped
    accumulate: jax.stages.Wrapped
    zeros: jax.stages.Wrapped
    finish: jax.stages.Wrapped


def make_programs(method: step.Method, *, shardings: TrainState | None) -> Programs:
    """Returns the programs of an optimizer step.

    Args:
      method: model, optimizer, objective and teacher.
      shardings: `state_shardings`, where each leaf of the state lies before and after; None
        leaves that to the compiler, which may move leaves and so have all compiled twice.
    """
    sums, hidden = None, None
    if shardings is not None:
        sums = step.Sums(shardings.trainable, None, None)  # pyright: ignore[reportArgumentType]
        hidden = batch_sharding(shardings.step.mesh, 2)  # pyright: ignore[reportAttributeAccessIssue]
    return Programs(
        teacher_hidden=jax.jit(partial(step.teacher_hidden, method), out_shardings=hidden),
        whole=jax.jit(
            partial(step.whole, method), donate_argnums=0, out_shardings=(shardings, None, None)
        ),
        accumulate=jax.jit(
            partial(step.accumulate, method), donate_argnums=0, out_shardings=(sums, None)
        ),
        zeros=jax.jit(step.zeros, out_shardings=sums),
        finish=jax.jit(
            partial(step.finish, method), donate_argnums=0, out_shardings=(shardings, None)
        ),
    )


# --- The two phases of a step that use them ------------------------------------------------


def score_teacher(
    programs: Programs, state: TrainState, base: Any, sequences: Sequence[Sequences]
) -> list[jax.Array]:
    """Returns the teacher's states [N, D] of each micro-batch, for `update`."""
    return [programs.teacher_hidden(state, base, rows) for rows in sequences]


def update(
    programs: Programs,
    state: TrainState,
    base: Any,
    batches: Sequence[MicroBatch],
    hidden: Sequence[jax.Array] | None,
) -> tuple[TrainState, step.Metrics, list[LossScores]]:
    """Returns the state after the step, its metrics, and the scores of each micro-batch.

    The loss is one sum over all tokens, divided by the number that count: cutting a step into
    micro-batches changes the memory and nothing else. One micro-batch is spared the second tree
    of gradients that adding up takes. `state` is donated.

    Args:
      programs: see `make_programs`.
      state: before the step; not to be used any more.
      base: params of the base.
      batches: of the step.
      hidden: `score_teacher`'s, one per micro-batch; None for a policy gradient.
    """
    states = [None] * len(batches) if hidden is None else hidden
    if len(batches) == 1:
        (batch,), (own,) = batches, states
        state, metrics, scores = programs.whole(state, base, batch.solver, batch.targets, own)
        return state, metrics, [scores]
    sums, all_scores = programs.zeros(state), []
    for batch, own in zip(batches, states, strict=True):
        arguments = (state, base, batch.solver, batch.targets, own)
        sums, scores = programs.accumulate(sums, *arguments)
        all_scores.append(scores)
    state, metrics = programs.finish(state, sums)
    return state, metrics, all_scores


# --- Arguments without data ----------------------------------------------------------------


def abstract_base(mesh: Mesh, sizes: Qwen3Config, dtype: Any) -> Any:
    """Returns shapes and shardings of the base's params, in the compute dtype.

    Raises:
      UserError: a mesh axis does not divide the axis of a weight that it cuts.
    """
    boxed = abstract_params(sizes)
    return jax.tree.map(
        lambda sharding, leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        param_shardings(mesh, boxed),
        unboxed(boxed),
    )


def abstract_sequences(mesh: Mesh, *, rows: int, width: int, num_tokens: int) -> Sequences:
    """Returns shapes and shardings of [rows, width] tokens and `num_tokens` packed places.

    The mesh's batch shards divide `rows` and `num_tokens`; `packing.padded_width` and
    `packing.padded` (per shard) say which widths and numbers a run meets.
    """
    tokens = _abstract(mesh, (rows, width), jnp.int32)
    return Sequences(tokens, _packed(mesh, num_tokens, jnp.int32))


def abstract_targets(mesh: Mesh, *, num_tokens: int) -> Targets:
    """Returns shapes and shardings of what the loss knows of `num_tokens` packed tokens."""
    dtypes = (jnp.int32, jnp.bool_, jnp.float32, jnp.float32)
    return Targets(*(_packed(mesh, num_tokens, dtype) for dtype in dtypes))


def abstract_hidden(
    mesh: Mesh, sizes: Qwen3Config, dtype: Any, *, num_tokens: int
) -> jax.ShapeDtypeStruct:
    """Returns shape and sharding of `teacher_hidden`'s result."""
    return _abstract(mesh, (num_tokens, sizes.hidden_size), dtype)


def _packed(mesh: Mesh, num_tokens: int, dtype: Any) -> Any:
    shards = num_shards(mesh)
    return _abstract(mesh, (shards, num_tokens // shards), dtype)


def _abstract(mesh: Mesh, shape: tuple[int, int], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, 2))
