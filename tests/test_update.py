# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: what is scored, what gets a gradient, and what stays as it is."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from testing import TINY

from stepalign_jax.base.config import TeacherConfig
from stepalign_jax.base.load_config import load_config
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.model.qwen3 import Qwen3, init_params, output_head
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.objectives.update import (
    Batch,
    TrainState,
    distillation_scores,
    follow,
    make_update,
)

CONFIG = Qwen3Config(
    vocab_size=24,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=24,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_positions=64,
    qkv_bias=False,
    qk_norm=True,
    yarn=None,
)
SPEC = LoraSpec(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
MODEL = Qwen3(CONFIG, jnp.float32, lora=SPEC)
OBJECTIVE = dataclasses.replace(load_config(TINY).objective, token_tile=8)


def draw_params(seed: int) -> dict[str, Any]:
    """Random weights, large enough that rows of logits are far from uniform."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if "scale" in jax.tree_util.keystr(path) else leaf * 10,
        init_params(CONFIG, jax.random.key(seed)),
    )


PARAMS, OTHER_PARAMS = draw_params(0), draw_params(1)
LORA = jax.tree.map(lambda leaf: leaf + 0.1, init_lora(CONFIG, SPEC, jax.random.key(2)))
BATCH, LENGTH = 4, 6

# Row by row: unlike prompts, and completions that end early.
SOLVER_PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [12, 13]]
TEACHER_PROMPTS = [[14, 15], [16, 17, 18, 19, 20, 21], [22], [3, 23, 3, 23]]
COMPLETIONS = [[5, 9, 2, 7, 1, 0], [11, 4, 1], [20, 20, 3, 8, 1], [6, 1]]


def join(prompts: Sequence[list[int]], width: int) -> tuple[jax.Array, jax.Array]:
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, (prompt, completion) in enumerate(zip(prompts, COMPLETIONS, strict=True)):
        both = [*prompt, *completion]
        tokens[row, : len(both)] = both
    return jnp.asarray(tokens), jnp.array([len(p) for p in prompts], jnp.int32)


def make_batch(
    teacher_prompts: Sequence[list[int]] = TEACHER_PROMPTS, teacher_width: int = 12
) -> Batch:
    tokens = np.zeros((BATCH, LENGTH), np.int32)
    for row, completion in enumerate(COMPLETIONS):
        tokens[row, : len(completion)] = completion
    lengths = np.array([len(completion) for completion in COMPLETIONS])
    return Batch(
        *join(SOLVER_PROMPTS, 12),
        *join(teacher_prompts, teacher_width),
        jnp.asarray(tokens),
        jnp.asarray(np.arange(LENGTH)[None] < lengths[:, None]),
        jnp.zeros((BATCH, LENGTH), jnp.float32),
        jnp.array([1.0, -1.0, 0.5, 0.0], jnp.float32),
    )  # pyright: ignore[reportCallIssue]


def change(batch: Batch, **fields: jax.Array) -> Batch:
    return batch.replace(**fields)  # pyright: ignore[reportAttributeAccessIssue]


def teacher_config(kind: str) -> TeacherConfig:
    return TeacherConfig(kind=kind, ema_decay=0.75)


def recording_sgd() -> optax.GradientTransformation:
    """Goes down the gradient, and keeps it as its state."""

    def update(gradient: Any, _state: Any, _params: Any = None) -> Any:
        return jax.tree.map(lambda leaf: -0.01 * leaf, gradient), gradient

    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), update
    )


OPTIMIZER = recording_sgd()


@functools.cache
def updater(
    *, teacher: str = "initial", distils: bool = True, micro_batches: int = 1
) -> Callable[..., tuple[TrainState, dict[str, jax.Array], TokenScores]]:
    return make_update(
        MODEL,
        OPTIMIZER,
        OBJECTIVE,
        teacher_config(teacher),
        distils=distils,
        micro_batches=micro_batches,
    )


def copy(tree: Any) -> Any:
    """The state is donated, so each one needs arrays of its own."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def make_state(trainable: dict[str, Any] | None = None, teacher: Any = None) -> TrainState:
    trainable = copy({"params": PARAMS} if trainable is None else trainable)
    opt_state = OPTIMIZER.init(trainable)
    return TrainState(jnp.int32(0), trainable, copy(teacher or {}), opt_state)  # pyright: ignore[reportCallIssue]


def gradient_of(batch: Batch, state: TrainState | None = None, **options: Any) -> Any:
    """Returns (gradient, loss) of one step from `state`."""
    state = make_state() if state is None else state
    new, metrics, _ = updater(**options)(state, PARAMS, batch)
    return new.opt_state, float(metrics["loss"])


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_close(actual: Any, expected: Any, relative: float) -> None:
    """Within `relative` of the largest entry of each leaf."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = float(np.abs(np.asarray(b)).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * scale)


def differs(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


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


@functools.cache
def scorer() -> Callable[..., TokenScores]:
    return jax.jit(
        lambda solver, teacher, batch: distillation_scores(
            MODEL, solver, teacher, batch, OBJECTIVE
        )[1]
    )


# --- What is scored ------------------------------------------------------------------------


def test_equal_weights_and_prompts_diverge_nowhere():
    # As two arguments, and in two shapes, the passes cannot become one.
    batch = make_batch(SOLVER_PROMPTS, teacher_width=24)
    scores = scorer()({"params": PARAMS}, {"params": copy(PARAMS)}, batch)
    mask = np.asarray(batch.mask)
    assert np.abs(np.asarray(scores.divergence))[mask].max() <= 1e-6
    # First order in the rounding of the logits, where the divergence is second order.
    assert np.abs(np.asarray(scores.advantage))[mask].max() <= 2e-5
    away = scorer()({"params": PARAMS}, {"params": OTHER_PARAMS}, batch)
    assert np.asarray(away.divergence)[mask].min() > 1e-3


def test_both_roles_score_the_same_tokens_at_their_own_offsets():
    batch = make_batch(teacher_width=24)
    solver, teacher = {"params": PARAMS}, {"params": OTHER_PARAMS}
    scores = scorer()(solver, teacher, batch)
    expected_solver = plain_logprobs(solver, SOLVER_PROMPTS)
    expected_teacher = plain_logprobs(teacher, TEACHER_PROMPTS)
    mask = np.asarray(batch.mask)
    for found, expected in (
        (scores.solver_logprobs, expected_solver),
        (scores.teacher_logprobs, expected_teacher),
        (scores.advantage, expected_teacher - expected_solver),
    ):
        np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], atol=2e-5, rtol=0)


def test_metrics_are_means_over_the_tokens_that_count():
    batch = make_batch()
    state, metrics, scores = updater()(make_state(), PARAMS, batch)
    mask = np.asarray(batch.mask)
    assert int(metrics["tokens_in_loss"]) == mask.sum() == 16
    for name, values in (
        ("loss", scores.divergence),
        ("advantage_mean", scores.advantage),
        ("advantage_abs_mean", np.abs(scores.advantage)),
        ("solver_logprob_mean", scores.solver_logprobs),
    ):
        assert float(metrics[name]) == pytest.approx(np.asarray(values)[mask].mean(), rel=1e-5)
    squares = [np.square(leaf).sum() for leaf in jax.tree.leaves(state.opt_state)]
    norm = float(np.sqrt(sum(squares)))
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5) and norm > 0
    assert int(state.step) == 1


# --- What does not count -------------------------------------------------------------------


@pytest.mark.parametrize("distils", [True, False])
def test_masked_tokens_leave_the_weights_bit_for_bit(distils):
    batch, step = make_batch(), updater(distils=distils)
    mask = np.asarray(batch.mask).copy()
    mask[2] = False  # a whole rollout
    mask[0, 4:] = False  # and the end of another
    batch = change(batch, mask=jnp.asarray(mask))

    def weights(row: int, t: int) -> Any:
        """After one step with completion token t of one row changed, wherever it stands."""
        tokens, fields = np.asarray(batch.tokens).copy(), {}
        tokens[row, t] = 15
        for role in ("solver", "teacher"):
            whole = np.asarray(getattr(batch, f"{role}_tokens")).copy()
            whole[row, int(getattr(batch, f"{role}_starts")[row]) + t] = 15
            fields[f"{role}_tokens"] = jnp.asarray(whole)
        changed = change(batch, tokens=jnp.asarray(tokens), **fields)
        return step(make_state(), PARAMS, changed)[0].trainable

    unchanged = step(make_state(), PARAMS, batch)[0].trainable
    assert differs(unchanged, {"params": PARAMS})
    assert_same_bits(weights(2, 1), unchanged)
    assert_same_bits(weights(0, 4), unchanged)
    assert differs(weights(0, 2), unchanged)  # one that counts, and is read by the next


@pytest.mark.parametrize("distils", [True, False])
def test_an_all_masked_batch_is_a_finite_step_that_changes_nothing(distils):
    batch = change(make_batch(), mask=jnp.zeros((BATCH, LENGTH), bool))
    new, metrics, _ = updater(distils=distils)(make_state(), PARAMS, batch)
    assert {name: float(value) for name, value in metrics.items()} == dict.fromkeys(metrics, 0)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(new.opt_state))
    assert_same_bits(new.trainable, {"params": PARAMS})
    assert int(new.step) == 1


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_change_nothing_but_memory(parts):
    # Rows have 6, 3, 5 and 2 tokens: a mean of the parts' means would be another number.
    whole, loss = gradient_of(make_batch())
    cut, cut_loss = gradient_of(make_batch(), micro_batches=parts)
    assert cut_loss == pytest.approx(loss, rel=1e-6) and loss != 0
    assert_close(cut, whole, relative=1e-6)


def test_scores_of_micro_batches_keep_the_order_of_rows():
    scores = [
        updater(micro_batches=parts)(make_state(), PARAMS, make_batch())[2] for parts in (1, 4)
    ]
    assert_close(scores[1].solver_logprobs, scores[0].solver_logprobs, relative=1e-6)


# --- Teachers ------------------------------------------------------------------------------


def test_the_initial_teacher_is_the_base_and_neither_moves():
    base, trainable = copy(PARAMS), {"params": OTHER_PARAMS}
    batch, step = make_batch(), updater()
    state = make_state(trainable)
    for _ in range(2):
        state, _, scores = step(state, base, batch)
        expected = plain_logprobs({"params": PARAMS}, TEACHER_PROMPTS)
        mask = np.asarray(batch.mask)
        np.testing.assert_allclose(
            np.asarray(scores.teacher_logprobs)[mask], expected[mask], atol=2e-5, rtol=0
        )
    assert_same_bits(base, PARAMS)
    assert state.teacher == {}
    assert differs(state.trainable, trainable)


def test_no_gradient_reaches_the_teacher():
    def total(solver: Any, teacher: Any) -> jax.Array:
        loss, scores = distillation_scores(MODEL, solver, teacher, make_batch(), OBJECTIVE)
        return loss + sum(jnp.sum(score) for score in scores)

    for_solver, for_teacher = jax.jit(jax.grad(total, argnums=(0, 1)))(
        {"params": PARAMS}, {"params": OTHER_PARAMS}
    )
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(for_teacher))
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(for_solver))


def test_the_averaged_teacher_follows_by_its_formula():
    batch, step = make_batch(), updater(teacher="ema")
    state = make_state(teacher={"params": OTHER_PARAMS})
    state, _, scores = step(state, PARAMS, batch)
    mask = np.asarray(batch.mask)
    expected = plain_logprobs({"params": OTHER_PARAMS}, TEACHER_PROMPTS)  # before it follows
    np.testing.assert_allclose(
        np.asarray(scores.teacher_logprobs)[mask], expected[mask], atol=2e-5, rtol=0
    )
    mixed = jax.tree.map(
        lambda old, new: 0.75 * np.asarray(old) + 0.25 * np.asarray(new),
        {"params": OTHER_PARAMS},
        state.trainable,
    )
    assert_close(state.teacher, mixed, relative=1e-6)
    _, _, scores = step(state, PARAMS, batch)
    expected = plain_logprobs(mixed, TEACHER_PROMPTS)
    np.testing.assert_allclose(
        np.asarray(scores.teacher_logprobs)[mask], expected[mask], atol=2e-5, rtol=0
    )


def test_follow_by_hand():
    teacher, trainable = {"lora": jnp.array([1.0, 2.0])}, {"lora": jnp.array([5.0, -2.0])}
    followed = follow(teacher, trainable, teacher_config("ema"))
    assert followed["lora"].tolist() == [2.0, 1.0]
    for kind in ("initial", "live"):
        assert follow({}, trainable, teacher_config(kind)) == {}


def test_the_live_teacher_is_the_solver_of_the_moment_as_a_constant():
    trainable = {"params": OTHER_PARAMS}
    live, loss = gradient_of(make_batch(), make_state(trainable), teacher="live")
    constant, constant_loss = gradient_of(
        make_batch(), make_state(trainable, teacher=trainable), teacher="ema"
    )
    assert loss == pytest.approx(constant_loss, rel=1e-6) and loss > 0
    assert_close(live, constant, relative=1e-6)
    same_prompts = make_batch(SOLVER_PROMPTS)
    _, nothing = gradient_of(same_prompts, make_state(trainable), teacher="live")
    assert abs(nothing) <= 1e-6


# --- What is trained -----------------------------------------------------------------------


def test_an_adapter_trains_alone():
    base, batch = copy(PARAMS), make_batch()
    new, _, scores = updater()(make_state({"lora": LORA}), base, batch)
    assert_same_bits(base, PARAMS)
    assert new.trainable.keys() == {"lora"}
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), new.trainable["lora"], LORA)
    assert all(jax.tree.leaves(moved))
    mask = np.asarray(batch.mask)
    solver = plain_logprobs({"params": PARAMS, "lora": LORA}, SOLVER_PROMPTS)
    np.testing.assert_allclose(
        np.asarray(scores.solver_logprobs)[mask], solver[mask], atol=2e-5, rtol=0
    )
    teacher = plain_logprobs({"params": PARAMS}, TEACHER_PROMPTS)  # without its adapter
    np.testing.assert_allclose(
        np.asarray(scores.teacher_logprobs)[mask], teacher[mask], atol=2e-5, rtol=0
    )


def test_a_step_towards_the_teacher_lowers_the_divergence():
    batch, step = make_batch(), updater()
    state, before, _ = step(make_state(), OTHER_PARAMS, batch)
    _, after, _ = step(state, OTHER_PARAMS, batch)
    assert 0 < float(after["loss"]) < float(before["loss"])


def test_policy_gradient_raises_what_was_rewarded_and_lowers_what_was_not():
    batch = make_batch()
    old = plain_logprobs({"params": PARAMS}, SOLVER_PROMPTS)
    batch = change(batch, logprobs=jnp.asarray(old))
    state, metrics, scores = updater(distils=False)(make_state(), PARAMS, batch)
    new = plain_logprobs(state.trainable, SOLVER_PROMPTS)
    gained = (new - old).sum(axis=1)
    assert gained[0] > 0 > gained[1] and gained[2] > 0  # advantages 1, -1, 0.5
    # On policy the ratio is 1, so the loss is minus the mean advantage over tokens.
    expected = -(6 * 1.0 - 3 * 1.0 + 5 * 0.5) / 16
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)
    assert np.asarray(scores.advantage)[:, 0].tolist() == [1.0, -1.0, 0.5, 0.0]


def test_policy_gradient_without_a_difference_in_reward_changes_nothing():
    batch = change(make_batch(), advantages=jnp.zeros(BATCH))
    state, metrics, _ = updater(distils=False)(make_state(), PARAMS, batch)
    assert float(metrics["gradient_norm"]) == 0.0
    assert_same_bits(state.trainable, {"params": PARAMS})
