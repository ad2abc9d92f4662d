# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One optimizer step as a pure function: score, differentiate, update.

Solver, teacher and critic are one module on different weights:

    critic    {"params": base}
    teacher   {"params": base} plus the teacher's own tree (none, an adapter, or an average)
    solver    {"params": base} plus the trainable tree
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from stepalign_jax.base.config import ObjectiveConfig, TeacherConfig
from stepalign_jax.model.qwen3 import Qwen3, output_head
from stepalign_jax.objectives.divergence import TokenScores, masked_mean
from stepalign_jax.objectives.policy_gradient import grpo_token_loss
from stepalign_jax.objectives.tiled_divergence import tiled_divergence
from stepalign_jax.objectives.tiled_logprobs import tiled_logprobs
from stepalign_jax.parallel.mesh import active_mesh

Variables = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """Everything an optimizer step changes; the base weights are not part of it.

    Attributes:
      step: int32 scalar, optimizer steps done.
      trainable: {"lora": ...} or {"params": ...}, float32.
      teacher: what the teacher has beside the base: {} for the frozen base; a tree of the
        form of `trainable` where it is an average, or the adapter that the run started from.
      opt_state: optax state.
    """

    step: jax.Array
    trainable: Variables
    teacher: Variables
    opt_state: Any


@flax.struct.dataclass
class Batch:
    """Rollouts ready to be scored; completions follow prompts without a gap.

        solver_tokens    p p p y y y .     the completion y starts at solver_starts[b]
        teacher_tokens   q q q q q y y y   and at teacher_starts[b]

    Attributes:
      solver_tokens: [B, Ls] int32, right-padded.
      solver_starts: [B] int32, prompt lengths.
      teacher_tokens: [B, Lt] int32; solver's again where no teacher is asked.
      teacher_starts: [B] int32.
      tokens: [B, T] int32, the completions.
      mask: [B, T] bool, True where a token counts in the loss.
      logprobs: [B, T] float32 under the solver that sampled, at temperature 1.
      advantages: [B] float32 of policy gradients.
    """

    solver_tokens: jax.Array
    solver_starts: jax.Array
    teacher_tokens: jax.Array
    teacher_starts: jax.Array
    tokens: jax.Array
    mask: jax.Array
    logprobs: jax.Array
    advantages: jax.Array


def completion_hidden(
    model: Qwen3, variables: Variables, tokens: jax.Array, starts: jax.Array, length: int
) -> jax.Array:
    """Returns [B, T, D]: row t is the state that predicts completion token t.

    It stands at position starts[b] - 1 + t. Rows past the end of `tokens` repeat its last.
    """
    hidden, _ = model.apply(variables, tokens)  # pyright: ignore[reportAssignmentType]
    positions = starts[:, None] - 1 + jnp.arange(length)[None]
    positions = jnp.minimum(positions, tokens.shape[1] - 1)
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)


def distillation_scores(
    model: Qwen3,
    solver: Variables,
    teacher: Variables,
    batch: Batch,
    config: ObjectiveConfig,
) -> tuple[jax.Array, TokenScores]:
    """Returns the sum of the divergence over the tokens that count, and all tokens' scores.

    The sum is differentiable with respect to `solver`; the scores [B, T] are constants.
    """
    shape = batch.tokens.shape
    solver_head, teacher_head = output_head(solver["params"]), output_head(teacher["params"])
    teacher = jax.lax.stop_gradient(teacher)
    teacher_hidden = completion_hidden(
        model, teacher, batch.teacher_tokens, batch.teacher_starts, shape[1]
    )
    solver_hidden = completion_hidden(
        model, solver, batch.solver_tokens, batch.solver_starts, shape[1]
    )
    total, scores = tiled_divergence(
        solver_hidden.reshape(-1, solver_hidden.shape[-1]),
        teacher_hidden.reshape(-1, teacher_hidden.shape[-1]),
        solver_head,
        None if teacher_head is solver_head else teacher_head,
        batch.tokens.reshape(-1),
        token_weights=batch.mask.reshape(-1),
        divergence=config.divergence,
        jsd_beta=config.jsd_beta,
        loss_temperature=config.loss_temperature,
        element_clip=config.element_clip,
        top_k=config.top_k,
        token_tile=config.token_tile,
        mesh=active_mesh(),
    )
    return total, TokenScores(*(score.reshape(shape) for score in scores))


def policy_gradient_scores(
    model: Qwen3, solver: Variables, batch: Batch, config: ObjectiveConfig
) -> tuple[jax.Array, TokenScores]:
    """Returns the sum of the clipped surrogate over the tokens that count, and [B, T] scores.

    Ratios are taken at temperature 1, whatever the rollouts were drawn at. In the scores the
    surrogate stands in place of the divergence, and `advantage` is the rollout's, on each of
    its tokens; the teacher's log-probabilities are 0, and so are both entropies.
    """
    shape = batch.tokens.shape
    hidden = completion_hidden(
        model, solver, batch.solver_tokens, batch.solver_starts, shape[1]
    )
    logprobs = tiled_logprobs(
        hidden.reshape(-1, hidden.shape[-1]),
        output_head(solver["params"]),
        batch.tokens.reshape(-1),
        temperature=1.0,
        token_tile=config.token_tile,
        mesh=active_mesh(),
    ).reshape(shape)
    loss = grpo_token_loss(logprobs, batch.logprobs, batch.advantages, config.grpo_clip)
    advantages = jnp.broadcast_to(batch.advantages[:, None], shape)
    total = jnp.sum(jnp.where(batch.mask, loss, 0.0))
    zeros = jnp.zeros(shape, jnp.float32)
    return total, TokenScores(loss, advantages, logprobs, zeros, zeros, zeros)


def teacher_tree(
    state: TrainState, config: TeacherConfig, solver: Variables, base: Variables
) -> Variables:
    """Returns the teacher's variables."""
    if config.kind == "live":
        return solver
    return {"params": base} | state.teacher


def make_update(
    model: Qwen3,
    optimizer: optax.GradientTransformation,
    objective: ObjectiveConfig,
    teacher: TeacherConfig,
    *,
    distils: bool,
    micro_batches: int,
) -> Callable[
    [TrainState, Variables, Batch], tuple[TrainState, dict[str, jax.Array], TokenScores]
]:
    """Returns the jitted optimizer step (state, base, batch) -> (state, metrics, scores).

    The loss is one sum over all tokens that count, divided by their number: cutting the
    batch into micro-batches changes the memory and nothing else. `state` is donated.

    Args:
      model: the module, layers scanned.
      optimizer: of the trainable tree.
      objective: which loss.
      teacher: which teacher, and how it follows.
      distils: True for a divergence to the teacher, False for the policy gradient.
      micro_batches: parts; it divides B.
    """

    def score(
        trainable: Variables, state: TrainState, base: Variables, part: Batch
    ) -> tuple[jax.Array, TokenScores]:
        solver = {"params": base} | trainable
        if not distils:
            return policy_gradient_scores(model, solver, part, objective)
        tutor = teacher_tree(state, teacher, solver, base)
        return distillation_scores(model, solver, tutor, part, objective)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: TrainState, base: Variables, batch: Batch) -> Any:
        num_tokens = jnp.maximum(jnp.sum(batch.mask, dtype=jnp.int32), 1)

        def part_loss(trainable: Variables, part: Batch) -> tuple[jax.Array, TokenScores]:
            total, scores = score(trainable, state, base, part)
            return total / num_tokens, scores

        def accumulate(carry: Any, part: Batch) -> Any:
            (loss, scores), gradient = jax.value_and_grad(part_loss, has_aux=True)(
                state.trainable, part
            )
            return (carry[0] + loss, jax.tree.map(jnp.add, carry[1], gradient)), scores

        parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
        start = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, state.trainable))
        (loss, gradient), scores = jax.lax.scan(accumulate, start, parts)
        scores = TokenScores(*(s.reshape(batch.tokens.shape) for s in scores))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "tokens_in_loss": jnp.sum(batch.mask, dtype=jnp.int32),
            "advantage_mean": masked_mean(scores.advantage, batch.mask),
            "advantage_abs_mean": masked_mean(jnp.abs(scores.advantage), batch.mask),
            "solver_logprob_mean": masked_mean(scores.solver_logprobs, batch.mask),
        }
        following = follow(state.teacher, trainable, teacher)
        new_state = state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            step=state.step + 1, trainable=trainable, teacher=following, opt_state=opt_state
        )
        return new_state, metrics, scores

    return update


def follow(teacher: Variables, trainable: Any, config: TeacherConfig) -> Variables:
    """Returns the teacher's tree after a step: an average for `ema`, else unchanged."""
    if config.kind != "ema":
        return teacher
    decay = config.ema_decay
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, teacher, trainable)
