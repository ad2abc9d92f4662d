# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where rows of tokens and the vocabulary lie: whole on one device, or cut over a mesh.

On a mesh every device works on its own tokens and its own slice of the vocabulary:

    rows    [N, ...]  cut by data and fsdp      each device walks its own tiles; no row moves
    head    [V, D]    cut by tensor and fsdp    D is gathered once a call, V stays cut
    logits  [n, V]    cut by tensor             maxima and sums go over the tensor axis

These cuts are written out (`shard_map`) instead of left to the compiler, which may choose to
gather logits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float32, Int, Int32

from stepalign_jax.parallel.mesh import RULES

AnyMesh = Mesh | AbstractMesh

_TABLE: dict[str, Any] = dict(RULES)
_TOKEN_AXES: tuple[str, ...] = _TABLE["batch"]
_VOCAB_AXIS: str = _TABLE["vocab"]
_WIDTH_AXIS: str = _TABLE["embed"]


@dataclass(frozen=True)
class Vocabulary:
    """Reductions of [n, V] over V, of which a device may hold a slice.

    Attributes:
      axis: the mesh axis that cuts V (inside shard_map), or None where V is whole.
    """

    axis: str | None

    def sum(self, values: Float32[Array, "n V"]) -> Float32[Array, " n"]:
        local = jnp.sum(values, axis=-1)
        return local if self.axis is None else jax.lax.psum(local, self.axis)

    def max(self, values: Float32[Array, "n V"]) -> Float32[Array, " n"]:
        local = jnp.max(values, axis=-1)
        return local if self.axis is None else jax.lax.pmax(local, self.axis)

    def logsumexp(self, logits: Float32[Array, "n V"]) -> Float32[Array, " n"]:
        """At least one entry of each row is finite."""
        largest = self.max(logits)
        return largest + jnp.log(self.sum(jnp.exp(logits - largest[:, None])))

    def holds(
        self, tokens: Int[Array, " n"], values: Float32[Array, "n V"]
    ) -> Bool[Array, "n V"]:
        """True where the entry is the row's token."""
        ids = jax.lax.broadcasted_iota(tokens.dtype, values.shape, 1)
        return ids == self._places(tokens, values)[:, None]

    def pick(
        self, values: Float32[Array, "n V"], tokens: Int[Array, " n"]
    ) -> Float32[Array, " n"]:
        """The value at each row's token, from the device that holds it."""
        places, size = self._places(tokens, values), values.shape[1]
        local = jnp.take_along_axis(values, jnp.clip(places, 0, size - 1)[:, None], axis=1)
        if self.axis is None:
            return local[:, 0]
        here = (places >= 0) & (places < size)
        return jax.lax.psum(jnp.where(here, local[:, 0], 0.0), self.axis)

    def _places(
        self, tokens: Int[Array, " n"], values: Float32[Array, "n V"]
    ) -> Int[Array, " n"]:
        """The tokens counted from where this device's slice begins."""
        if self.axis is None:
            return tokens
        return tokens - jax.lax.axis_index(self.axis) * values.shape[1]

    def kth_largest(self, values: Float32[Array, "n V"], k: int) -> Float32[Array, " n"]:
        """The k-th largest value of each row; k is at most V."""
        return self.largest(values, k)[0][:, -1]

    def largest(
        self, values: Float32[Array, "n V"], k: int
    ) -> tuple[Float32[Array, "n k"], Int32[Array, "n k"]]:
        """The k largest values of each row, largest first, and their entries; k at most V.

        Of equal values the lower entry comes first.
        """
        best, entries = jax.lax.top_k(values, min(k, values.shape[1]))
        if self.axis is None:
            return best, entries
        entries = entries + jax.lax.axis_index(self.axis) * values.shape[1]
        # Devices stand in the order of their slices, so that ties keep it too.
        best, entries = (
            jax.lax.all_gather(found, self.axis, axis=1, tiled=True)
            for found in (best, entries)
        )
        best, places = jax.lax.top_k(best, k)
        return best, jnp.take_along_axis(entries, places, axis=1)


def on_mesh(
    mesh: AnyMesh | None,
    local: Callable[[Any, Any, Vocabulary], tuple[Any, Any]],
    rows: Any,
    heads: Any,
) -> tuple[Any, Any]:
    """Runs `local(rows, heads, vocabulary) -> (row results, head sums)` where the arrays lie.

    Args:
      mesh: the mesh, or None for one device. It has the axes of `parallel.mesh`.
      local: a function of a device's rows and of its slice of the heads, that slice at full
        width. Its head sums [V slice, D] are over its own rows; here they are added up.
      rows: arrays [N, ...]. N is padded with zeros to a multiple of the devices.
      heads: arrays [V, D]; `tensor` divides V, and `fsdp` D.

    Returns:
      Row results [N, ...] and head sums [V, D], as if on one device.
    """
    if mesh is None:
        return local(rows, heads, Vocabulary(None))

    def on_device(rows: Any, heads: Any) -> tuple[Any, Any]:
        whole = jax.tree.map(
            lambda head: jax.lax.all_gather(head, _WIDTH_AXIS, axis=1, tiled=True), heads
        )
        results, sums = local(rows, whole, Vocabulary(_VOCAB_AXIS))
        return results, jax.tree.map(_add_over_devices, sums)

    by_token, by_entry = PartitionSpec(_TOKEN_AXES), PartitionSpec(_VOCAB_AXIS, _WIDTH_AXIS)
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    missing = -num_rows % math.prod(mesh.shape[axis] for axis in _TOKEN_AXES)
    results, sums = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(by_token, by_entry),
        out_specs=(by_token, by_entry),
        check_vma=False,  # nothing is differentiated through it
    )(jax.tree.map(lambda array: _pad_rows(array, missing), rows), heads)
    return jax.tree.map(lambda array: array[:num_rows], results), sums


def _add_over_devices(head_sum: jax.Array) -> jax.Array:
    """Sums over the devices that hold other tokens; each keeps its slice of the width."""
    others = tuple(axis for axis in _TOKEN_AXES if axis != _WIDTH_AXIS)
    head_sum = jax.lax.psum_scatter(head_sum, _WIDTH_AXIS, scatter_dimension=1, tiled=True)
    return jax.lax.psum(head_sum, others)


def _pad_rows(array: jax.Array, missing: int) -> jax.Array:
    return jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array
