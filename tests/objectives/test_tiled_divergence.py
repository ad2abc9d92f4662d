# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The promises of the tiled form: float64's gradients, few products, no [N, V], exact zeros."""

import functools
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import support.float64 as float64
from support.tiled import ARRAYS, SETTINGS, D, N, V, draw, equations, tiled, value_and_gradients

from stepalign_jax.base.errors import UserError
from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.objectives.tiled_divergence import tiled_entropies, tiled_scores


@pytest.mark.parametrize(("name", "way"), float64.NAMES_AND_WAYS)
def test_loss_and_gradients_are_the_float64_ones(name, way):
    inputs, settings = draw(num_tokens=4, vocab=7, width=3), {**SETTINGS, **way}
    pair = float64.both_logprobs(inputs, settings["loss_temperature"])
    trains = ("solver_hidden", "solver_head")
    (loss, scores), gradients = value_and_gradients(inputs, trains, name, **way)
    expected = float64.values(name, *pair, inputs["tokens"], pair[0], **settings)
    np.testing.assert_allclose(scores.loss, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(loss, inputs["token_weights"] @ expected, rtol=2e-5, atol=1e-6)
    for key in trains:
        expected = float64.central_differences(
            lambda x, key=key: float64.weighted_sum(
                name, {**inputs, key: x}, pair[0], settings
            ),
            inputs[key],
        )
        assert np.abs(expected).max() > 1e-2
        assert float64.relative_error(gradients[key], expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "tile", "jit"),
    [*((name, 3, True) for name in float64.NAMES), ("jsd", 1, True), ("jsd", 100, False)],
)
def test_neither_tile_size_nor_jit_changes_anything(name, tile, jit):
    inputs, trains = draw(), ("solver_hidden", "solver_head")
    whole = value_and_gradients(inputs, trains, name, token_tile=N)
    with jax.disable_jit(not jit):
        parts = value_and_gradients(inputs, trains, name, token_tile=tile)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=2e-6), parts, whole
    )


def step_equations(trains: tuple[str, ...], token_tile: int = 3, **inputs: Any) -> list[Any]:
    inputs = {**draw(num_tokens=24, vocab=97), **inputs}

    def loss(arrays: dict) -> jax.Array:
        return tiled({**inputs, **arrays}, token_tile=token_tile)[0]

    # As the update has it: compiled within, in a loop over micro-batches.
    def step(arrays: dict) -> Any:
        differentiated = jax.jit(jax.value_and_grad(loss) if trains else loss)
        return jax.lax.scan(lambda _, __: (None, differentiated(arrays)), None, None, 2)

    return equations(jax.make_jaxpr(step)({key: inputs[key] for key in trains}).jaxpr)


@pytest.mark.parametrize(
    ("trains", "shared", "num_products"),
    [
        ((), False, 2),
        ((), True, 1),  # both sides' logits in one
        (("solver_hidden",), False, 3),
        (("solver_hidden",), True, 2),
        (("solver_hidden", "solver_head"), False, 4),
        (("solver_head",), True, 3),
    ],
)
def test_head_products(trains, shared, num_products):
    changed = {"teacher_head": None} if shared else {}
    found = [e for e in step_equations(trains, **changed) if e.primitive.name == "dot_general"]
    assert len(found) == num_products


def test_no_array_of_all_tokens_by_vocabulary():
    def largest(token_tile: int) -> int:
        """Tokens whose logits exist at once, from the largest array with a vocabulary axis."""
        found = step_equations(("solver_hidden", "solver_head"), token_tile)
        shapes = {getattr(out.aval, "shape", ()) for e in found for out in e.outvars}
        return max(int(np.prod(s)) for s in shapes if 97 in s and D not in s) // 97

    assert largest(4) == 4
    assert largest(24) == 24  # the walk does see arrays of [N, V]


@pytest.mark.parametrize(
    ("name", "dtype", "way"),
    [
        *((name, jnp.float32, {}) for name in float64.NAMES),
        ("forward_kl", jnp.bfloat16, {}),
        ("forward_kl", jnp.float32, {"element_clip": 0.05, "top_k": 5}),
    ],
)
def test_equal_hidden_states_give_exactly_zero(name, dtype, way):
    inputs = draw(num_tokens=37, vocab=67, width=33)
    inputs |= {key: jnp.asarray(inputs[key], dtype) for key in ARRAYS}
    inputs |= {"teacher_hidden": inputs["solver_hidden"], "teacher_head": inputs["solver_head"]}
    trains = ("solver_hidden", "solver_head")
    (loss, scores), gradients = value_and_gradients(inputs, trains, name, **way)
    assert loss == 0.0 and not scores.loss.any() and not scores.advantage.any()
    assert not any(gradient.any() for gradient in gradients.values())
    # one changed row is seen, and it alone
    factor = np.where(np.arange(37) == 5, 1.5, 1.0)[:, None].astype(dtype)
    inputs["teacher_hidden"] = inputs["teacher_hidden"] * factor
    (_, scores), gradients = value_and_gradients(inputs, trains, name, **way)
    assert np.flatnonzero(scores.loss).tolist() == [5]
    assert np.flatnonzero(gradients["solver_hidden"].any(-1)).tolist() == [5]


@pytest.mark.parametrize("name", ["forward_kl", "sampled_token"])
def test_a_token_of_weight_zero_gives_nothing_whatever_it_holds(name):
    inputs, mask = draw(), np.array([True, False, True, True, False, False, True])
    inputs["teacher_hidden"][1], inputs["solver_hidden"][4] = np.nan, np.inf
    inputs["token_weights"] = mask
    trains = ("solver_hidden", "solver_head")
    (loss, _), gradients = value_and_gradients(inputs, trains[:1], name)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(gradients["solver_hidden"].any(-1), mask)
    inputs["token_weights"] = np.zeros(N, np.float32)
    (loss, _), gradients = value_and_gradients(
        draw() | {"token_weights": 0 * mask}, trains, name
    )
    assert loss == 0.0 and not any(gradient.any() for gradient in gradients.values())


def test_only_the_solver_learns_and_from_the_sum_alone():
    inputs = draw()

    @functools.partial(jax.jit, static_argnums=1)
    def gradients(arrays: dict, field: str) -> Any:
        def chosen(arrays: dict) -> jax.Array:
            loss, scores = tiled({**inputs, **arrays}, "jsd")
            return loss if field == "total" else jnp.sum(getattr(scores, field))

        return jax.grad(chosen)(arrays)

    arrays = {key: inputs[key] for key in (*ARRAYS, "token_weights")}
    for field in ("total", *LossScores._fields):
        found = gradients(arrays, field)
        trains = {key for key, gradient in found.items() if np.asarray(gradient).any()}
        assert trains == ({"solver_hidden", "solver_head"} if field == "total" else set())


def test_the_cotangent_scales_the_gradients():
    inputs = draw()
    trains = ("solver_hidden", "solver_head")
    _, once = value_and_gradients(inputs, trains, "forward_kl")

    def loss(arrays: dict) -> jax.Array:
        return -3.0 * tiled({**inputs, **arrays})[0]

    found = jax.jit(jax.grad(loss))({key: inputs[key] for key in trains})
    for key in trains:
        np.testing.assert_allclose(found[key], -3.0 * once[key], rtol=1e-6)


def test_a_shared_head_is_the_same_as_two_equal_ones():
    inputs = draw() | {"teacher_head": draw()["solver_head"]}
    trains = ("solver_hidden", "solver_head")
    two = value_and_gradients(inputs, trains, "forward_kl")
    one = value_and_gradients({**inputs, "teacher_head": None}, trains, "forward_kl")
    assert one[1]["solver_head"].all()  # it trains through the solver's side alone
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-5), one, two)


@pytest.mark.parametrize("name", float64.NAMES)
def test_bfloat16_inputs_are_summed_in_float32(name):
    inputs = draw(num_tokens=9, vocab=301, width=64)
    low = {key: jnp.asarray(inputs[key], jnp.bfloat16) for key in ARRAYS}
    for key in ("solver_hidden", "teacher_hidden"):
        low[key] = low[key] / 4  # keeps the softmax broad: many small terms
    exact = {key: np.asarray(value, np.float64) for key, value in low.items()}
    pair = float64.both_logprobs(exact, SETTINGS["loss_temperature"])
    expected = float64.values(name, *pair, inputs["tokens"], pair[0], **SETTINGS)
    _, scores = jax.jit(functools.partial(tiled, name=name))({**inputs, **low})
    # bfloat16 logits or sums would miss by 1e-3 and more
    np.testing.assert_allclose(scores.loss, expected, rtol=2e-5, atol=1e-6)


def test_head_gradient_is_summed_over_tiles_in_float32():
    """A bfloat16 sum of 512 halves stops growing at 128."""
    ones = jnp.ones((512, 1), jnp.bfloat16)
    inputs = {
        "solver_hidden": ones,
        "teacher_hidden": ones,
        "solver_head": jnp.zeros((2, 1), jnp.bfloat16),
        "teacher_head": jnp.array([[100.0], [0.0]], jnp.bfloat16),  # all on token 0
        "tokens": jnp.zeros(512, jnp.int32),
        "token_weights": jnp.ones(512),
    }
    settings = {"loss_temperature": 1.0, "token_tile": 1}
    _, found = value_and_gradients(inputs, ("solver_head",), "forward_kl", **settings)
    np.testing.assert_array_equal(
        np.ravel(found["solver_head"]).astype(np.float32), [-256.0, 256.0]
    )


def test_a_float32_head_scores_like_its_cast():
    """Sampler and scorer multiply in the compute dtype, whatever dtype the weights train in."""
    inputs = draw()
    low = {k: jnp.asarray(v, jnp.bfloat16) for k, v in inputs.items() if k.endswith("hidden")}
    run = jax.jit(tiled)
    kept = run({**inputs, **low})
    cast = {k: jnp.asarray(inputs[k], jnp.bfloat16) for k in ("solver_head", "teacher_head")}
    jax.tree.map(np.testing.assert_array_equal, kept, run({**inputs, **low, **cast}))


def test_a_top_k_of_all_entries_is_refused():
    with pytest.raises(UserError, match=f"top_k is {V}, .* give at most {V - 1}, or 0"):
        tiled(draw(), top_k=V)
    tiled(draw(), top_k=V - 1)


# --- Forward only --------------------------------------------------------------------------


TOP = 3


def forward(inputs: dict, name: str, **settings: Any) -> Any:
    arrays = {key: value for key, value in inputs.items() if key != "token_weights"}
    divergence = float64.make_divergence(name, **settings)
    return jax.jit(
        functools.partial(tiled_scores, divergence=divergence, num_top=TOP, mesh=None)
    )(**arrays)


@pytest.mark.parametrize(("name", "way"), float64.NAMES_AND_WAYS)
@pytest.mark.parametrize("shared", [False, True])
def test_forward_only_scores_are_the_float64_ones(name, way, shared):
    inputs, settings = draw(), {**SETTINGS, **way}
    if shared:
        inputs["teacher_head"] = inputs["solver_head"]
    pair = float64.both_logprobs(inputs, settings["loss_temperature"])
    divergence = float64.values(name, *pair, inputs["tokens"], pair[0], **settings)
    solver, teacher = float64.both_logprobs(inputs, 1.0)
    rows, tokens = np.arange(N), inputs["tokens"]
    entropies = [-(np.exp(side) * side).sum(-1) for side in (solver, teacher)]
    expected = [divergence, (teacher - solver)[rows, tokens]]
    expected += [solver[rows, tokens], teacher[rows, tokens], *entropies]
    for side in (solver, teacher):
        ids = np.argsort(-side, axis=1, kind="stable")[:, :TOP]
        expected += [ids, np.take_along_axis(side, ids, axis=1)]
    found = forward(inputs | ({"teacher_head": None} if shared else {}), name, **way)
    for values, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, exact, rtol=2e-5, atol=2e-6)


def test_forward_only_scores_are_those_of_the_update():
    inputs = draw()
    scores, (_, update) = (
        forward(inputs, "jsd"),
        jax.jit(functools.partial(tiled, name="jsd"))(inputs),
    )
    np.testing.assert_allclose(scores.divergence, update.loss, rtol=1e-6)
    np.testing.assert_allclose(scores.advantage, update.advantage, rtol=1e-6)


def test_the_update_computes_no_entropy():
    """A pass over the vocabulary more than it needs: exponentials per tile tell."""

    def exponentials(function: Any, *arguments: Any) -> int:
        found = equations(jax.make_jaxpr(function)(*arguments).jaxpr)
        return sum(equation.primitive.name == "exp" for equation in found)

    divergence = float64.make_divergence("forward_kl")
    arrays = {key: value for key, value in draw().items() if key != "token_weights"}
    analysis = functools.partial(tiled_scores, divergence=divergence, num_top=TOP, mesh=None)
    in_update = exponentials(tiled, draw())
    assert in_update == 4  # two temperatures of two sides
    assert exponentials(lambda arrays: analysis(**arrays), arrays) == in_update + 2


def test_entropies_are_those_of_float64_and_constants():
    inputs = draw()
    arrays = tuple(jnp.asarray(inputs[key]) for key in ("solver_hidden", "solver_head"))
    logs = float64.logprobs(*map(np.asarray, arrays), temperature=1.0)
    expected = -(np.exp(logs) * logs).sum(-1)

    def entropies(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return tiled_entropies(hidden, head, token_tile=3, mesh=None)

    np.testing.assert_allclose(entropies(*arrays), expected, rtol=2e-5)
    gradients = jax.grad(lambda *x: entropies(*x).sum(), argnums=(0, 1))(*arrays)
    assert not any(np.asarray(gradient).any() for gradient in gradients)
