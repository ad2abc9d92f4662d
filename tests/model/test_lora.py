# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The adapter: exactly nothing at the start, exactly its merge later, and alone in training."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIG, QWEN2, apply, enlarged, merged, random_adapter

from stepalign_jax.model.config import PROJECTIONS
from stepalign_jax.model.lora import LoraSpec, abstract_lora, init_lora
from stepalign_jax.model.qwen3 import Qwen3, init_params, unstack_layers

SPEC = LoraSpec(rank=3, alpha=6.0, targets=tuple(PROJECTIONS))
TOKENS = np.arange(20, dtype=np.int32).reshape(2, 10)


@pytest.fixture(scope="module")
def params() -> Any:
    return enlarged(init_params(CONFIG, jax.random.key(0)), 4)


@pytest.fixture(scope="module")
def trained() -> Any:
    """An adapter whose `b` is not zero."""
    return jax.tree.map(jnp.asarray, random_adapter(CONFIG, SPEC))


@functools.cache
def jitted(spec: LoraSpec | None, scan_layers: bool) -> Any:
    model = Qwen3(CONFIG, jnp.float32, lora=spec, scan_layers=scan_layers)
    return jax.jit(lambda variables: apply(model, variables, TOKENS)[0])


def forward(variables: Any, spec: LoraSpec | None = SPEC, *, scan_layers: bool = True) -> Any:
    """[B, T, D] hidden states of TOKENS."""
    return jitted(spec, scan_layers)(variables)


def test_fresh_adapter_changes_nothing(params):
    lora = init_lora(CONFIG, SPEC, jax.random.key(1))
    base = forward({"params": params}, None)
    np.testing.assert_array_equal(forward({"params": params, "lora": lora}), base)
    assert all(float(jnp.abs(pair["a"]).min()) > 0 for pair in _pairs(lora))


def test_module_without_the_collection_is_the_base(params, trained):
    base = forward({"params": params}, None)
    np.testing.assert_array_equal(forward({"params": params}), base)
    assert float(jnp.abs(forward({"params": params, "lora": trained}) - base).max()) > 0.1


def test_merged_weights_equal_the_adapter(params, trained):
    apart = forward({"params": merged(params, trained, SPEC)}, None)
    adapted = forward({"params": params, "lora": trained})
    np.testing.assert_allclose(apart, adapted, atol=1e-5)


def test_an_adapter_adds_to_a_biased_projection_too(trained):
    params = enlarged(init_params(QWEN2, jax.random.key(0)), 4)
    model = Qwen3(QWEN2, jnp.float32, lora=SPEC)
    run = jax.jit(lambda variables: apply(model, variables, TOKENS)[0])
    adapted = run({"params": params, "lora": trained})
    np.testing.assert_allclose(
        run({"params": merged(params, trained, SPEC)}), adapted, atol=1e-5
    )
    assert float(jnp.abs(run({"params": params}) - adapted).max()) > 0.1


def test_unrolled_adapter_equals_the_scanned_one(params, trained):
    variables = {"params": params, "lora": trained}
    unrolled = {name: unstack_layers(tree, 2) for name, tree in variables.items()}
    np.testing.assert_allclose(
        forward(unrolled, scan_layers=False), forward(variables), atol=1e-5
    )


def test_gradient_reaches_every_adapter_leaf_and_no_base_weight(params, trained):
    """Training asks for the gradient of the adapter; the base is a constant beside it."""
    model = Qwen3(CONFIG, jnp.float32, lora=SPEC)

    def loss(lora: Any) -> jax.Array:
        hidden, _ = apply(model, {"params": params, "lora": lora}, TOKENS)
        return jnp.sum(hidden[:, :, 0])

    gradients = jax.jit(jax.grad(loss))(trained)
    assert jax.tree.structure(gradients) == jax.tree.structure(trained)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))


def test_only_targets_carry_an_adapter(params):
    spec = LoraSpec(rank=2, alpha=2.0, targets=("q_proj", "down_proj"))
    lora = init_lora(CONFIG, spec, jax.random.key(0))
    assert {name: list(group) for name, group in lora["layers"].items()} == {
        "attention": ["q_proj"],
        "mlp": ["down_proj"],
    }
    pair = lora["layers"]["mlp"]["down_proj"]
    assert (pair["a"].shape, pair["b"].shape) == ((2, 48, 2), (2, 2, 32))


def test_abstract_lora_describes_init_lora():
    boxed = abstract_lora(CONFIG, SPEC)
    lora = init_lora(CONFIG, SPEC, jax.random.key(0))
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nn.meta.unbox(boxed))
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), lora)
    assert boxed["layers"]["mlp"]["up_proj"]["b"].names == ("layers", "rank", "mlp")


def _pairs(lora: Any) -> list[Any]:
    return [pair for group in lora["layers"].values() for pair in group.values()]
