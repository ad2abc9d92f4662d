# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of completion tokens under solver and teacher; padding ends where the head begins.

The transformer reads whole rows, prompt and completion and padding. The output head, whose
logits are the widest arrays of a step, reads the states that predict a completion token, and
nothing else: they are packed into one array first.

Solver, teacher and critic are one module on different weights:

    critic    {"params": base}
    teacher   {"params": base} plus the teacher's own tree (none, an adapter, or an average)
    solver    {"params": base} plus the trainable tree
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from stepalign_jax.config.schema import (
    ForwardKl,
    Jsd,
    PolicyGradient,
    ReverseKl,
    SampledToken,
    VocabularyDivergence,
)
from stepalign_jax.model.qwen3 import Qwen3, output_head
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.objectives.policy_gradient import grpo_token_loss
from stepalign_jax.objectives.tiled_divergence import tiled_divergence
from stepalign_jax.objectives.tiled_logprobs import tiled_logprobs
from stepalign_jax.parallel.mesh import active_mesh

Variables = dict[str, Any]


@flax.struct.dataclass
class Part:
    """Some of a step's rollouts, in shapes of few kinds: R rows and their N packed tokens.

        solver_tokens    p p p y y y .     row 0; the state over its last p predicts its first y
                         p y y . . . .     row 1
        solver_at        2 3 4 7 8 0       the states' places in the rows laid end to end
        tokens           y y y y y 0
        counts           1 1 1 1 1 0       the last one fills N up

    With S shards of the batch (S = 1 on one device) shard s owns rows s R/S to (s + 1) R/S and
    line s of the packed arrays; places count within the shard, so that packing moves nothing
    between devices.

    Attributes:
      solver_tokens: [R, Ws] int32, right-padded.
      teacher_tokens: [R, Wt] int32; the solver's again where no teacher is asked. None once
        the teacher's states are there.
      solver_at: [S, N / S] int32.
      teacher_at: [S, N / S] int32, or None with `teacher_tokens`.
      tokens: [S, N / S] int32, the completions' tokens.
      counts: [S, N / S] bool, True where a token counts in the loss.
      logprobs: [S, N / S] float32 under the solver that sampled, at temperature 1.
      advantages: [S, N / S] float32 of policy gradients: the rollout's, on each token.
    """

    solver_tokens: jax.Array
    teacher_tokens: Any
    solver_at: jax.Array
    teacher_at: Any
    tokens: jax.Array
    counts: jax.Array
    logprobs: jax.Array
    advantages: jax.Array

    def without_teacher(self) -> "Part":
        """The part as the update takes it: the teacher's width must not compile it again."""
        return self.replace(teacher_tokens=None, teacher_at=None)  # pyright: ignore[reportAttributeAccessIssue]


def packed_hidden(
    model: Qwen3, variables: Variables, tokens: jax.Array, at: jax.Array
) -> jax.Array:
    """Returns [N, D]: of the rows' hidden states, those at the places `at` [S, N / S]."""
    hidden, _ = model.apply(variables, tokens)  # pyright: ignore[reportAssignmentType]
    lines = hidden.reshape(at.shape[0], -1, hidden.shape[-1])
    packed = jnp.take_along_axis(lines, at[..., None], axis=1)
    return packed.reshape(-1, hidden.shape[-1])


def distillation_scores(
    model: Qwen3,
    solver: Variables,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    part: Part,
    config: ForwardKl | ReverseKl | Jsd | SampledToken,
) -> tuple[jax.Array, TokenScores]:
    """Returns the sum of the divergences that count, and [N] scores of every token.

    Both roles score the same tokens. The sum is differentiable with respect to `solver`
    alone; nothing divides it, so that gradients per token are of order 1 inside the model.

    Args:
      model: the module, layers scanned.
      solver: the solver's variables.
      teacher_hidden: [N, D], `packed_hidden` of the teacher.
      teacher_head: [V, D].
      part: the rollouts.
      config: which divergence.
    """
    over_vocabulary = isinstance(config, VocabularyDivergence)
    return tiled_divergence(
        packed_hidden(model, solver, part.solver_tokens, part.solver_at),
        teacher_hidden,
        output_head(solver["params"]),
        teacher_head,
        part.tokens.reshape(-1),
        token_weights=part.counts.reshape(-1),
        divergence=config.kind,
        jsd_beta=config.beta if isinstance(config, Jsd) else 0.5,
        loss_temperature=config.loss_temperature,
        element_clip=config.element_clip if over_vocabulary else 0.0,
        top_k=config.top_k if over_vocabulary else 0,
        token_tile=config.token_tile,
        mesh=active_mesh(),
    )


def policy_gradient_scores(
    model: Qwen3, solver: Variables, part: Part, config: PolicyGradient
) -> tuple[jax.Array, TokenScores]:
    """Returns what `distillation_scores` does, the clipped surrogate being the divergence.

    Ratios are taken at temperature 1, whatever the rollouts were drawn at. `advantage` is
    the rollout's, on each of its tokens; teacher log-probabilities and entropies are 0.
    """
    logprobs = tiled_logprobs(
        packed_hidden(model, solver, part.solver_tokens, part.solver_at),
        output_head(solver["params"]),
        part.tokens.reshape(-1),
        temperature=1.0,
        token_tile=config.token_tile,
        mesh=active_mesh(),
    )
    advantages = part.advantages.reshape(-1)
    # One advantage per token: each token is a group of its own to the loss.
    loss = grpo_token_loss(
        logprobs[:, None], part.logprobs.reshape(-1, 1), advantages, config.clip
    )[:, 0]
    total = jnp.sum(jnp.where(part.counts.reshape(-1), loss, 0.0))
    zeros = jnp.zeros_like(logprobs)
    return total, TokenScores(loss, advantages, logprobs, zeros, zeros, zeros)
