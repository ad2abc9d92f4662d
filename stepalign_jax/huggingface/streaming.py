# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One tensor from its file to its place in a sharded, stacked leaf."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from stepalign_jax.huggingface.names import TensorPlace
from stepalign_jax.huggingface.safetensors_files import TensorEntry, read_tensor

Box = tuple[slice, ...]  # one slice with bounds per axis


def empty_leaf(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> jax.Array:
    """A leaf whose layers are still to be written."""
    return _maker(shape, dtype, sharding)()


@functools.cache  # a jit of its own would compile again at every load
def _maker(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> Any:
    return jax.jit(lambda: jax.lax.empty(shape, dtype), out_shardings=sharding)


def place_tensor(
    entry: TensorEntry,
    place: TensorPlace,
    sharding: NamedSharding,
    dtype: np.dtype,
    leaf: jax.Array | None,
) -> jax.Array:
    """The leaf with this tensor in it: `leaf` itself, written in place, where it is stacked.

    Args:
      entry: the tensor in its file.
      place: where it goes.
      sharding: of the leaf; the layers are not cut.
      dtype: of the leaf.
      leaf: donated; None where the tensor is the whole leaf.
    """
    if place.layer is None:
        return _on_devices(entry, place, sharding, dtype)
    of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return _writer(sharding)(leaf, _on_devices(entry, place, of_layer, dtype), place.layer)


@functools.cache
def _writer(sharding: NamedSharding) -> Any:
    """(leaf, tensor, layer) -> the leaf with that layer."""

    def write(leaf: jax.Array, tensor: jax.Array, layer: jax.Array) -> jax.Array:
        written = jax.lax.dynamic_update_index_in_dim(_bits(leaf), _bits(tensor), layer, axis=0)
        return jax.lax.bitcast_convert_type(written, leaf.dtype)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


@jax.jit
def read_layer(leaf: jax.Array, layer: int) -> jax.Array:
    """One layer of a stacked leaf."""
    read = jax.lax.dynamic_index_in_dim(_bits(leaf), layer, keepdims=False)
    return jax.lax.bitcast_convert_type(read, leaf.dtype)


def _bits(x: jax.Array) -> jax.Array:
    """The same bytes as unsigned integers; XLA moves bfloat16 30 times as slowly on a CPU."""
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def _on_devices(
    entry: TensorEntry, place: TensorPlace, sharding: NamedSharding, dtype: np.dtype
) -> jax.Array:
    """The tensor in our orientation; this process reads what its own devices hold."""
    boxes = {
        device: _bounded(cuts or (), place.shape)
        for device, cuts in sharding.addressable_devices_indices_map(place.shape).items()
    }
    # Read at once, since several devices may hold the same part, or columns of the same rows.
    needed = _hull(list(boxes.values()))
    in_file = needed[::-1] if place.transposed else needed
    host = read_tensor(entry, in_file, dtype=dtype, transpose=place.transposed)
    pieces = [
        jax.device_put(host[_within(box, needed)], device) for device, box in boxes.items()
    ]
    return jax.make_array_from_single_device_arrays(place.shape, sharding, pieces)


def _bounded(cuts: Sequence[slice], shape: Sequence[int]) -> Box:
    return tuple(slice(*cut.indices(n)[:2]) for cut, n in zip(cuts, shape, strict=True))


def _hull(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds them all."""
    return tuple(
        slice(min(cut.start for cut in cuts), max(cut.stop for cut in cuts))
        for cuts in zip(*boxes, strict=True)
    )


def _within(box: Box, outer: Box) -> Box:
    """`box` as seen from the first corner of `outer`."""
    return tuple(
        slice(cut.start - edge.start, cut.stop - edge.start)
        for cut, edge in zip(box, outer, strict=True)
    )
