# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The device mesh, and the one table that says which mesh axis each logical axis uses.

Mesh axes: `data` holds copies of the weights, `fsdp` cuts both the batch and the weights,
`tensor` cuts heads, the mlp and the vocabulary. One device is a 1 x 1 x 1 mesh.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen.spmd import (
    logical_to_mesh,
    logical_to_mesh_axes,
    with_logical_constraint,
)
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import ParallelConfig

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis of a weight or an activation -> mesh axis (None: not cut).
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    # Activations.
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("width", None),
    # Weights; heads and mlp name activations too.
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_size", None),
    ("mlp", "tensor"),
    ("norm", None),
    ("layers", None),
    ("rank", None),
)


def make_mesh(config: ParallelConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The (data, fsdp, tensor) mesh over `devices`, by default all of them.

    Raises:
      UserError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"parallel asks for data={config.data}, fsdp={config.fsdp}, "
            f"tensor={config.tensor}, which does not fit {len(devices)} device(s): make the "
            "product equal to the number of devices, or set one of them to -1."
        )
    # Auto axes: the compiler spreads the few constraints named in the model.
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Within it, logical axis constraints in the model mean axes of `mesh`.

    Trace and call jitted functions inside; without it constraints do nothing, which is
    all that one device needs.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def active_mesh() -> AbstractMesh | None:
    """The mesh of the enclosing `use_mesh`, or None where one device does everything."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if not mesh.empty and mesh.size > 1 else None


def unboxed(abstract: Any) -> Any:
    """The shapes in a boxed abstract tree (`abstract_params`, `abstract_lora`).

    Unlike `nn.meta.unbox` it works within `use_mesh`, and constrains nothing.
    """
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree.map(lambda box: box.value, abstract, is_leaf=is_box)


def param_shardings(mesh: Mesh, abstract: Any, *, section: str = "parallel") -> Any:
    """One NamedSharding per leaf of a boxed abstract tree (`abstract_params`, `abstract_lora`).

    Args:
      mesh: where the tree lies.
      abstract: its shapes, boxed with the logical names of their axes.
      section: of the config, which has the sizes of the mesh; a refusal names it.

    Raises:
      UserError: a mesh axis does not divide the axis of a weight that it cuts.
    """
    specs = logical_to_mesh(nn.get_partition_spec(abstract), RULES)
    shapes = jax.tree.map(lambda leaf: leaf.shape, unboxed(abstract))

    def sharding(path: Any, spec: PartitionSpec, shape: tuple[int, ...]) -> NamedSharding:
        for size, axis in zip(shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise UserError(
                    f"{section}.{axis} = {mesh.shape[axis]} does not divide {size}, an axis "
                    f"of {name} {list(shape)}: choose a size that divides it."
                )
        return NamedSharding(mesh, spec)

    is_spec = lambda leaf: isinstance(leaf, PartitionSpec)  # noqa: E731
    return jax.tree_util.tree_map_with_path(sharding, specs, shapes, is_leaf=is_spec)


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Sharding of a [B, ...] array with `ndim` axes: the batch is cut by data and fsdp."""
    spec = logical_to_mesh_axes(("batch",) + (None,) * (ndim - 1), RULES)
    return NamedSharding(mesh, spec or PartitionSpec())


def num_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many shards the mesh cuts a batch."""
    return math.prod(mesh.shape[axis] for axis in dict(RULES)["batch"] or ())


def whole_batch(num_rows: int, mesh: Mesh | AbstractMesh | None = None) -> int:
    """`num_rows` rounded up so that the devices of a mesh share a batch.

    An array [B, ...] whose B they do not divide would lie whole on each of them. Without a mesh
    it is that of the enclosing `use_mesh`.
    """
    mesh = active_mesh() if mesh is None else mesh
    return num_rows if mesh is None else num_rows + -num_rows % num_shards(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has alike, as `shardings` lay them out; else `jax.device_put`.

    Each process hands over the parts of its own devices, and asks no other one.

    Args:
      tree: of arrays.
      shardings: one for all, or a tree of them.
    """

    def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
        is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        if is_global or sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: place(leaf, shardings), tree)
    return jax.tree.map(place, tree, shardings)


def whole_copy(values: jax.Array) -> jax.Array:
    """In a program: the values whole on every device, so that every process can read them."""
    return with_logical_constraint(values, (None,) * values.ndim)
