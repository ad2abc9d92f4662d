# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What tests of a step share: a model, four rollouts, an optimizer that keeps gradients."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from support.models import TIED, enlarged, map_leaves

from stepalign_jax.config.learning import (
    DivergenceConfig,
    EmaTeacher,
    ForwardKl,
    InitialTeacher,
    LiveTeacher,
    ObjectiveConfig,
    PolicyGradient,
    TeacherConfig,
)
from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.model.qwen3 import Qwen3, init_params, output_head
from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.training import programs as run
from stepalign_jax.training.packing import Sequences, Targets
from stepalign_jax.training.programs import Programs, make_programs
from stepalign_jax.training.scoring import hidden_states
from stepalign_jax.training.state import TrainState
from stepalign_jax.training.step import Method

CONFIG = TIED
SPEC = LoraSpec(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
MODEL = Qwen3(CONFIG, jnp.float32, lora=SPEC)
DIVERGENCE = ForwardKl(
    loss_temperature=1.0,
    grpo_mix=0.0,
    element_clip=0.0,
    top_k=0,
    token_tile=8,
    token_weights=(),
)
SURROGATE = PolicyGradient(loss_temperature=1.1, clip=0.2, token_tile=8, token_weights=())
TEACHERS: dict[str, TeacherConfig] = {
    "initial": InitialTeacher(),
    "ema": EmaTeacher(decay=0.75),
    "live": LiveTeacher(),
}


def draw_params(seed: int) -> dict[str, Any]:
    """Random weights, large enough that rows of logits are far from uniform."""
    return enlarged(init_params(CONFIG, jax.random.key(seed)), 10)


PARAMS, OTHER_PARAMS = draw_params(0), draw_params(1)
LORA = map_leaves(init_lora(CONFIG, SPEC, jax.random.key(2)), lambda leaf: leaf + 0.1)
BATCH, LENGTH = 4, 6

# Row by row: unlike prompts, and completions that end early.
SOLVER_PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [12, 13]]
TEACHER_PROMPTS = [[14, 15], [16, 17, 18, 19, 20, 21], [22], [3, 23, 3, 23]]
COMPLETIONS = [[5, 9, 2, 7, 1, 0], [11, 4, 1], [20, 20, 3, 8, 1], [6, 1]]


ROWS = tuple(range(BATCH))
# Which completion tokens count: all of them.
ALL = np.arange(LENGTH)[None] < np.array([[len(c)] for c in COMPLETIONS])
ADVANTAGES = (1.0, -1.0, 0.5, 0.0)


def join(prompts: Sequence[list[int]], rows: Sequence[int], width: int) -> jax.Array:
    tokens = np.zeros((len(rows), width), np.int32)
    for line, row in zip(tokens, rows, strict=True):
        both = [*prompts[row], *COMPLETIONS[row]]
        line[: len(both)] = both
    return jnp.asarray(tokens)


@dataclass(frozen=True)
class Part:
    """A micro-batch, and the same completions as the teacher reads them."""

    solver: Sequences
    teacher: Sequences
    targets: Targets


def make_part(
    teacher_prompts: Sequence[list[int]] = TEACHER_PROMPTS,
    *,
    teacher_width: int = 12,
    rows: Sequence[int] = ROWS,
    counts: np.ndarray = ALL,
    weights: np.ndarray | None = None,
    advantages: Sequence[float] = ADVANTAGES,
    num_packed: int = 16,
) -> Part:
    """The given rows, their tokens that count packed row by row; packing.py is not asked."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("solver", "teacher", "tokens", "weights", "advantages")
    }
    for i, row in enumerate(rows):
        for t in np.flatnonzero(counts[row]):
            columns["solver"].append(i * 12 + len(SOLVER_PROMPTS[row]) - 1 + t)
            columns["teacher"].append(i * teacher_width + len(teacher_prompts[row]) - 1 + t)
            columns["tokens"].append(COMPLETIONS[row][t])
            columns["weights"].append(1.0 if weights is None else weights[row, t])
            columns["advantages"].append(advantages[row])
    num_tokens = len(columns["tokens"])

    def filled(name: str, dtype: Any = jnp.int32) -> jax.Array:
        return jnp.array([[*columns[name], *[0] * (num_packed - num_tokens)]], dtype)

    return Part(
        Sequences(join(SOLVER_PROMPTS, rows, 12), filled("solver")),
        Sequences(join(teacher_prompts, rows, teacher_width), filled("teacher")),
        Targets(
            filled("tokens"),
            counts=jnp.arange(num_packed)[None] < num_tokens,
            **{n: filled(n, jnp.float32) for n in ("weights", "advantages")},
        ),
    )


def teacher_states(model: Qwen3, teacher: dict[str, Any], part: Part) -> jax.Array:
    """[N, D] states of the teacher that predict the part's tokens."""
    return hidden_states(model, teacher, part.teacher)


def spread(values: jax.Array, counts: np.ndarray = ALL) -> np.ndarray:
    """Packed values of a whole batch, back in [B, T]."""
    found = np.zeros((BATCH, LENGTH), np.float32)
    found[counts] = np.asarray(values)[: counts.sum()]
    return found


def recording_sgd() -> optax.GradientTransformation:
    """Goes down the gradient, and keeps it as its state."""

    def update(gradient: Any, _state: Any, _params: Any = None) -> Any:
        return jax.tree.map(lambda leaf: -0.01 * leaf, gradient), gradient

    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), update
    )


OPTIMIZER = recording_sgd()


@functools.cache
def programs_of(
    *, teacher: str = "initial", objective: ObjectiveConfig = DIVERGENCE, dtype: Any = None
) -> Programs:
    model = MODEL if dtype is None else Qwen3(CONFIG, dtype, lora=SPEC)
    method = Method(model, OPTIMIZER, objective, TEACHERS[teacher])
    return make_programs(method, shardings=None)


def run_step(
    state: TrainState, base: Any, *parts: Part, **options: Any
) -> tuple[TrainState, dict[str, jax.Array], list[LossScores]]:
    programs = programs_of(**options)
    hidden = None
    if isinstance(options.get("objective", DIVERGENCE), DivergenceConfig):
        hidden = run.score_teacher(programs, state, base, [part.teacher for part in parts])
    return run.update(programs, state, base, parts, hidden)  # pyright: ignore[reportArgumentType]


def copy(tree: Any) -> Any:
    """The state is donated, so each one needs arrays of its own."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def make_state(trainable: dict[str, Any] | None = None, teacher: Any = None) -> TrainState:
    trainable = copy({"params": PARAMS} if trainable is None else trainable)
    opt_state = OPTIMIZER.init(trainable)
    return TrainState(jnp.int32(0), trainable, copy(teacher or {}), opt_state)  # pyright: ignore[reportCallIssue]


def gradient_of(*parts: Part, state: TrainState | None = None, **options: Any) -> Any:
    """Returns (gradient, loss) of one step from `state`."""
    state = make_state() if state is None else state
    new, metrics, _ = run_step(state, PARAMS, *parts, **options)
    return new.opt_state, float(metrics["loss"])


@jax.jit
def plain_logits(variables: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """[S, V] of one row alone."""
    hidden, _ = MODEL.apply(variables, tokens[None])  # pyright: ignore[reportAssignmentType]
    return hidden[0] @ output_head(variables["params"]).T


def plain_logprobs(variables: dict[str, Any], prompts: Sequence[list[int]]) -> np.ndarray:
    """[B, T] by one forward per row: y_t is predicted at position len(prompt) - 1 + t."""
    found = np.zeros((BATCH, LENGTH), np.float32)
    for row, (prompt, completion) in enumerate(zip(prompts, COMPLETIONS, strict=True)):
        tokens = np.zeros(16, np.int32)
        tokens[: len(prompt) + len(completion)] = [*prompt, *completion]
        logits = np.asarray(plain_logits(variables, tokens), np.float64)
        for t, token in enumerate(completion):
            at = logits[len(prompt) - 1 + t]
            found[row, t] = at[token] - np.log(np.exp(at - at.max()).sum()) - at.max()
    return found
