# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: what gets a gradient, and what stays as it is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import assert_same_bits
from support.updates import (
    ADVANTAGES,
    ALL,
    BATCH,
    COMPLETIONS,
    CONFIG,
    DIVERGENCE,
    LORA,
    MODEL,
    OPTIMIZER,
    OTHER_PARAMS,
    PARAMS,
    SOLVER_PROMPTS,
    SPEC,
    SURROGATE,
    TEACHER_PROMPTS,
    TEACHERS,
    Part,
    copy,
    gradient_of,
    join,
    make_part,
    make_state,
    plain_logits,
    plain_logprobs,
    run_step,
    spread,
    teacher_states,
)

from stepalign_jax.model.qwen3 import Qwen3, output_head
from stepalign_jax.training.programs import make_programs, score_teacher, update
from stepalign_jax.training.scoring import hidden_states
from stepalign_jax.training.state import follow
from stepalign_jax.training.step import Method, distillation_loss


def assert_close(actual: Any, expected: Any, relative: float) -> None:
    """Within `relative` of the largest entry of each leaf."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = float(np.abs(np.asarray(b)).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * scale)


def relative_error(actual: Any, expected: Any) -> float:
    """The norm of the difference by the norm of what is expected, over all leaves."""
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    error = sum(np.square(np.asarray(a, np.float64) - b).sum() for a, b in pairs)
    return float(np.sqrt(error / sum(np.square(b).sum() for _, b in pairs)))


def teacher_logprobs(scores: Any) -> np.ndarray:
    """[B, T]; the advantage is the difference of both sides'."""
    return spread(scores.advantage + scores.solver_logprobs)


def differs(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


def test_metrics_are_means_over_the_tokens_that_count():
    state, metrics, [scores] = run_step(make_state(), PARAMS, make_part())
    assert int(metrics["tokens_in_loss"]) == ALL.sum() == 16
    for name, values in (
        ("loss", scores.loss),
        ("advantage_mean", scores.advantage),
        ("advantage_abs_mean", np.abs(scores.advantage)),
        ("solver_logprob_mean", scores.solver_logprobs),
    ):
        assert float(metrics[name]) == pytest.approx(spread(values)[ALL].mean(), rel=1e-5)
    squares = [np.square(leaf).sum() for leaf in jax.tree.leaves(state.opt_state)]
    norm = float(np.sqrt(sum(squares)))
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5) and norm > 0
    assert int(state.step) == 1


# --- What does not count -------------------------------------------------------------------


@pytest.mark.parametrize("objective", [DIVERGENCE, SURROGATE])
def test_tokens_that_do_not_count_leave_the_weights_bit_for_bit(objective):
    counts = ALL.copy()
    counts[2] = False  # a whole rollout
    counts[0, 4:] = False  # and the end of another
    part = make_part(counts=counts)
    starts = {"solver": SOLVER_PROMPTS, "teacher": TEACHER_PROMPTS}

    def weights(row: int, t: int) -> Any:
        """After one step with completion token t of one row changed, wherever it stands."""
        picked = np.asarray(part.targets.tokens).copy()
        place = counts[:row].sum() + t
        if counts[row, t]:
            picked[0, place] = 15
        roles = {}
        for role, prompts in starts.items():
            read = getattr(part, role)
            whole = np.asarray(read.tokens).copy()
            whole[row, len(prompts[row]) + t] = 15
            roles[role] = read.replace(tokens=jnp.asarray(whole))
        changed = Part(**roles, targets=part.targets.replace(tokens=jnp.asarray(picked)))  # pyright: ignore[reportAttributeAccessIssue]
        return run_step(make_state(), PARAMS, changed, objective=objective)[0].trainable

    unchanged = run_step(make_state(), PARAMS, part, objective=objective)[0].trainable
    assert differs(unchanged, {"params": PARAMS})
    assert_same_bits(weights(2, 1), unchanged)
    assert_same_bits(weights(0, 4), unchanged)
    assert differs(weights(0, 2), unchanged)  # one that counts, and is read by the next


@pytest.mark.parametrize("objective", [DIVERGENCE, SURROGATE])
def test_a_step_without_a_token_is_finite_and_changes_nothing(objective):
    part = make_part(counts=np.zeros_like(ALL))
    new, metrics, _ = run_step(make_state(), PARAMS, part, objective=objective)
    assert {name: float(value) for name, value in metrics.items()} == dict.fromkeys(metrics, 0)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(new.opt_state))
    assert_same_bits(new.trainable, {"params": PARAMS})
    assert int(new.step) == 1


@pytest.mark.parametrize(
    "objective", [DIVERGENCE, pytest.param(SURROGATE, marks=pytest.mark.long)]
)
def test_filling_up_the_packed_tokens_changes_nothing(objective):
    gradients = [
        # As many places as there are tokens; a tile of eight more, and a part of one.
        gradient_of(make_part(num_packed=n), objective=objective)[0]
        for n in (16, 28)
    ]
    assert_close(gradients[1], gradients[0], relative=1e-6)


@pytest.mark.parametrize("rows", [[(0, 1), (2, 3)], [(3, 0), (1, 2)], [(1,), (0,), (3,), (2,)]])
def test_parts_change_nothing_but_memory(rows):
    # Rows have 6, 3, 5 and 2 tokens: a mean of the parts' means would be another number.
    whole, loss = gradient_of(make_part())
    cut, cut_loss = gradient_of(*(make_part(rows=some) for some in rows))
    assert cut_loss == pytest.approx(loss, rel=1e-6) and loss != 0
    assert_close(cut, whole, relative=1e-6)


@pytest.mark.long
def test_each_part_has_the_scores_of_its_own_rows():
    _, _, [whole] = run_step(make_state(), PARAMS, make_part())
    _, _, parts = run_step(make_state(), PARAMS, make_part(rows=(2, 3)), make_part(rows=(0, 1)))
    expected = spread(whole.solver_logprobs)
    np.testing.assert_allclose(parts[0].solver_logprobs[:7], expected[2:][ALL[2:]], rtol=1e-5)
    np.testing.assert_allclose(parts[1].solver_logprobs[:9], expected[:2][ALL[:2]], rtol=1e-5)


# --- Weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [DIVERGENCE, SURROGATE])
def test_weights_scale_the_gradient_of_each_token(objective):
    """Half the weight on every token is half of the gradient; metrics stay plain means."""
    whole, loss = gradient_of(make_part(), objective=objective)
    half, half_loss = gradient_of(make_part(weights=0.5 * ALL), objective=objective)
    assert half_loss == loss / 2 and loss != 0
    assert_close(half, jax.tree.map(lambda leaf: leaf / 2, whole), relative=1e-6)


@pytest.mark.parametrize("objective", [DIVERGENCE, SURROGATE])
def test_a_token_of_weight_zero_counts_in_the_denominator_alone(objective):
    gate = np.where(np.arange(BATCH)[:, None] < 2, ALL, False)
    gated = make_part(weights=gate.astype(np.float32))
    found, loss = gradient_of(gated, objective=objective)
    alone, alone_loss = gradient_of(make_part(counts=gate), objective=objective)
    share = gate.sum() / ALL.sum()
    assert loss == pytest.approx(alone_loss * share, rel=1e-6)
    assert_close(found, jax.tree.map(lambda leaf: leaf * share, alone), relative=1e-6)
    _, metrics, _ = run_step(make_state(), PARAMS, gated, objective=objective)
    assert int(metrics["tokens_in_loss"]) == ALL.sum()


# --- Precision -----------------------------------------------------------------------------


@pytest.mark.long
def test_float16_gradients_do_not_fall_below_what_float16_can_hold():
    # As in a step of many tokens: the loss of each is a small share of the mean.
    def gradients_of_shares(dtype: Any, *shares: float) -> list[Any]:
        model = Qwen3(CONFIG, dtype, lora=SPEC)

        @jax.jit
        @jax.grad
        def gradients(trainable: Any, share: float) -> jax.Array:
            part = make_part()
            solver, teacher = {"params": trainable["params"]}, {"params": PARAMS}
            own, other = hidden_states(model, solver, part.solver), output_head(PARAMS)
            taught, head = teacher_states(model, teacher, part), output_head(solver["params"])
            total, _ = distillation_loss(DIVERGENCE, own, taught, head, other, part.targets)
            return total * share

        def of_all(share: float) -> Any:
            found = gradients({"params": OTHER_PARAMS}, share)
            return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) / share, found)

        return [of_all(share) for share in shares]

    [exact] = gradients_of_shares(jnp.float32, 1.0)
    whole, shrunk = gradients_of_shares(jnp.float16, 1.0, 2.0**-24)
    assert relative_error(whole, exact) < 5e-3
    assert relative_error(shrunk, exact) > 0.1
    state = make_state({"params": OTHER_PARAMS})
    ours, _ = gradient_of(make_part(), state=state, dtype=jnp.float16)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(np.float32)}
    assert relative_error(jax.tree.map(lambda leaf: leaf * 16, ours), exact) < 5e-3


# --- Teachers ------------------------------------------------------------------------------


def test_the_initial_teacher_is_the_base_and_neither_moves():
    base, trainable = copy(PARAMS), {"params": OTHER_PARAMS}
    state = make_state(trainable)
    for _ in range(2):
        state, _, [scores] = run_step(state, base, make_part())
        expected = plain_logprobs({"params": PARAMS}, TEACHER_PROMPTS)
        np.testing.assert_allclose(teacher_logprobs(scores), expected, atol=2e-5, rtol=0)
    assert_same_bits(base, PARAMS)
    assert state.teacher == {}
    assert differs(state.trainable, trainable)


def test_no_gradient_reaches_the_teacher():
    def total(solver: Any, teacher: Any) -> jax.Array:
        part = make_part()
        sides = hidden_states(MODEL, solver, part.solver), teacher_states(MODEL, teacher, part)
        heads = (output_head(side["params"]) for side in (solver, teacher))
        return distillation_loss(DIVERGENCE, *sides, *heads, part.targets)[0]

    for_solver, for_teacher = jax.jit(jax.grad(total, argnums=(0, 1)))(
        {"params": PARAMS}, {"params": OTHER_PARAMS}
    )
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(for_teacher))
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(for_solver))


def test_the_averaged_teacher_follows_by_its_formula():
    state = make_state(teacher={"params": OTHER_PARAMS})
    state, _, [scores] = run_step(state, PARAMS, make_part(), teacher="ema")
    expected = plain_logprobs({"params": OTHER_PARAMS}, TEACHER_PROMPTS)  # before it follows
    np.testing.assert_allclose(teacher_logprobs(scores), expected, atol=2e-5, rtol=0)
    mixed = jax.tree.map(
        lambda old, new: 0.75 * np.asarray(old) + 0.25 * np.asarray(new),
        {"params": OTHER_PARAMS},
        state.trainable,
    )
    assert_close(state.teacher, mixed, relative=1e-6)
    _, _, [scores] = run_step(state, PARAMS, make_part(), teacher="ema")
    expected = plain_logprobs(mixed, TEACHER_PROMPTS)
    np.testing.assert_allclose(teacher_logprobs(scores), expected, atol=2e-5, rtol=0)


def test_follow_by_hand():
    teacher, trainable = {"lora": jnp.array([1.0, 2.0])}, {"lora": jnp.array([5.0, -2.0])}
    followed = follow(teacher, trainable, TEACHERS["ema"])
    assert followed["lora"].tolist() == [2.0, 1.0]
    for kind in ("initial", "live"):
        assert follow({}, trainable, TEACHERS[kind]) == {}


def test_the_live_teacher_is_the_solver_of_the_moment_as_a_constant():
    trainable = {"params": OTHER_PARAMS}
    live, loss = gradient_of(make_part(), state=make_state(trainable), teacher="live")
    constant, constant_loss = gradient_of(
        make_part(), state=make_state(trainable, teacher=trainable), teacher="ema"
    )
    assert loss == pytest.approx(constant_loss, rel=1e-6) and loss > 0
    assert_close(live, constant, relative=1e-6)
    same_prompts = make_part(SOLVER_PROMPTS)
    _, nothing = gradient_of(same_prompts, state=make_state(trainable), teacher="live")
    assert abs(nothing) <= 1e-6


# --- What is trained -----------------------------------------------------------------------


def test_an_adapter_trains_alone():
    base = copy(PARAMS)
    new, _, [scores] = run_step(make_state({"lora": LORA}), base, make_part())
    assert_same_bits(base, PARAMS)
    assert new.trainable.keys() == {"lora"}
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), new.trainable["lora"], LORA)
    assert all(jax.tree.leaves(moved))
    solver = plain_logprobs({"params": PARAMS, "lora": LORA}, SOLVER_PROMPTS)
    np.testing.assert_allclose(spread(scores.solver_logprobs), solver, atol=2e-5, rtol=0)
    teacher = plain_logprobs({"params": PARAMS}, TEACHER_PROMPTS)  # without its adapter
    np.testing.assert_allclose(teacher_logprobs(scores), teacher, atol=2e-5, rtol=0)


def test_a_step_towards_the_teacher_lowers_the_divergence():
    state, before, _ = run_step(make_state(), OTHER_PARAMS, make_part())
    _, after, _ = run_step(state, OTHER_PARAMS, make_part())
    assert 0 < float(after["loss"]) < float(before["loss"])


def test_policy_gradient_raises_what_was_rewarded_and_lowers_what_was_not():
    old = plain_logprobs({"params": PARAMS}, SOLVER_PROMPTS)
    part = make_part()
    state, metrics, [scores] = run_step(make_state(), PARAMS, part, objective=SURROGATE)
    new = plain_logprobs(state.trainable, SOLVER_PROMPTS)
    gained = (new - old).sum(axis=1)
    assert gained[0] > 0 > gained[1] and gained[2] > 0  # advantages 1, -1, 0.5
    # On policy the ratio is 1, so the loss is minus the mean advantage over tokens.
    expected = -(6 * 1.0 - 3 * 1.0 + 5 * 0.5) / 16
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)
    assert spread(scores.advantage)[:, 0].tolist() == [1.0, -1.0, 0.5, 0.0]


@pytest.mark.long
def test_policy_gradient_is_that_of_the_distribution_sampled_from():
    """-A times the gradient of log softmax(logits / 1.1); scores stay at temperature 1."""
    tokens = join(SOLVER_PROMPTS, range(BATCH), 16)

    def loss(params: Any) -> jax.Array:
        total = jnp.float32(0.0)
        for row, (prompt, completion) in enumerate(
            zip(SOLVER_PROMPTS, COMPLETIONS, strict=True)
        ):
            logits = plain_logits({"params": params}, tokens[row])[len(prompt) - 1 :]
            logprobs = jax.nn.log_softmax(logits / SURROGATE.loss_temperature)
            own = logprobs[jnp.arange(len(completion)), jnp.array(completion)]
            total -= ADVANTAGES[row] * own.sum()
        return total / ALL.sum()

    found, _ = gradient_of(make_part(), objective=SURROGATE)
    assert_close(found, {"params": jax.grad(loss)(PARAMS)}, relative=1e-4)
    _, _, [scores] = run_step(make_state(), PARAMS, make_part(), objective=SURROGATE)
    expected = plain_logprobs({"params": PARAMS}, SOLVER_PROMPTS)
    np.testing.assert_allclose(spread(scores.solver_logprobs), expected, atol=2e-5, rtol=0)


def test_policy_gradient_without_a_difference_in_reward_changes_nothing():
    part = make_part(advantages=[0.0] * BATCH)
    state, metrics, _ = run_step(make_state(), PARAMS, part, objective=SURROGATE)
    assert float(metrics["gradient_norm"]) == 0.0
    assert_same_bits(state.trainable, {"params": PARAMS})


# --- Compilations --------------------------------------------------------------------------


@pytest.mark.long
def test_a_shape_compiles_once_however_often_it_comes():
    # Programs of their own: the others of this file have met other shapes.
    method = Method(MODEL, OPTIMIZER, DIVERGENCE, TEACHERS["ema"])
    programs = make_programs(method, shardings=None)
    state = make_state(teacher={"params": OTHER_PARAMS})

    def step(parts: list[Part]) -> None:
        nonlocal state
        hidden = score_teacher(programs, state, PARAMS, [part.teacher for part in parts])
        state, _, _ = update(programs, state, PARAMS, parts, hidden)  # pyright: ignore[reportArgumentType]

    def num_compiled() -> list[int]:
        functions = (programs.teacher_hidden, programs.whole, programs.accumulate)
        return [function._cache_size() for function in (*functions, programs.finish)]  # pyright: ignore

    for rows in [(0, 1), (2, 3), (0, 1)] * 3:
        for count in (1, 2):
            step([make_part(rows=rows)] * count)
    assert num_compiled() == [1, 1, 1, 1]
    # A teacher with longer prompts, as longer critiques give: it alone is compiled again.
    for count in (1, 2):
        step([make_part(rows=(0, 1), teacher_width=16)] * count)
    assert num_compiled() == [2, 1, 1, 1]
