# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights in the layout of decoding: layers unrolled, and on a CPU in blocks of rows.

    stacked     {"params": {"layers": ..., ...}, "lora": ...}         what callers hold
    decode      {"params": {"layer_0": ..., "layer_1": ..., ...}, "lora": ..., "decode": ...}

The collection `decode` holds the matrices that are cut into blocks; it is there on a CPU alone.

On a mesh the decode form also lies otherwise than the stacked one, by sampling's own columns of
the table in `parallel.mesh`. Which of them follows from the network's sizes and the mesh alone,
so that every program finds it by itself.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import abstract_lora
from stepalign_jax.model.products import block_large
from stepalign_jax.model.qwen3 import Qwen3, abstract_params, unstack_layers
from stepalign_jax.parallel.mesh import (
    RULES,
    AnyMesh,
    Rules,
    active_mesh,
    num_pieces,
    param_shardings,
    sampling_rules,
)

Variables = dict[str, Any]

_MOST_SESSIONS = 4  # the host's work for each is serial


def is_decode_layout(variables: Variables) -> bool:
    """Whether the weights are in the layout of decoding already."""
    return "layers" not in variables["params"]


@functools.partial(jax.jit, static_argnames=("num_layers", "dtype", "num_blocks"))
def decode_layout(
    variables: Variables, *, num_layers: int, dtype: Any, num_blocks: int
) -> Variables:
    """Every collection unrolled, matrices in the compute dtype; in blocks, if there are any.

    The model rounds matrices to that dtype where it uses them, so rounding them here
    changes no bit, and each token reads fewer bytes. Norm scales stay as they are.
    """
    layout = {name: unstack_layers(tree, num_layers) for name, tree in variables.items()}
    if num_blocks:
        layout["params"], layout["decode"] = block_large(layout["params"], num_blocks)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, layout)


def prepare(model: Qwen3, variables: Variables) -> Variables:
    """Stacked variables of a model, or some of its collections, in the decode layout.

    On a mesh the devices exchange their slices: nothing passes through a host, and the stacked
    form stays where it is.

    Raises:
      UserError: a mesh axis does not divide the axis of a weight that it cuts.
    """
    program = preparation(model, active_mesh(), tuple(variables), num_blocks())  # pyright: ignore[reportArgumentType]
    return program(variables)


@functools.cache
def preparation(
    model: Qwen3, mesh: AnyMesh | None, names: tuple[str, ...], num_blocks: int
) -> Callable[[Variables], Variables]:
    """The jitted function that `prepare` is, for collections with these names."""
    form = {"num_layers": model.config.num_layers, "dtype": model.dtype}
    function = functools.partial(decode_layout, **form, num_blocks=num_blocks)
    if mesh is None:
        return function
    specs = jax.tree.map(lambda sharding: sharding.spec, decode_shardings(model, mesh))
    return jax.jit(function, out_shardings={name: specs[name] for name in names})


def decode_shardings(model: Qwen3, mesh: AnyMesh) -> Variables:
    """A sharding for each leaf of the model's collections in the decode layout on a mesh.

    Raises:
      UserError: a mesh axis does not divide the axis of a weight that it cuts.
    """
    rules = rules_of(model.config, mesh)

    def unrolled(boxed: Any) -> Any:
        shardings = param_shardings(mesh, boxed, rules=rules)
        # The axis of layers, which is the first, is never cut.
        own = jax.tree.map(
            lambda sharding: NamedSharding(mesh, PartitionSpec(*sharding.spec[1:])),
            shardings.pop("layers"),
        )
        return shardings | {f"layer_{i}": own for i in range(model.config.num_layers)}

    return {name: unrolled(boxed) for name, boxed in abstract_collections(model).items()}


def abstract_collections(model: Qwen3) -> Variables:
    """Shapes of the model's collections, stacked, boxed with logical names of their axes."""
    params = {"params": abstract_params(model.config)}
    if model.lora is None:
        return params
    return params | {"lora": abstract_lora(model.config, model.lora)}


def rules_of(config: Qwen3Config, mesh: AnyMesh | None) -> Rules:
    """The rules by which everything lies while a network samples on a mesh."""
    if mesh is None or mesh.size == 1:
        return RULES  # nothing is cut
    heads = (config.num_heads, config.num_kv_heads)
    return sampling_rules(mesh, (*heads, config.intermediate_size, config.vocab_size))


@contextlib.contextmanager
def sampling_rules_of(config: Qwen3Config) -> Iterator[None]:
    """Within it, logical axes in the model mean what they do while this network samples.

    For functions that are being traced within `use_mesh`.
    """
    if (mesh := active_mesh()) is None:
        yield
        return
    with nn.logical_axis_rules(rules_of(config, mesh)):
        yield


def batch_axes(config: Qwen3Config, mesh: AnyMesh | None = None) -> tuple[str, ...]:
    """The mesh axes that cut rows while a network samples; () on one device.

    Without a mesh it is that of the enclosing `use_mesh`.
    """
    mesh = active_mesh() if mesh is None else mesh
    axes = None if mesh is None else dict(rules_of(config, mesh))["batch"]
    return (axes,) if isinstance(axes, str) else axes or ()


def batch_shards(config: Qwen3Config, mesh: AnyMesh | None = None) -> int:
    """Into how many shards they cut them: every number of rows is a multiple.

    An array [B, ...] whose B the shards do not divide would lie whole on each device.
    """
    mesh = active_mesh() if mesh is None else mesh
    return 1 if mesh is None else num_pieces(mesh, batch_axes(config, mesh))


def whole_batch(num_rows: int, num_shards: int) -> int:
    """`num_rows` rounded up to a multiple of the shards."""
    return num_rows + -num_rows % num_shards


def num_blocks() -> int:
    """How many blocks large matrices are cut into: one per core of a single CPU device."""
    return _num_cores() if jax.default_backend() == "cpu" and jax.device_count() == 1 else 0


def num_sessions(variables: Variables) -> int:
    """How many sessions share the requests of a call, each in a thread of its own.

    A model so small that none of its matrices is cut into blocks leaves all cores of a CPU but
    one idle most of the time, since XLA runs small operations on one: two sessions of half the
    slots took 0.6 of the time of one (docs/performance.md). Larger models read all of their
    weights every step, which two sessions would do twice.
    """
    if variables.get("decode"):
        return 1
    return max(1, min(num_blocks(), _MOST_SESSIONS))


def _num_cores() -> int:
    own = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(own(0)) if own else os.cpu_count() or 1
