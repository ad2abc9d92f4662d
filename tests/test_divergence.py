# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Divergences against float64 NumPy, and the promises that the tiled form makes."""

import functools
from collections.abc import Callable

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.objectives import divergence as dv

N, D, V = 7, 5, 13  # N is no multiple of the tile below, and V of no vector width
SETTINGS = {"jsd_beta": 0.3, "loss_temperature": 1.1, "token_tile": 3}


def _inputs(num_tokens: int = N, vocab: int = V, width: int = D) -> dict:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "solver_hidden": normal(num_tokens, width),
        "teacher_hidden": normal(num_tokens, width),
        "solver_head": normal(vocab, width),
        "teacher_head": normal(vocab, width),
        "tokens": rng.integers(0, vocab, num_tokens).astype(np.int32),
    }


_tiled = jax.jit(  # an eager scan would compile piece by piece
    dv.tiled_divergence,
    static_argnames=("divergence", "jsd_beta", "loss_temperature", "token_tile"),
)


def _scores(inputs: dict, name: str = "forward_kl", **settings) -> dv.TokenScores:
    return _tiled(**inputs, divergence=name, **{**SETTINGS, **settings})


def _numpy_log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _numpy_logprobs(hidden: np.ndarray, head: np.ndarray, temperature: float) -> np.ndarray:
    logits = hidden.astype(np.float64) @ head.astype(np.float64).T
    return _numpy_log_softmax(logits / temperature)


def _numpy_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (np.exp(p) * (p - q)).sum(-1)


def _numpy_divergence(
    name: str, solver: np.ndarray, teacher: np.ndarray, tokens: np.ndarray, frozen: np.ndarray
) -> np.ndarray:
    """[N] float64. `frozen` are the solver's log-probabilities under stop_gradient."""
    rows, beta = np.arange(len(tokens)), SETTINGS["jsd_beta"]
    if name == "sampled_token":
        advantage = teacher[rows, tokens] - frozen[rows, tokens]
        return -advantage * solver[rows, tokens]
    if name == "jsd":
        mixture = np.log((1 - beta) * np.exp(solver) + beta * np.exp(teacher))
        return beta * _numpy_kl(teacher, mixture) + (1 - beta) * _numpy_kl(solver, mixture)
    if name == "reverse_kl":
        return _numpy_kl(solver, teacher)
    return _numpy_kl(teacher, solver)


def _numpy_pair(inputs: dict, temperature: float = SETTINGS["loss_temperature"]):
    """Log-probabilities of solver and teacher, [N, V] float64."""
    return (
        _numpy_logprobs(inputs["solver_hidden"], inputs["solver_head"], temperature),
        _numpy_logprobs(inputs["teacher_hidden"], inputs["teacher_head"], temperature),
    )


def _central_differences(function, array: np.ndarray, size: float = 1e-5) -> np.ndarray:
    gradient = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        moved = np.zeros(array.shape)
        moved[index] = size
        gradient[index] = (function(array + moved) - function(array - moved)) / (2 * size)
    return gradient


@pytest.mark.parametrize("name", dv.DIVERGENCES)
def test_values_and_gradients_are_the_float64_ones(name):
    inputs = _inputs(num_tokens=4, vocab=7, width=3)
    weights = np.array([0.5, -1.0, 2.0, 1.5])
    solver, teacher = _numpy_pair(inputs)

    def numpy_loss(changed: dict) -> float:
        pair = _numpy_pair({**inputs, **changed})
        return float(weights @ _numpy_divergence(name, *pair, inputs["tokens"], solver))

    def loss(arrays: dict) -> tuple[jax.Array, jax.Array]:
        values = _scores({**inputs, **arrays}, name).divergence
        return jnp.sum(values * weights), values

    trained = {key: inputs[key] for key in ("solver_hidden", "solver_head")}
    (_, values), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)
    expected = _numpy_divergence(name, solver, teacher, inputs["tokens"], solver)
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(values, expected, rtol=2e-5)
    for key, array in trained.items():
        slope = _central_differences(lambda x, key=key: numpy_loss({key: x}), array)
        assert np.abs(slope).max() > 1e-2
        np.testing.assert_allclose(gradients[key], slope, atol=2e-6, rtol=2e-5)


def test_token_scores_are_at_temperature_one():
    inputs, rows = _inputs(), np.arange(N)
    solver, teacher = _numpy_pair(inputs, temperature=1.0)
    picked_solver, picked_teacher = (
        solver[rows, inputs["tokens"]],
        teacher[rows, inputs["tokens"]],
    )
    scores = _scores(inputs, loss_temperature=3.0)
    np.testing.assert_allclose(scores.solver_logprobs, picked_solver, rtol=1e-5)
    np.testing.assert_allclose(scores.teacher_logprobs, picked_teacher, rtol=1e-5)
    np.testing.assert_allclose(scores.advantage, picked_teacher - picked_solver, atol=5e-6)
    assert all(value.dtype == jnp.float32 and value.shape == (N,) for value in scores)


def test_tiled_logprobs_value_and_gradient():
    inputs = _inputs()
    hidden, head, tokens = (inputs[k] for k in ("solver_hidden", "solver_head", "tokens"))

    def loss(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return dv.tiled_logprobs(hidden, head, tokens, temperature=0.7, token_tile=3).sum()

    value, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head)
    logprobs = _numpy_logprobs(hidden, head, 0.7)
    logit_slopes = (np.eye(V)[tokens] - np.exp(logprobs)) / 0.7
    np.testing.assert_allclose(value, logprobs[np.arange(N), tokens].sum(), rtol=1e-5)
    np.testing.assert_allclose(slopes[0], logit_slopes @ head, atol=2e-6, rtol=2e-5)
    np.testing.assert_allclose(slopes[1], logit_slopes.T @ hidden, atol=2e-6, rtol=2e-5)


def test_hand_worked_values():
    solver, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.75, 0.25]))
    log = np.log
    from_teacher = 0.75 * log(1.2) + 0.25 * log(0.25 / 0.375)  # m = 0.625, 0.375
    from_solver = 0.5 * log(0.8) + 0.5 * log(0.5 / 0.375)
    forward, reverse = dv.forward_kl(solver, teacher), dv.reverse_kl(solver, teacher)
    np.testing.assert_allclose(forward, 0.75 * log(1.5) + 0.25 * log(0.5), rtol=1e-5)
    np.testing.assert_allclose(reverse, 0.5 * log(2 / 3) + 0.5 * log(2.0), rtol=1e-5)
    mixed = dv.jsd(solver, teacher, beta=0.5)
    np.testing.assert_allclose(mixed, 0.5 * (from_teacher + from_solver), rtol=1e-5)
    sampled = dv.sampled_token(solver, teacher, jnp.array(0))
    np.testing.assert_allclose(sampled, -log(1.5) * log(0.5), rtol=1e-5)


def test_jsd_limits_are_the_two_kl():
    rng = np.random.default_rng(1)
    solver, teacher = _numpy_log_softmax(rng.normal(size=(2, 4, 9)))
    jsd = jax.jit(dv.jsd, static_argnames="beta")
    low = jsd(solver, teacher, beta=1e-3) / 1e-3
    high = jsd(solver, teacher, beta=1 - 1e-3) / 1e-3
    np.testing.assert_allclose(low, _numpy_kl(teacher, solver), rtol=0.02)
    np.testing.assert_allclose(high, _numpy_kl(solver, teacher), rtol=0.02)


def test_jsd_is_finite_at_far_apart_logprobs():
    solver = jax.nn.log_softmax(jnp.array([300.0, 0.0, -300.0]))
    teacher = jax.nn.log_softmax(jnp.array([-300.0, 0.0, 300.0]))
    step = jax.jit(jax.value_and_grad(functools.partial(dv.jsd, beta=0.5)))
    value, gradient = step(solver, teacher)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)  # disjoint: the entropy of beta
    assert np.isfinite(np.asarray(gradient)).all()


def test_gradient_identities():
    """grad KL(pi || q) = -E_{v ~ pi}[A(v) grad log pi(v)] with A = log q - log pi, which the
    sampled form gives on average; grad KL(q || pi) = -sum_v q(v) grad log pi(v)."""
    logits, other = np.random.default_rng(2).normal(size=(2, 9))
    solver, teacher = _numpy_log_softmax(logits), _numpy_log_softmax(other)
    grad_log_pi = np.eye(9) - np.exp(solver)  # [v, logit]
    reverse = -(np.exp(solver) * (teacher - solver)) @ grad_log_pi
    forward = -np.exp(teacher) @ grad_log_pi

    def gradient(formula: Callable, *tokens: jax.Array) -> jax.Array:
        constant = jnp.asarray(teacher, jnp.float32)
        slope = jax.jit(jax.grad(lambda x: formula(jax.nn.log_softmax(x), constant, *tokens)))
        return slope(jnp.asarray(logits, jnp.float32))

    sampled = jax.vmap(functools.partial(gradient, dv.sampled_token))(jnp.arange(9))
    np.testing.assert_allclose(gradient(dv.reverse_kl), reverse, atol=1e-6)
    np.testing.assert_allclose(np.exp(solver) @ sampled, reverse, atol=1e-6)
    np.testing.assert_allclose(gradient(dv.forward_kl), forward, atol=1e-6)


def _value_and_gradients(name: str, tile: int, hidden: jax.Array, head: jax.Array):
    def loss(hidden: jax.Array, head: jax.Array):
        inputs = {**_inputs(), "solver_hidden": hidden, "solver_head": head}
        settings = {**SETTINGS, "token_tile": tile}
        scores = dv.tiled_divergence(**inputs, divergence=name, **settings)
        return jnp.sum(scores.divergence) + jnp.sum(scores.solver_logprobs), scores

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)


@pytest.mark.parametrize(
    ("name", "tile", "jit"),
    [*((name, 3, True) for name in dv.DIVERGENCES), ("jsd", 1, True), ("jsd", 100, False)],
)
def test_neither_tile_size_nor_jit_changes_anything(name, tile, jit):
    arrays = [jnp.asarray(_inputs()[key]) for key in ("solver_hidden", "solver_head")]
    (_, whole), expected = jax.jit(functools.partial(_value_and_gradients, name, N))(*arrays)
    run = functools.partial(_value_and_gradients, name, tile)
    (_, scores), gradients = (jax.jit(run) if jit else run)(*arrays)
    for ours, reference in zip((*scores, *gradients), (*whole, *expected), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-6, rtol=1e-6)


def _shapes(jaxpr: jax.extend.core.Jaxpr) -> set[tuple[int, ...]]:
    """The shape of every value that a jaxpr, or one inside it, computes."""
    shapes = {
        getattr(out.aval, "shape", ()) for equation in jaxpr.eqns for out in equation.outvars
    }
    for inner in jax.tree.leaves(
        [list(equation.params.values()) for equation in jaxpr.eqns],
        is_leaf=lambda leaf: hasattr(leaf, "eqns"),
    ):
        if hasattr(inner, "eqns"):
            shapes |= _shapes(getattr(inner, "jaxpr", inner))
    return shapes


@pytest.mark.parametrize("name", [*dv.DIVERGENCES, "logprobs"])
def test_no_array_of_all_tokens_by_vocabulary(name):
    num_tokens, vocab, tile = 24, 97, 4
    inputs = _inputs(num_tokens=num_tokens, vocab=vocab)

    def loss(hidden: jax.Array, head: jax.Array, token_tile: int) -> jax.Array:
        if name == "logprobs":
            return dv.tiled_logprobs(
                hidden, head, inputs["tokens"], temperature=1.0, token_tile=token_tile
            ).sum()
        new = {**inputs, "solver_hidden": hidden, "solver_head": head}
        return _scores(new, name, token_tile=token_tile).divergence.sum()

    def largest(token_tile: int) -> int:
        """Tokens whose logits exist at once, from the largest array with a vocabulary axis."""
        step = jax.value_and_grad(functools.partial(loss, token_tile=token_tile), (0, 1))
        jaxpr = jax.make_jaxpr(step)(inputs["solver_hidden"], inputs["solver_head"])
        sizes = [int(np.prod(s)) for s in _shapes(jaxpr.jaxpr) if vocab in s and D not in s]
        return max(sizes) // vocab

    assert largest(tile) == tile
    assert largest(num_tokens) == num_tokens  # the walk does see arrays of [N, V]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, jnp.float32) for name in dv.DIVERGENCES), ("forward_kl", jnp.bfloat16)],
)
def test_equal_hidden_states_give_exactly_zero(name, dtype):
    inputs = _inputs(num_tokens=37, vocab=67, width=33)
    hidden, head = (inputs[k].astype(dtype) for k in ("solver_hidden", "solver_head"))

    def loss(hidden, head, other_hidden, other_head):
        arrays = hidden, other_hidden, head, other_head, inputs["tokens"]
        scores = dv.tiled_divergence(*arrays, divergence=name, **SETTINGS)
        return jnp.sum(scores.divergence), scores

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, scores), gradients = jax.device_get(step(hidden, head, hidden, head))
    assert not scores.divergence.any() and not scores.advantage.any()
    assert not gradients[0].any() and not gradients[1].any()
    # one changed row is seen, and it alone
    changed = hidden * np.where(np.arange(37) == 5, 1.5, 1.0)[:, None].astype(dtype)
    (_, scores), gradients = jax.device_get(step(hidden, head, changed, head))
    assert np.flatnonzero(scores.divergence).tolist() == [5]
    assert np.flatnonzero(gradients[0].any(-1)).tolist() == [5]


@pytest.mark.parametrize("name", ["forward_kl", "sampled_token"])
def test_masked_tokens_get_exactly_zero_gradient(name):
    inputs = _inputs()

    @jax.jit
    @jax.value_and_grad
    def step(hidden: jax.Array, mask: jax.Array) -> jax.Array:
        return dv.masked_mean(
            _scores({**inputs, "solver_hidden": hidden}, name).divergence, mask
        )

    mask = np.array([True, False, True, True, False, False, True])
    _, gradient = jax.device_get(step(inputs["solver_hidden"], mask))
    np.testing.assert_array_equal(gradient.any(-1), mask)
    value, gradient = jax.device_get(step(inputs["solver_hidden"], np.zeros(N, bool)))
    assert value == 0.0 and not gradient.any()


@pytest.mark.parametrize("field", dv.TokenScores._fields)
@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_only_the_solver_learns_and_from_the_stated_fields(name, field):
    inputs = _inputs()
    tokens = inputs.pop("tokens")

    @jax.jit
    @jax.grad
    def gradients(arrays: dict) -> jax.Array:
        return jnp.sum(getattr(_scores({**arrays, "tokens": tokens}, name), field))

    learns = {key: bool(np.asarray(g).any()) for key, g in gradients(inputs).items()}
    solver = field in ("divergence", "solver_logprobs")
    assert learns == {key: solver and key.startswith("solver") for key in inputs}


def test_shared_head_learns_through_the_solver_alone():
    inputs = _inputs()
    head = inputs["solver_head"]

    def loss(solver: jax.Array, teacher: jax.Array) -> jax.Array:
        return _scores(
            {**inputs, "solver_head": solver, "teacher_head": teacher}
        ).divergence.sum()

    shared = np.asarray(jax.jit(jax.grad(lambda head: loss(head, head)))(head))
    assert shared.all()
    np.testing.assert_array_equal(shared, jax.jit(jax.grad(loss))(head, head))


@pytest.mark.parametrize("name", dv.DIVERGENCES)
def test_bfloat16_inputs_are_summed_in_float32(name):
    inputs = _inputs(num_tokens=9, vocab=301, width=64)
    low = {k: jnp.asarray(v, jnp.bfloat16) for k, v in inputs.items() if k != "tokens"}
    for key in ("solver_hidden", "teacher_hidden"):
        low[key] = low[key] / 4  # keeps the softmax broad: many small terms
    solver, teacher = _numpy_pair({k: np.asarray(v, np.float64) for k, v in low.items()})
    expected = _numpy_divergence(name, solver, teacher, inputs["tokens"], solver)
    values = _scores({**low, "tokens": inputs["tokens"]}, name).divergence
    # bfloat16 logits or sums would miss by 1e-3 and more
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("field", "sign"), [("solver_logprobs", 1), ("divergence", -1)])
def test_head_gradient_is_summed_over_tiles_in_float32(field, sign):
    """A bfloat16 sum of 512 halves stops growing at 128."""
    hidden = jnp.ones((512, 1), jnp.bfloat16)
    teacher = jnp.array([[100.0], [0.0]], jnp.bfloat16)  # all on token 0
    tokens = jnp.zeros(512, jnp.int32)

    @jax.jit
    @jax.grad
    def gradient(head: jax.Array) -> jax.Array:
        settings = {"loss_temperature": 1.0, "token_tile": 1, "divergence": "forward_kl"}
        scores = _tiled(hidden, hidden, head, teacher, tokens, jsd_beta=0.5, **settings)
        return jnp.sum(getattr(scores, field))

    slopes = gradient(np.zeros((2, 1), jnp.bfloat16))
    np.testing.assert_array_equal(np.ravel(slopes), [sign * 256.0, -sign * 256.0])


def test_a_float32_head_scores_like_its_cast():
    """Sampler and scorer multiply in the compute dtype, whatever dtype the weights train in."""
    inputs = _inputs()
    low = {k: jnp.asarray(v, jnp.bfloat16) for k, v in inputs.items() if k.endswith("hidden")}
    kept = _scores({**inputs, **low})
    cast = {k: jnp.asarray(inputs[k], jnp.bfloat16) for k in ("solver_head", "teacher_head")}
    jax.tree.map(np.testing.assert_array_equal, kept, _scores({**inputs, **low, **cast}))


def test_masked_mean_is_one_sum_over_one_count():
    values = jnp.array([[1.0, 2.0, np.nan], [4.0, np.inf, -9.0]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    value, gradient = jax.value_and_grad(dv.masked_mean)(values, mask)
    np.testing.assert_allclose(value, 7 / 3, rtol=1e-6)  # not the mean of the rows' means, 2.75
    np.testing.assert_allclose(gradient, np.where(mask, 1 / 3, 0.0), rtol=1e-6)
    many = jnp.ones(1000, jnp.bfloat16)
    assert dv.masked_mean(many, jnp.ones(1000, bool)) == 1.0  # bfloat16 would stop at 256


@pytest.mark.parametrize(("wrong", "nearest"), [("forward", "forward_kl"), ("js", "jsd")])
def test_unknown_divergence_names_the_nearest(wrong, nearest):
    with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
        _scores(_inputs(), wrong)


_IMPOSSIBLE = {
    "jsd_beta": (0.0, 1.0, -0.1, float("nan")),
    "loss_temperature": (0.0, float("inf"), float("nan")),
    "token_tile": (0, -1),
}


@pytest.mark.parametrize("key", _IMPOSSIBLE)
def test_impossible_numbers_are_refused_by_key(key):
    for value in _IMPOSSIBLE[key]:
        with pytest.raises(UserError, match=key):
            _scores(_inputs(), "jsd", **{key: value})
