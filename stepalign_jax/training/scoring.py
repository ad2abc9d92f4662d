# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Forward-only scores of rollouts, under any number of contexts; no gradient is taken.

The transformer reads whole rows, prompt and completion and padding. The output head, whose
logits are the widest arrays of a step, reads the states that predict a completion token, and
nothing else: they are packed into one array first (`hidden_states`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int

from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.learning import DivergenceConfig
from stepalign_jax.model.qwen3 import Qwen3, output_head
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.objectives.tiled_divergence import tiled_scores
from stepalign_jax.objectives.tiles import logits
from stepalign_jax.parallel.mesh import (
    active_mesh,
    batch_sharding,
    num_shards,
    put,
    whole_copy,
)
from stepalign_jax.training.packing import (
    Sequences,
    make_layouts,
    pack_prompts,
    unpack,
)
from stepalign_jax.training.state import Variables


def hidden_states(
    model: Qwen3, variables: Variables, sequences: Sequences
) -> Float[Array, "N D"]:
    """Returns, of the rows' hidden states, those that predict the packed tokens."""
    hidden, _ = model.apply(variables, sequences.tokens)  # pyright: ignore[reportAssignmentType]
    places = sequences.places
    # Rows of a shard end to end, [S, R / S * W, D]: a place never leaves its shard.
    lines = hidden.reshape(places.shape[0], -1, hidden.shape[-1])
    packed = jnp.take_along_axis(lines, places[..., None], axis=1)
    return packed.reshape(-1, hidden.shape[-1])


class ScoringPrograms(NamedTuple):
    """The jitted functions of forward-only scoring; each compiles once per shape.

    Attributes:
      hidden: (variables, sequences) -> hidden states.
      score: (solver hidden [N, D], teacher hidden [N, D], solver head [V, D], teacher head or
        None if it is the solver's, tokens [S, N / S]) -> TokenScores of [N].
    """

    hidden: Callable[[Variables, Sequences], Float[Array, "N D"]]
    score: Callable[..., TokenScores]


def make_scoring_programs(
    model: Qwen3, divergence: DivergenceConfig, *, num_top: int
) -> ScoringPrograms:
    """Returns the programs of `score_contexts`.

    Args:
      model: the module of both roles.
      divergence: what they report.
      num_top: how many of each side's likeliest entries come with a token; at most V.
    """

    def hidden(variables: Variables, sequences: Sequences) -> Float[Array, "N D"]:
        return hidden_states(model, variables, sequences)

    def score(
        solver_hidden: Float[Array, "N D"],
        teacher_hidden: Float[Array, "N D"],
        solver_head: Float[Array, "V D"],
        teacher_head: Float[Array, "V D"] | None,
        tokens: Int[Array, "S n"],
    ) -> TokenScores:
        found = tiled_scores(
            solver_hidden,
            teacher_hidden,
            solver_head,
            teacher_head,
            tokens.reshape(-1),
            divergence=divergence,
            num_top=num_top,
            mesh=active_mesh(),
        )
        return jax.tree.map(whole_copy, found)

    return ScoringPrograms(jax.jit(hidden), jax.jit(score))


def score_contexts(
    programs: ScoringPrograms,
    solver: Variables,
    teacher: Variables,
    prompts: Sequence[list[int]],
    contexts: Mapping[str, Sequence[list[int]]],
    rollouts: Rollouts,
    *,
    num_parts: int,
    mesh: Mesh,
) -> dict[str, TokenScores]:
    """Returns the scores [B, T, ...] of the same tokens under each context; 0 at padding.

    The solver reads each rollout once, the teacher once per context.

    Args:
      programs: see `make_scoring_programs`.
      solver: its variables.
      teacher: the teacher's.
      prompts: the solver's, B lists of token ids; B may be any number.
      contexts: by name, the teacher's prompts: B lists each.
      rollouts: B rows.
      num_parts: how many parts the rows are cut into; more parts take less memory.
      mesh: where the batch lies; call it within `use_mesh(mesh)`.
    """
    num_rows = len(prompts)
    # A row that fills the shards up repeats the last one, and none of its tokens counts.
    whole = num_rows + -num_rows % (num_parts * num_shards(mesh))
    rows = np.minimum(np.arange(whole), num_rows - 1)
    rollouts = jax.tree.map(lambda values: np.asarray(values)[rows], rollouts)
    repeat = lambda prompts: [prompts[row] for row in rows]  # noqa: E731
    layouts = make_layouts(
        repeat(prompts), rollouts, np.arange(whole) < num_rows, num_parts=num_parts, mesh=mesh
    )
    heads = _heads(solver, teacher)
    parts: dict[str, list[TokenScores]] = {name: [] for name in contexts}
    for layout in layouts:
        tokens = layout.gather(np.asarray(rollouts.tokens))
        tokens = put(tokens, batch_sharding(mesh, 2))
        read = lambda variables, prompts, layout=layout: programs.hidden(  # noqa: E731
            variables, pack_prompts(layout, repeat(prompts), rollouts, mesh=mesh)
        )
        solver_hidden = read(solver, prompts)
        for name, teacher_prompts in contexts.items():
            hidden = read(teacher, teacher_prompts)
            parts[name].append(programs.score(solver_hidden, hidden, *heads, tokens))
    shape = rollouts.tokens.shape
    found = {name: unpack(layouts, scores, shape) for name, scores in parts.items()}
    return jax.tree.map(lambda values: values[:num_rows], found)


def _heads(
    solver: Variables, teacher: Variables
) -> tuple[Float[Array, "V D"], Float[Array, "V D"] | None]:
    """Both output heads; None for a teacher's that is the solver's own array."""
    own, other = output_head(solver["params"]), output_head(teacher["params"])
    return own, None if other is own else other


def make_logprobs_program(model: Qwen3) -> Callable[[Variables, Sequences], jax.Array]:
    """Returns the program of `whole_logprobs`: (variables, sequences) -> [N, V]."""

    def logprobs(variables: Variables, sequences: Sequences) -> Float[Array, "N V"]:
        hidden = hidden_states(model, variables, sequences)
        head = output_head(variables["params"]).astype(hidden.dtype)
        return whole_copy(jax.nn.log_softmax(logits(hidden, head)))

    return jax.jit(logprobs)


def whole_logprobs(
    program: Callable[[Variables, Sequences], jax.Array],
    variables: Variables,
    prompts: Sequence[list[int]],
    completion: Sequence[int],
    *,
    mesh: Mesh,
) -> Float32[np.ndarray, "B T V"]:
    """Returns log-probabilities over the whole vocabulary, at temperature 1.

    For a handful of tokens: this array is what training never makes.

    Args:
      program: see `make_logprobs_program`.
      variables: of the role that reads.
      prompts: B lists of token ids.
      completion: the T tokens behind each of them; [:, t] predicts the t-th of them.
      mesh: where the batch lies; call it within `use_mesh(mesh)`.
    """
    num_prompts, length = len(prompts), len(completion)
    rows = list(prompts) * num_shards(mesh)
    rollouts = Rollouts(
        np.tile(np.array(completion, np.int32), (len(rows), 1)),
        np.zeros((len(rows), length), np.float32),
        np.full(len(rows), length, np.int32),
        np.ones(len(rows), bool),
    )
    usable = np.ones(len(rows), bool)
    [layout] = make_layouts(rows, rollouts, usable, num_parts=1, mesh=mesh)
    packed = jax.device_get(program(variables, pack_prompts(layout, rows, rollouts, mesh=mesh)))
    found = np.zeros((len(rows), length, packed.shape[-1]), np.float32)
    found[layout.index] = packed[layout.counts.reshape(-1)]
    return found[:num_prompts]
