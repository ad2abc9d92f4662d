# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: a `lora` collection beside `params`, with the same paths.

The solver is `apply({"params": p, "lora": l})`; the same module without the collection,
`apply({"params": p})`, is the untouched base: the teacher and the critic.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stepalign_jax.config.schema import LoraTrainable
from stepalign_jax.model.config import PROJECTIONS, Qwen3Config
from stepalign_jax.model.products import linear, rows_product


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """Which projections carry an adapter, and how large it is.

    Attributes:
      rank: r, columns of `a` and rows of `b`, at least 1.
      alpha: the update is scaled by alpha / rank.
      targets: at least one name of `PROJECTIONS`, each at most once.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @classmethod
    def of(cls, config: LoraTrainable) -> "LoraSpec":
        """The adapter that a run with this config trains."""
        return cls(config.rank, config.alpha, config.targets)

    @property
    def scale(self) -> float:
        """Multiplies x @ a @ b."""
        return self.alpha / self.rank


def named_init(init: Callable[..., jax.Array], axes: tuple[str, ...]) -> Callable[..., Any]:
    """An initializer whose result carries the logical names of its axes."""
    return nn.with_logical_partitioning(init, axes)


class Projection(nn.Module):
    """x @ kernel + bias, plus the adapter's x @ a @ b * scale where the collection has one.

    Attributes:
      features: size of the output axis.
      axes: logical names of the kernel's [in, out] axes.
      dtype: compute dtype; weights of another dtype are cast to it.
      out_dtype: dtype of the result, at least as wide as `dtype`.
      use_bias: whether it has a bias.
      scale: the adapter's scale, or None for a projection that never carries one.
    """

    features: int
    axes: tuple[str, str]
    dtype: Any
    out_dtype: Any
    use_bias: bool
    scale: float | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., features] in `out_dtype`."""
        x = x.astype(self.dtype)
        y = self._product(x)
        if self.use_bias:
            init = named_init(nn.initializers.zeros, self.axes[1:])
            bias = self.param("bias", init, (self.features,), jnp.float32)
            # Rounded here, in sampling and in training alike, so that both see one value.
            bias = bias.astype(self.dtype).astype(self.out_dtype)
            # Rank promotion is an error here (tests/conftest.py), so the axes are written out.
            y = y + jnp.expand_dims(bias, tuple(range(y.ndim - 1)))
        # The teacher and the critic call the same module without a `lora` collection.
        if self.scale is None or not self.has_variable("lora", "a"):
            return y
        a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
        update = linear(linear(x, a, self.dtype), b, self.out_dtype)
        return y + update * jnp.asarray(self.scale, self.out_dtype)

    def _product(self, x: jax.Array) -> jax.Array:
        if self.has_variable("decode", "rows"):
            return rows_product(x, self.get_variable("decode", "rows"), self.out_dtype)
        # A `decode` collection replaces the kernel (products.block_large); else it is a param.
        init = named_init(nn.initializers.normal(0.02), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        return linear(x, kernel, self.out_dtype)


def init_lora(config: Qwen3Config, spec: LoraSpec, key: jax.Array) -> dict[str, Any]:
    """A fresh adapter, fp32: `a` [L, in, r] normal with std 1 / sqrt(in), `b` [L, r, out] zero.

    Since `b` is zero the adapted model starts exactly equal to its base.
    """

    def leaves(key: jax.Array, name: str) -> dict[str, jax.Array]:
        num_inputs, num_outputs = config.projection_shape(name)
        # Keyed by name, so that an adapter on fewer projections has the same values there.
        name_key = jax.random.fold_in(key, list(PROJECTIONS).index(name))
        shape = (config.num_layers, num_inputs, spec.rank)
        a = jax.random.normal(name_key, shape, jnp.float32) * num_inputs**-0.5
        return {
            "a": a,
            "b": jnp.zeros((config.num_layers, spec.rank, num_outputs), jnp.float32),
        }

    return jax.jit(lambda key: _tree(spec, functools.partial(leaves, key)))(key)


def abstract_lora(config: Qwen3Config, spec: LoraSpec) -> dict[str, Any]:
    """Shapes of `init_lora` boxed with logical axis names, for `mesh.param_shardings`."""

    def leaves(name: str) -> dict[str, nn.LogicallyPartitioned]:
        num_inputs, num_outputs = config.projection_shape(name)
        in_axis, out_axis = PROJECTIONS[name][1]
        a = jax.ShapeDtypeStruct((config.num_layers, num_inputs, spec.rank), jnp.float32)
        b = jax.ShapeDtypeStruct((config.num_layers, spec.rank, num_outputs), jnp.float32)
        return {
            "a": nn.LogicallyPartitioned(a, ("layers", in_axis, "rank")),
            "b": nn.LogicallyPartitioned(b, ("layers", "rank", out_axis)),
        }

    return _tree(spec, leaves)


def _tree(spec: LoraSpec, leaves: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """{"layers": {submodule: {projection: leaves(projection)}}} over the spec's targets."""
    layers: dict[str, Any] = {}
    for name in spec.targets:
        layers.setdefault(PROJECTIONS[name][0], {})[name] = leaves(name)
    return {"layers": layers}
