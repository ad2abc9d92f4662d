# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The arguments of sampling's programs without data: shapes, and shardings on a mesh.

A program compiles where no weight has been read and no device of the mesh exists:

    model = decode_model(sizes, "bfloat16", lora)
    with use_mesh(mesh):
        decode_chunk.lower(*decode_arguments(model, mesh, num_slots=32, width=2_560)).compile()

where `mesh` may be that of a topology (jax.experimental.topologies), or None for one device
without a mesh. Which widths a call meets, `scheduler.cache_widths` says of the cache and
`scheduler.prompt_bucket` of prompts.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from stepalign_jax.model.cache import Cache, init_cache
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.parallel.mesh import unboxed
from stepalign_jax.sampling.decode import CACHE_AXES, SlotRequests, Slots
from stepalign_jax.sampling.layout import (
    Variables,
    abstract_collections,
    batch_shards,
    decode_layout,
    decode_shardings,
    num_blocks,
    rules_of,
)
from stepalign_jax.sampling.session import DECODE_STEPS, FEWEST_STOPS


def decode_model(
    sizes: Qwen3Config, dtype: Any, lora: LoraSpec | None, *, kernel: str = "xla"
) -> Qwen3:
    """The network as every program here takes it: layers unrolled."""
    return Qwen3(sizes, jnp.dtype(dtype), lora=lora, scan_layers=False, kernel=kernel)


def prefill_arguments(
    model: Qwen3, mesh: Mesh | None, *, num_rows: int, width: int, prefix: int = 0
) -> tuple[Any, ...]:
    """Of `prefill`: rows of `width` tokens behind a shared prefix of `prefix` tokens."""
    copies = batch_shards(model.config, mesh)  # one for each shard
    shared = abstract_cache(model, mesh, copies, prefix) if prefix else None
    tokens = jax.ShapeDtypeStruct((num_rows, width), jnp.int32)
    return model, abstract_variables(model, mesh), tokens, shared, model.dtype


def copy_arguments(
    model: Qwen3, mesh: Mesh | None, *, num_slots: int, width: int, num_rows: int, filled: int
) -> tuple[Any, ...]:
    """Of `copy_rows`: from a batch of `num_rows`, which fill `filled` cache slots."""
    indices = jax.ShapeDtypeStruct((num_slots,), jnp.int32)
    cache = abstract_cache(model, mesh, num_slots, width)
    prefilled = abstract_cache(model, mesh, num_rows, filled)
    return model.config, cache, prefilled, indices, indices, _SCALAR


def resize_arguments(
    model: Qwen3, mesh: Mesh | None, *, num_slots: int, width: int, to: int
) -> tuple[Any, ...]:
    """Of `resize_layer`: from `width` cache slots to another number."""
    return model.config, abstract_cache(model, mesh, num_slots, width)[0], to


def decode_arguments(
    model: Qwen3,
    mesh: Mesh | None,
    *,
    num_slots: int,
    width: int,
    num_stops: int = FEWEST_STOPS,
) -> tuple[Any, ...]:
    """Of `decode_chunk` as a session calls it."""
    row = lambda dtype, *more: jax.ShapeDtypeStruct((num_slots, *more), dtype)  # noqa: E731
    int32, float32 = jnp.int32, jnp.float32
    slots = Slots(row(int32), row(int32), row(int32), row(jnp.bool_))
    requests = SlotRequests(
        addresses=row(jnp.uint32, 6),
        temperature=row(float32),
        top_k=row(int32),
        top_p=row(float32),
        max_new_tokens=row(int32),
        stop_ids=row(int32, num_stops),
    )
    variables = abstract_variables(model, mesh)
    cache = abstract_cache(model, mesh, num_slots, width)
    return model, variables, cache, slots, requests, _SCALAR, _SCALAR, DECODE_STEPS


def abstract_cache(model: Qwen3, mesh: Mesh | None, num_rows: int, width: int) -> Cache:
    """Shapes and shardings of a cache of `num_rows` rows of `width` cache slots."""
    make = functools.partial(init_cache, model.config, num_rows, width, model.dtype)
    spec = logical_to_mesh_axes(CACHE_AXES, rules_of(model.config, mesh))
    return jax.tree.map(lambda leaf: _placed(leaf, mesh, spec), jax.eval_shape(make))


def abstract_variables(model: Qwen3, mesh: Mesh | None) -> Variables:
    """Shapes and shardings of the model's collections in the decode layout.

    Raises:
      UserError: a mesh axis does not divide the axis of a weight that it cuts.
    """
    stacked = {name: unboxed(tree) for name, tree in abstract_collections(model).items()}
    unroll = functools.partial(
        decode_layout,
        num_layers=model.config.num_layers,
        dtype=model.dtype,
        num_blocks=num_blocks() if _is_on_cpu(mesh) else 0,
    )
    shapes = jax.eval_shape(unroll, stacked)
    if mesh is None or mesh.size == 1:
        return jax.tree.map(lambda leaf: _placed(leaf, mesh, PartitionSpec()), shapes)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        decode_shardings(model, mesh),
    )


def _placed(leaf: Any, mesh: Mesh | None, spec: Any) -> jax.ShapeDtypeStruct:
    sharding = None if mesh is None else NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _is_on_cpu(mesh: Mesh | None) -> bool:
    if isinstance(mesh, AbstractMesh):
        return False  # chips of a plan
    return mesh is None or mesh.devices.flat[0].platform == "cpu"


_SCALAR = jax.ShapeDtypeStruct((), jnp.int32)
