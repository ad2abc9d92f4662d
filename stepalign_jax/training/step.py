# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One optimizer step as pure functions: sum gradients over micro-batches, then apply them.

    one micro-batch     whole = gradient_sums, finish
    several             zeros -> accumulate, accumulate, ... -> finish

Here is what they compute; `programs.py` compiles them.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Float32, Int32, Scalar

from stepalign_jax.config.learning import (
    DivergenceConfig,
    NegativeLogLikelihood,
    ObjectiveConfig,
    PolicyGradient,
    TeacherConfig,
)
from stepalign_jax.model.qwen3 import Qwen3, output_head
from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.objectives.policy_gradient import grpo_token_loss
from stepalign_jax.objectives.tiled_divergence import tiled_divergence, tiled_entropies
from stepalign_jax.objectives.tiled_logprobs import tiled_logprobs
from stepalign_jax.objectives.tiles import times_weights
from stepalign_jax.objectives.token_weights import entropy_weights, reads_entropies
from stepalign_jax.parallel.mesh import active_mesh, whole_copy
from stepalign_jax.training.packing import Sequences, Targets
from stepalign_jax.training.scoring import hidden_states
from stepalign_jax.training.state import TrainState, Variables, follow, teacher_variables

Metrics = dict[str, Scalar]
_MEANS = ("loss", "advantage_mean", "advantage_abs_mean", "solver_logprob_mean")


@dataclass(frozen=True)
class Method:
    """What an update is made of; nothing of it changes during a run.

    Attributes:
      model: the module, layers scanned.
      optimizer: of the trainable tree.
      objective: which loss.
      teacher: which teacher, and how it follows; a policy gradient does not read it.
    """

    model: Qwen3
    optimizer: optax.GradientTransformation
    objective: ObjectiveConfig
    teacher: TeacherConfig


class Sums(NamedTuple):
    """What micro-batches of a step add up to.

    Attributes:
      gradient: of the weighted sum of the losses, like `TrainState.trainable`.
      values: float32 sums over the tokens that count, by metric.
      num_tokens: how many count.
    """

    gradient: Variables
    values: Metrics
    num_tokens: Int32[Array, ""]


def teacher_hidden(
    method: Method, state: TrainState, base: Any, sequences: Sequences
) -> Float[Array, "N D"]:
    """Returns the teacher's states that predict the packed tokens."""
    teacher = teacher_variables(state, base, method.teacher)
    return hidden_states(method.model, teacher, sequences)


def whole(
    method: Method,
    state: TrainState,
    base: Any,
    sequences: Sequences,
    targets: Targets,
    hidden: Float[Array, "N D"] | None,
) -> tuple[TrainState, Metrics, LossScores]:
    """Returns the state after a step of one micro-batch, its metrics, and scores of [N]."""
    sums, scores = gradient_sums(method, state, base, sequences, targets, hidden)
    return *finish(method, state, sums), scores


def zeros(state: TrainState) -> Sums:
    """Returns the sums of no micro-batch."""
    values: Metrics = {name: jnp.float32(0.0) for name in _MEANS}
    return Sums(jax.tree.map(jnp.zeros_like, state.trainable), values, jnp.int32(0))


def accumulate(
    method: Method,
    sums: Sums,
    state: TrainState,
    base: Any,
    sequences: Sequences,
    targets: Targets,
    hidden: Float[Array, "N D"] | None,
) -> tuple[Sums, LossScores]:
    """Returns `sums` with one more micro-batch, and its scores of [N]."""
    more, scores = gradient_sums(method, state, base, sequences, targets, hidden)
    return jax.tree.map(jnp.add, sums, more), scores


def finish(method: Method, state: TrainState, sums: Sums) -> tuple[TrainState, Metrics]:
    """Returns the state after the optimizer's update, and the step's metrics."""
    num_tokens = jnp.maximum(sums.num_tokens, 1)
    # Here and not in the loss: divided by thousands of tokens, what flows back through a
    # float16 model would round to 0. The gradient of the trainable weights is float32.
    gradient = jax.tree.map(lambda leaf: leaf / num_tokens, sums.gradient)
    updates, opt_state = method.optimizer.update(gradient, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = {name: value / num_tokens for name, value in sums.values.items()}
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    metrics["tokens_in_loss"] = sums.num_tokens
    new_state = state.replace(  # pyright: ignore[reportAttributeAccessIssue]
        step=state.step + 1,
        trainable=trainable,
        teacher=follow(state.teacher, trainable, method.teacher),  # pyright: ignore[reportArgumentType]
        opt_state=opt_state,
    )
    return new_state, metrics


def gradient_sums(
    method: Method,
    state: TrainState,
    base: Any,
    sequences: Sequences,
    targets: Targets,
    hidden: Float[Array, "N D"] | None,
) -> tuple[Sums, LossScores]:
    """Returns one micro-batch's sums, and its scores of [N]."""

    def loss(trainable: Variables) -> tuple[Float32[Array, ""], LossScores]:
        solver = {"params": base} | trainable
        states = hidden_states(method.model, solver, sequences)
        head = output_head(solver["params"])
        aims = weigh_by_entropy(method.objective, states, head, targets)
        match method.objective:
            case DivergenceConfig() as divergence:
                teacher = teacher_variables(state, base, method.teacher)
                other = output_head(teacher["params"])
                assert hidden is not None
                return distillation_loss(divergence, states, hidden, head, other, aims)
            case PolicyGradient() as surrogate:
                clip = surrogate.clip
                return policy_gradient_loss(surrogate, states, head, aims, clip=clip)
            case NegativeLogLikelihood() as likelihood:
                return likelihood_loss(likelihood, states, head, aims)
            case other:
                raise TypeError(f"{type(other).__name__} has no loss here")

    (total, scores), gradient = jax.value_and_grad(loss, has_aux=True)(state.trainable)
    values = _value_sums(total, scores, targets)
    sums = Sums(gradient, values, jnp.sum(targets.counts, dtype=jnp.int32))
    return sums, jax.tree.map(whole_copy, scores)


def weigh_by_entropy(
    objective: ObjectiveConfig,
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Targets,
) -> Targets:
    """Returns the targets with weights times those that read entropies, as constants.

    They cost one product with the head more, where the objective names one.
    """
    names = objective.token_weights
    if not reads_entropies(names):
        return targets
    entropies = tiled_entropies(
        hidden, head, token_tile=objective.token_tile, mesh=active_mesh()
    )
    more = entropy_weights(names, entropies).reshape(targets.weights.shape)
    return targets.replace(weights=targets.weights * more)  # pyright: ignore[reportAttributeAccessIssue]


def distillation_loss(
    divergence: DivergenceConfig,
    solver_hidden: Float[Array, "N D"],
    teacher_hidden: Float[Array, "N D"],
    solver_head: Float[Array, "V D"],
    teacher_head: Float[Array, "V D"],
    targets: Targets,
) -> tuple[Float32[Array, ""], LossScores]:
    """Returns the weighted sum of the divergences, and scores of [N].

    Both roles score the same tokens. Nothing divides the sum, so that gradients per token are
    of order 1 inside the model.

    With m = `grpo_mix` > 0 the sum is (1 - m) of that and m of GRPO's loss on the same tokens,
    with the same weights; the scores stay the divergence's. It costs two products with the
    head more, four if the head trains.
    """
    total, scores = tiled_divergence(
        solver_hidden,
        teacher_hidden,
        solver_head,
        teacher_head,
        targets.tokens.reshape(-1),
        token_weights=targets.weights.reshape(-1),
        divergence=divergence,
        mesh=active_mesh(),
    )
    if divergence.grpo_mix == 0:
        return total, scores
    # No clip: an update on its own rollouts has ratios of 1, at which none is active.
    rewarded, _ = policy_gradient_loss(
        divergence, solver_hidden, solver_head, targets, clip=math.inf
    )
    return (1 - divergence.grpo_mix) * total + divergence.grpo_mix * rewarded, scores


def policy_gradient_loss(
    objective: ObjectiveConfig,
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Targets,
    *,
    clip: float,
) -> tuple[Float32[Array, ""], LossScores]:
    """Returns what `distillation_loss` does, of GRPO's clipped surrogate.

    Ratios are taken at the objective's temperature. Where it is the sampling temperature and
    nothing is filtered, the gradient belongs to the distribution that the rollouts were drawn
    from. A step updates once on its rollouts, so the solver that sampled them is the solver
    that is trained: its log-probabilities, as constants, are the old ones.
    """
    logprobs, at_one = tiled_logprobs(
        hidden,
        head,
        targets.tokens.reshape(-1),
        temperature=objective.loss_temperature,
        token_tile=objective.token_tile,
        mesh=active_mesh(),
    )
    advantages = targets.advantages.reshape(-1)
    # One advantage per token: each token is a group of its own to the loss.
    column = logprobs[:, None]
    loss = grpo_token_loss(column, column, advantages, clip)[:, 0]
    total = jnp.sum(times_weights(loss, targets.weights.reshape(-1)))
    return total, LossScores(loss, advantages, at_one)


def likelihood_loss(
    objective: NegativeLogLikelihood,
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    targets: Targets,
) -> tuple[Float32[Array, ""], LossScores]:
    """Returns what `distillation_loss` does, of -log pi(token) at the objective's temperature.

    Its gradient is that of a policy gradient whose advantage is 1 on every token, and this is
    the advantage in the scores.
    """
    logprobs, at_one = tiled_logprobs(
        hidden,
        head,
        targets.tokens.reshape(-1),
        temperature=objective.loss_temperature,
        token_tile=objective.token_tile,
        mesh=active_mesh(),
    )
    total = jnp.sum(times_weights(-logprobs, targets.weights.reshape(-1)))
    return total, LossScores(-logprobs, jnp.ones_like(logprobs), at_one)


def _value_sums(total: Float32[Array, ""], scores: LossScores, targets: Targets) -> Metrics:
    counts = targets.counts.reshape(-1)

    def add_up(values: Float32[Array, " N"]) -> Float32[Array, ""]:
        return jnp.sum(jnp.where(counts, values, 0.0))

    advantage = scores.advantage
    sums = (total, *map(add_up, (advantage, jnp.abs(advantage), scores.solver_logprobs)))
    return dict(zip(_MEANS, sums, strict=True))
