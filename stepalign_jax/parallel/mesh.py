# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The device mesh, and the one table that says which mesh axis each logical axis uses.

Mesh axes: `data` holds copies of the weights, `fsdp` cuts both the batch and the weights,
`tensor` cuts heads, the mlp and the vocabulary. One device is a 1 x 1 x 1 mesh.

Training and sampling use the same devices with a layout each. Training reads every weight once
for thousands of tokens, so gathering the fsdp slices of a layer pays. A decode step reads them
for one token of each row: there no weight may move, and `fsdp` cuts what `tensor` does, or
nothing.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
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

Axes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, Axes], ...]
AnyMesh = Mesh | AbstractMesh

# `tensor` is the major axis: slices along fsdp then become slices along both by an exchange
# among the devices of an fsdp group alone.
_BOTH = ("tensor", "fsdp")
_ROWS = ("data", "fsdp")

# Logical axis of a weight or an activation -> mesh axes that cut it (None: not cut).
_TABLE: tuple[tuple[str, Axes, Axes, Axes], ...] = (
    #              training   sampling: sliced   copied
    # Activations, rows of the cache among them.
    ("batch",      _ROWS,     "data",            _ROWS),
    # Rows whose tokens are being looked up: in training fsdp cuts the embedding's width.
    ("lookup",     "data",    "data",            _ROWS),
    ("length",     None,      None,              None),
    ("width",      None,      None,              None),
    # Weights; heads and mlp name activations too, vocab logits, kv_heads the cache.
    ("vocab",      "tensor",  _BOTH,             "tensor"),
    ("embed",      "fsdp",    None,              None),
    ("heads",      "tensor",  _BOTH,             "tensor"),
    ("kv_heads",   "tensor",  _BOTH,             "tensor"),
    ("head_size",  None,      None,              None),
    ("mlp",        "tensor",  _BOTH,             "tensor"),
    ("norm",       None,      None,              None),
    ("layers",     None,      None,              None),
    ("rank",       None,      None,              None),
)  # fmt: skip

RULES: Rules = tuple((name, training) for name, training, *_ in _TABLE)
_SLICED: Rules = tuple((name, sliced) for name, _, sliced, _ in _TABLE)
_COPIED: Rules = tuple((name, copied) for name, _, _, copied in _TABLE)


def sampling_rules(mesh: AnyMesh, sizes: Iterable[int]) -> Rules:
    """The rules of sampling, for a network whose heads, mlp and vocabulary have these sizes.

    Where tensor x fsdp divides all of them, both slice them: a device reads its part of every
    weight for all rows of its data group. Otherwise fsdp cuts rows, as data does, and weights
    are copied along it: a device reads all that tensor does not cut, for fewer rows.
    """
    number = num_pieces(mesh, _BOTH)
    return _SLICED if all(size % number == 0 for size in sizes) else _COPIED


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
    """Within it, logical axis constraints in the model mean axes of `mesh`, as in training.

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


def param_shardings(
    mesh: AnyMesh, abstract: Any, *, rules: Rules = RULES, section: str = "parallel"
) -> Any:
    """One NamedSharding per leaf of a boxed abstract tree (`abstract_params`, `abstract_lora`).

    Args:
      mesh: where the tree lies.
      abstract: its shapes, boxed with the logical names of their axes.
      rules: a layout of the table.
      section: of the config, which has the sizes of the mesh; a refusal names it.

    Raises:
      UserError: a mesh axis does not divide the axis of a weight that it cuts.
    """
    specs = logical_to_mesh(nn.get_partition_spec(abstract), rules)
    shapes = jax.tree.map(lambda leaf: leaf.shape, unboxed(abstract))

    def sharding(path: Any, spec: PartitionSpec, shape: tuple[int, ...]) -> NamedSharding:
        for size, axes in zip(shape, spec, strict=False):
            if size % (number := num_pieces(mesh, axes)):
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise UserError(
                    f"{section}.{axes} = {number} does not divide {size}, an axis "
                    f"of {name} {list(shape)}: choose a size that divides it."
                )
        return NamedSharding(mesh, spec)

    is_spec = lambda leaf: isinstance(leaf, PartitionSpec)  # noqa: E731
    return jax.tree_util.tree_map_with_path(sharding, specs, shapes, is_leaf=is_spec)


def check_heads(mesh: AnyMesh, heads: int, kv_heads: int, section: str = "parallel") -> None:
    """Refuses a mesh that would cut a head in two.

    A projection's axis is heads x head size, which more meshes divide than the heads.

    Args:
      mesh: where the network lies.
      heads: its query heads.
      kv_heads: its key heads.
      section: as in `param_shardings`.

    Raises:
      UserError: `tensor` does not divide both numbers.
    """
    number = num_pieces(mesh, "tensor")
    for name, count in (("query", heads), ("key", kv_heads)):
        if count % number:
            raise UserError(
                f"{section}.tensor = {number} does not divide the model's {count} {name} "
                "heads: choose a size that divides them."
            )


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Sharding in training of a [B, ...] array with `ndim` axes, B cut by data and fsdp."""
    spec = logical_to_mesh_axes(("batch",) + (None,) * (ndim - 1), RULES)
    return NamedSharding(mesh, spec or PartitionSpec())


def num_pieces(mesh: AnyMesh, axes: Axes) -> int:
    """Into how many pieces these axes of the mesh cut an array's axis."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def num_shards(mesh: AnyMesh, rules: Rules = RULES) -> int:
    """Into how many shards the mesh cuts a batch."""
    return num_pieces(mesh, dict(rules)["batch"])


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
