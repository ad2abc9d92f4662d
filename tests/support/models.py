# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The toy model of all tests, its variants, and what tests do to its weights."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.exporting.merge import merge
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.model.rope import YarnScaling

# One size, so that tests share compiled programs. No two axes of a weight are alike, nor is
# the head size hidden / heads; two query heads read each key head. Every size is even, so
# that meshes can cut it.
CONFIG = Qwen3Config(
    vocab_size=50,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    intermediate_size=48,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    max_positions=512,
    qkv_bias=False,
    qk_norm=True,
    yarn=None,
)


# Stretched so much that every kind of frequency (kept, ramped, divided) is among the six.
YARN = YarnScaling(
    factor=4.0,
    original_max_positions=64,
    beta_fast=4.0,
    beta_slow=0.5,
    truncate=False,
    attention_factor=None,
    mscale=None,
    mscale_all_dim=None,
)


# Its embedding gets gradients from both ends.
TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)
QWEN2 = dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=False)


# Between them every branch of the layer body, taken and not: norms, biases, YaRN. The goldens
# of test_qwen3.py have the other combinations.
VARIANTS = {"qwen3": CONFIG, "qwen2_yarn": dataclasses.replace(QWEN2, yarn=YARN)}


def map_leaves(tree: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The tree with every leaf changed in NumPy: in JAX each shape would compile a program."""
    return jax.tree.map(lambda leaf: jnp.asarray(change(np.asarray(leaf))), tree)


def enlarged(params: Any, factor: float) -> Any:
    """Params with every matrix multiplied; the norms keep their scale of one.

    Biases start at zero, so they get values of their own, of about the size of 1 / 2.
    """

    def scale(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1].key == "bias":
            numbers = np.arange(leaf.size, dtype=leaf.dtype)
            return jnp.asarray(np.sin(numbers**2).reshape(leaf.shape))
        return leaf if path[-1].key == "scale" else jnp.asarray(np.asarray(leaf) * factor)

    return jax.tree_util.tree_map_with_path(scale, params)


def apply(model: Qwen3, variables: Any, *args: Any, **kwargs: Any) -> Any:
    """`model.apply`, whose return type is too wide for a checker."""
    return model.apply(variables, *args, **kwargs)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def full_log_probs(config: Qwen3Config, dtype: str, params: Any, tokens: Any) -> jax.Array:
    """[B, T, V] log-probabilities of the next token, uncached and in scanned form."""
    model = Qwen3(config, jnp.dtype(dtype))
    hidden, _ = apply(model, {"params": params}, tokens)
    return jax.nn.log_softmax(apply(model, {"params": params}, hidden, method="logits"))


def random_adapter(config: Any, spec: LoraSpec, seed: int = 0) -> Any:
    """An adapter whose `a` and `b` are both not zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_lora(config, spec, jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Two trees of one structure, whose leaves have the same dtypes, shapes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


def merged(params: Any, lora: Any, spec: LoraSpec) -> Any:
    """fp32 params with an adapter merged into them."""
    tree = merge(params, {"lora": lora}, spec, np.dtype(np.float32)).params
    return jax.tree.map(jnp.asarray, tree)
