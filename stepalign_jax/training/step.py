# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One optimizer step in three pure functions: score the teacher, differentiate, apply."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from stepalign_jax.config.schema import EmaTeacher, LiveTeacher, ObjectiveConfig, TeacherConfig
from stepalign_jax.model.qwen3 import Qwen3, output_head
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.training.scoring import (
    Part,
    Variables,
    distillation_scores,
    packed_hidden,
    policy_gradient_scores,
)

Metrics = dict[str, jax.Array]


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


class Sums(NamedTuple):
    """What parts of a step add up to.

    Attributes:
      gradient: of the sum of the losses of all tokens, like `TrainState.trainable`.
      values: float32 sums over the tokens that count, by metric.
      num_tokens: int32, how many count.
    """

    gradient: Variables
    values: Metrics
    num_tokens: jax.Array


class Update(NamedTuple):
    """The jitted functions of an optimizer step; each compiles once per shape of a part.

    Attributes:
      score_teacher: (state, base, tokens [R, Wt], at [S, N / S]) -> [N, D] states of the
        teacher; nothing is saved for a gradient. None where no teacher is asked.
      whole: (state, base, part, teacher hidden) -> (state, metrics, scores [N]) of a step
        that is one part. `state` is donated.
      accumulate: (sums, state, base, part, teacher hidden) -> (sums, scores). `sums` is
        donated.
      zeros: state -> the sums to start from.
      finish: (state, sums) -> (state, metrics). `state` is donated.
    """

    score_teacher: Callable[[TrainState, Variables, Any, Any], jax.Array] | None
    whole: Callable[..., tuple[TrainState, Metrics, TokenScores]]
    accumulate: Callable[..., tuple[Sums, TokenScores]]
    zeros: Callable[[TrainState], Sums]
    finish: Callable[[TrainState, Sums], tuple[TrainState, Metrics]]

    def score(
        self, state: TrainState, base: Variables, parts: Sequence[Part]
    ) -> list[jax.Array | None]:
        """Returns the teacher's states of each part, or None for each."""
        if self.score_teacher is None:
            return [None] * len(parts)
        return [
            self.score_teacher(state, base, part.teacher_tokens, part.teacher_at)
            for part in parts
        ]

    def apply(
        self,
        state: TrainState,
        base: Variables,
        parts: Sequence[Part],
        hidden: Sequence[jax.Array | None],
    ) -> tuple[TrainState, Metrics, list[TokenScores]]:
        """Returns the state after the step, its metrics, and the scores of each part.

        The loss is one sum over all tokens that count, divided by their number: cutting a
        step into parts changes the memory and nothing else. One part is spared the second
        tree of gradients that adding up takes. `state` is donated.
        """
        parts = [part.without_teacher() for part in parts]
        if len(parts) == 1:
            state, metrics, scores = self.whole(state, base, parts[0], hidden[0])
            return state, metrics, [scores]
        sums, all_scores = self.zeros(state), []
        for part, states in zip(parts, hidden, strict=True):
            sums, scores = self.accumulate(sums, state, base, part, states)
            all_scores.append(scores)
        state, metrics = self.finish(state, sums)
        return state, metrics, all_scores


def make_update(
    model: Qwen3,
    optimizer: optax.GradientTransformation,
    objective: ObjectiveConfig,
    teacher: TeacherConfig,
    *,
    distils: bool,
    shardings: TrainState | None,
) -> Update:
    """Returns the functions of an optimizer step.

    Args:
      model: the module, layers scanned.
      optimizer: of the trainable tree.
      objective: which loss.
      teacher: which teacher, and how it follows.
      distils: True for a divergence to the teacher, False for the policy gradient.
      shardings: where each leaf of the state lies before and after; None leaves that to the
        compiler, which may move leaves and so have everything compiled twice.
    """

    def score_teacher(state: TrainState, base: Variables, tokens: Any, at: Any) -> jax.Array:
        return packed_hidden(model, teacher_tree(state, teacher, base), tokens, at)

    def sums_of(
        state: TrainState, base: Variables, part: Part, hidden: jax.Array | None
    ) -> tuple[Sums, TokenScores]:
        def loss(trainable: Variables) -> tuple[jax.Array, TokenScores]:
            solver = {"params": base} | trainable
            if hidden is None:
                return policy_gradient_scores(model, solver, part, objective)  # pyright: ignore[reportArgumentType]
            head = output_head(teacher_tree(state, teacher, base)["params"])
            return distillation_scores(model, solver, hidden, head, part, objective)  # pyright: ignore[reportArgumentType]

        (total, scores), gradient = jax.value_and_grad(loss, has_aux=True)(state.trainable)
        return Sums(gradient, _value_sums(total, scores, part), _num_tokens(part)), scores

    def finish(state: TrainState, sums: Sums) -> tuple[TrainState, Metrics]:
        num_tokens = jnp.maximum(sums.num_tokens, 1)
        # Here and not in the loss: divided by thousands of tokens, what flows back through a
        # float16 model would round to 0. The gradient of the trainable weights is float32.
        gradient = jax.tree.map(lambda leaf: leaf / num_tokens, sums.gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {name: value / num_tokens for name, value in sums.values.items()}
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        metrics["tokens_in_loss"] = sums.num_tokens
        new_state = state.replace(  # pyright: ignore[reportAttributeAccessIssue]
            step=state.step + 1,
            trainable=trainable,
            teacher=follow(state.teacher, trainable, teacher),
            opt_state=opt_state,
        )
        return new_state, metrics

    def whole(state: TrainState, base: Variables, part: Part, hidden: Any) -> Any:
        sums, scores = sums_of(state, base, part, hidden)
        return *finish(state, sums), scores

    def accumulate(
        sums: Sums, state: TrainState, base: Variables, part: Part, hidden: Any
    ) -> tuple[Sums, TokenScores]:
        more, scores = sums_of(state, base, part, hidden)
        return jax.tree.map(jnp.add, sums, more), scores

    def zeros(state: TrainState) -> Sums:
        values: Metrics = {name: jnp.float32(0.0) for name in _VALUES}
        return Sums(jax.tree.map(jnp.zeros_like, state.trainable), values, jnp.int32(0))

    sums_at = None if shardings is None else Sums(shardings.trainable, None, None)  # pyright: ignore[reportArgumentType]
    return Update(
        score_teacher=jax.jit(score_teacher) if distils else None,
        whole=jax.jit(whole, donate_argnums=0, out_shardings=(shardings, None, None)),
        accumulate=jax.jit(accumulate, donate_argnums=0, out_shardings=(sums_at, None)),
        zeros=jax.jit(zeros, out_shardings=sums_at),
        finish=jax.jit(finish, donate_argnums=0, out_shardings=(shardings, None)),
    )


_VALUES = ("loss", "advantage_mean", "advantage_abs_mean", "solver_logprob_mean")


def _value_sums(total: jax.Array, scores: TokenScores, part: Part) -> Metrics:
    counts = part.counts.reshape(-1)

    def add_up(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(counts, values, 0.0))

    advantage = scores.advantage
    sums = (total, *map(add_up, (advantage, jnp.abs(advantage), scores.solver_logprobs)))
    return dict(zip(_VALUES, sums, strict=True))


def _num_tokens(part: Part) -> jax.Array:
    return jnp.sum(part.counts, dtype=jnp.int32)


def teacher_tree(state: TrainState, config: TeacherConfig, base: Variables) -> Variables:
    """Returns the teacher's variables; those of a live teacher are the solver's."""
    own = state.trainable if isinstance(config, LiveTeacher) else state.teacher
    return {"params": base} | own


def follow(teacher: Variables, trainable: Any, config: TeacherConfig) -> Variables:
    """Returns the teacher's tree after a step: an average for `ema`, else unchanged."""
    if not isinstance(config, EmaTeacher):
        return teacher
    decay = config.decay
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, teacher, trainable)
