# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Merging and its price, on a model small enough to work out in float64."""

from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIG, QWEN2, apply, enlarged, random_adapter

from stepalign_jax.base.errors import UserError
from stepalign_jax.exporting.merge import merge
from stepalign_jax.exporting.rounding import (
    ProbeText,
    View,
    describe_rounding,
    hidden_states,
    mean_kl,
    measure_rounding,
    rounding_warning,
)
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3, init_params, output_head

MODEL_SPEC = LoraSpec(rank=3, alpha=6.0, targets=("o_proj", "up_proj"))
TEXTS = [ProbeText([3, 4, 5], [6, 7, 8, 9]), ProbeText([9, 8], [7, 6])]


def bfloat16_base() -> Any:
    params = enlarged(init_params(CONFIG, jax.random.key(0)), 4)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)


@pytest.mark.parametrize(("size", "lost"), [(1e-5, (0.95, 1.05)), (1.0, (0.0, 0.1))])
def test_a_small_delta_is_rounded_away_and_a_large_one_stays(size, lost):
    lora = jax.tree.map(lambda leaf: leaf * size**0.5, random_adapter(CONFIG, MODEL_SPEC))
    merged = merge(bfloat16_base(), {"lora": lora}, MODEL_SPEC, jnp.dtype("bfloat16"))
    assert lost[0] <= merged.lost <= lost[1]
    exact = merge(bfloat16_base(), {"lora": lora}, MODEL_SPEC, jnp.dtype("float32"))
    assert exact.lost < 1e-2
    pairs = [lora["layers"]["attention"]["o_proj"], lora["layers"]["mlp"]["up_proj"]]
    square = sum(np.sum(np.square(p["a"].astype(np.float64) @ p["b"] * 2.0)) for p in pairs)
    np.testing.assert_allclose(exact.delta_norm, square**0.5, rtol=1e-3)


def test_norms_are_over_what_trained_alone():
    """The base is float32, so rounding moves every weight, also those without an adapter."""
    base = enlarged(init_params(CONFIG, jax.random.key(0)), 4)
    lora = random_adapter(CONFIG, MODEL_SPEC)
    merged = merge(base, {"lora": lora}, MODEL_SPEC, jnp.dtype("bfloat16"))
    errors = []
    for group, name in (("attention", "o_proj"), ("mlp", "up_proj")):
        pair = lora["layers"][group][name]
        delta = pair["a"].astype(np.float64) @ pair["b"] * 2.0
        exact = np.asarray(base["layers"][group][name]["kernel"], np.float64) + delta
        kernel = merged.params["layers"][group][name]["kernel"]
        errors.append(np.sum(np.square(kernel.astype(np.float64) - exact)))
    # The sum is computed in float32, which has 16 more bits than the rounding's 8.
    np.testing.assert_allclose(merged.error_norm, sum(errors) ** 0.5, rtol=1e-3)
    assert merged.lost == merged.error_norm / merged.delta_norm


def test_merged_kernels_are_the_sum_and_all_else_keeps_its_bits():
    params = enlarged(init_params(QWEN2, jax.random.key(0)), 4)
    lora = random_adapter(QWEN2, MODEL_SPEC)
    merged = merge(params, {"lora": lora}, MODEL_SPEC, jnp.dtype("float32")).params
    flat, before = map(flax.traverse_util.flatten_dict, (merged, params))
    changed = {path for path in flat if not np.array_equal(flat[path], before[path])}
    assert changed == {
        ("layers", "attention", "o_proj", "kernel"),
        ("layers", "mlp", "up_proj", "kernel"),
    }
    pair = lora["layers"]["attention"]["o_proj"]
    expected = np.einsum("lir,lro->lio", pair["a"], pair["b"], dtype=np.float64) * 2.0
    delta = merged["layers"]["attention"]["o_proj"]["kernel"] - np.asarray(
        params["layers"]["attention"]["o_proj"]["kernel"]
    )
    np.testing.assert_allclose(delta, expected, atol=1e-6)


def test_a_weight_too_large_for_the_dtype_is_refused():
    base = bfloat16_base()
    base["final_norm"]["scale"] = base["final_norm"]["scale"] * 1e6
    lora = random_adapter(CONFIG, MODEL_SPEC)
    with pytest.raises(UserError, match=r"final_norm\.scale .* not finite in float16"):
        merge(base, {"lora": lora}, MODEL_SPEC, jnp.dtype("float16"))


def exact_kl(views: list[View]) -> float:
    """The mean KL in float64."""

    def logprobs(view: View) -> np.ndarray:
        logits = view.hidden.astype(np.float64) @ np.asarray(view.head, np.float64).T
        return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))

    p, q = map(logprobs, views)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


def test_kl_of_hidden_states_by_hand():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 300, 8)).astype(np.float32)  # more than one tile
    heads = rng.normal(size=(2, 11, 8)).astype(np.float32)
    views = [View(h, w) for h, w in zip(hidden, heads, strict=True)]
    assert mean_kl(*views) == pytest.approx(exact_kl(views), rel=1e-5)
    assert mean_kl(views[0], views[0]) == 0.0


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-2])
def test_kl_of_nearly_equal_distributions_is_no_noise(size):
    """Float32 leaves 1e-7 in log p; the KL of that is 1e-14, and sum(p * d) has 1e-8."""
    rng = np.random.default_rng(0)
    head = rng.normal(size=(500, 8)).astype(np.float32)
    hidden = rng.normal(size=(300, 8)).astype(np.float32) / 2
    views = [View(h, head) for h in (hidden, hidden + size * rng.normal(size=hidden.shape))]
    views[1] = View(views[1].hidden.astype(np.float32), head)
    expected = exact_kl(views)
    assert size**2 < expected < 10 * size**2
    assert mean_kl(*views) == pytest.approx(expected, rel=1e-3, abs=1e-13)


def test_kl_is_finite_where_one_side_has_no_probability_left():
    logits = np.array([[150.0, 0.0, 0.0]], np.float32)
    views = [View(x, np.eye(3, dtype=np.float32)) for x in (logits, logits[:, ::-1])]
    assert mean_kl(*views) == pytest.approx(150.0)


def test_states_are_those_that_predict_the_completions():
    model, params = Qwen3(CONFIG, jnp.float32), init_params(CONFIG, jax.random.key(0))
    found = hidden_states(model, {"params": params}, TEXTS)
    rows = []
    forward = jax.jit(lambda tokens: apply(model, {"params": params}, tokens)[0])
    for prompt, completion in TEXTS:
        hidden = forward(np.array([[*prompt, *completion]]))
        rows.append(hidden[0, len(prompt) - 1 : -1])
    np.testing.assert_allclose(found, np.concatenate(rows), atol=1e-5)


def test_measure_compares_trained_base_and_exported():
    base = bfloat16_base()
    lora = {"lora": random_adapter(CONFIG, MODEL_SPEC)}
    model = Qwen3(CONFIG, jnp.float32, lora=MODEL_SPEC)
    merged = merge(base, lora, MODEL_SPEC, jnp.dtype("float32")).params
    found = measure_rounding(model, base, lora, merged, TEXTS)
    assert found["num_tokens"] == 6 and found["num_texts"] == 2
    assert found["kl_of_rounding"] < 1e-8 < 1e-3 < found["kl_of_training"]
    # Exporting the base itself loses exactly what training did.
    nothing = measure_rounding(model, base, lora, base, TEXTS)
    assert nothing["kl_of_rounding"] == nothing["kl_of_training"] == found["kl_of_training"]
    assert output_head(base).dtype == jnp.bfloat16


def test_rounding_that_eats_the_training_is_warned_of():
    found = {"dtype": "bfloat16", "lost": 0.2, "kl_of_training": 1.0, "kl_of_rounding": 0.01}
    assert rounding_warning(found) is None
    by_kl = rounding_warning(found | {"kl_of_rounding": 0.12})
    assert by_kl is not None
    assert "bfloat16 costs 20 % of the delta and 12 % of the KL that training made" in by_kl
    by_norm = rounding_warning({"dtype": "bfloat16", "lost": 0.6})
    assert by_norm is not None and "costs 60 % of the delta that training made" in by_norm


def test_an_export_that_loses_nothing_is_not_warned_of():
    assert rounding_warning({"dtype": "float32", "lost": 0.0}) is None
    # A run of few steps: the noise of two forward passes is as large as what it trained.
    found = {"dtype": "float32", "lost": 1e-6, "kl_of_training": 1e-9, "kl_of_rounding": 1e-9}
    assert rounding_warning(found) is None
    assert rounding_warning(found | {"lost": 0.1}) is not None


def test_the_description_to_the_letter():
    found = {"dtype": "bfloat16", "lost": 0.125, "num_tokens": 900, "num_texts": 4}
    line = "  rounding to bfloat16: the error is 12 % of the delta\n"
    assert describe_rounding(found) == (
        line + "  KL not measured: there are no rollouts to measure it on"
    )
    kls = {"kl_of_training": 0.5, "kl_of_rounding": 0.0025}
    assert describe_rounding(found | kls) == (
        line + "  nats a token, over 900 tokens of 4 rollouts:\n"
        "    KL(trained || exported)  0.0025\n"
        "    KL(trained || base)      0.5"
    )


@pytest.mark.parametrize(
    ("lost", "words"),
    [(1.2, "120 %"), (12.0, "1,200 %"), (0.034, "3.4 %"), (1.2e-5, "0.0012 %"), (0.0, "0 %")],
)
def test_a_large_error_is_a_number_to_read(lost, words):
    found = {"dtype": "bfloat16", "lost": lost}
    assert f"the error is {words} of the delta" in describe_rounding(found)
    assert lost < 0.5 or f"costs {words} of the delta" in str(rounding_warning(found))
