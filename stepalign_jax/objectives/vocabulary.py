# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where rows of tokens and the vocabulary lie: whole on one device, or cut over a mesh.

On a mesh every device works on its own tokens and its own slice of the vocabulary:

    rows    [N, ...]  cut by data and fsdp      each device walks its own tiles; no row moves
    head    [V, D]    cut by tensor and fsdp    D is gathered once a call, V stays cut
    logits  [n, V]    cut by tensor             maxima and sums go over the tensor axis

These cuts are written out (`shard_map`) instead of left to the compiler, which may choose to
gather logits. `Cut` names other axes: of a caller's mesh, or of the pmap or shard_map that the
caller is in (docs/divergence.md).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float32, Int, Int32

from stepalign_jax.parallel.mesh import RULES

AnyMesh = Mesh | AbstractMesh

_TABLE: dict[str, Any] = dict(RULES)


@dataclass(frozen=True)
class Cut:
    """By which axes tokens and vocabulary are cut.

    Attributes:
      token_axes: cut the tokens, in the order of the array; devices along them hold the same
        heads. The loss and the gradient of the head are summed over them.
      vocab_axis: cuts V of the heads, in the order of the array; devices along it hold the
        same rows. None: V is whole.
      width_axis: cuts D of the heads; one of `token_axes`, or None.
      mesh: the mesh of these axes, where arrays are whole and a jit cuts them. None in a pmap
        or shard_map of these axes, where an array is the device's own part.
    """

    token_axes: tuple[str, ...] = ()
    vocab_axis: str | None = None
    width_axis: str | None = None
    mesh: AnyMesh | None = None

    def __post_init__(self) -> None:
        if self.width_axis is not None and self.width_axis not in self.token_axes:
            raise ValueError(f"width_axis {self.width_axis!r} must be one of token_axes")

    @property
    def axes(self) -> tuple[str, ...]:
        named = (*self.token_axes, self.vocab_axis)
        return tuple(axis for axis in named if axis is not None)

    def without(self, taken: frozenset[str]) -> "Cut":
        """The cut that is left where an enclosing shard_map has cut by the axes `taken`."""
        keep = lambda axis: None if axis in taken else axis  # noqa: E731
        return replace(
            self,
            token_axes=tuple(axis for axis in self.token_axes if axis not in taken),
            vocab_axis=keep(self.vocab_axis),
            width_axis=keep(self.width_axis),
        )


Where = AnyMesh | Cut | None


def find_cut(where: Where) -> Cut:
    """The cut of `where`: by the axes of `parallel.mesh` if it is a mesh, none if it is None.

    Axes of a mesh that an enclosing shard_map has taken are the caller's: what comes in is cut
    by them already.
    """
    if where is None:
        return Cut()
    if not isinstance(where, Cut):
        where = Cut(_TABLE["batch"], _TABLE["vocab"], _TABLE["embed"], where)
    if where.mesh is None:
        return where
    cut = where.without(frozenset(jax.sharding.get_abstract_mesh().manual_axes))
    return cut if cut.axes else Cut()


@dataclass(frozen=True)
class Vocabulary:
    """Reductions of [n, V] over V, of which a device may hold a slice.

    Attributes:
      axis: the mesh axis that cuts V (inside pmap or shard_map), or None where V is whole.
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

    def _side_by_side(self, found: jax.Array) -> jax.Array:
        """[n, k] of every device in one row, in the order of their slices, so ties keep it.

        A sum of zeros and of what is there once, because shard_map knows that all devices get
        the same sum, and does not know it of gathered values (`check_vma`).
        """
        size = jax.lax.axis_size(self.axis)
        own = jax.nn.one_hot(jax.lax.axis_index(self.axis), size, dtype=bool)
        spread = jnp.where(own[:, None], found[:, None], jnp.zeros((), found.dtype))
        return jax.lax.psum(spread, self.axis).reshape(len(found), -1)

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
        best, entries = self._side_by_side(best), self._side_by_side(entries)
        best, places = jax.lax.top_k(best, k)
        return best, jnp.take_along_axis(entries, places, axis=1)


def size_of_vocabulary(where: Where, head: jax.Array) -> int:
    """V, of which `head` may be a slice."""
    cut = find_cut(where)
    is_slice = cut.mesh is None and cut.vocab_axis is not None
    return head.shape[0] * (jax.lax.axis_size(cut.vocab_axis) if is_slice else 1)


def on_mesh(
    where: Where,
    local: Callable[[Any, Any, Vocabulary], tuple[Any, Any]],
    rows: Any,
    heads: Any,
) -> tuple[Any, Any]:
    """Runs `local(rows, heads, vocabulary) -> (row results, head sums)` where the arrays lie.

    Args:
      where: how the arrays are cut.
      local: a function of a device's rows and of its slice of the heads, that slice at full
        width. Its head sums [V slice, D] are over its own rows; here they are added up.
      rows: arrays [N, ...]. Under a mesh N is padded with zeros to a multiple of the devices.
      heads: arrays [V, D]; the vocabulary axis divides V, and the width axis D.

    Returns:
      Row results [N, ...] and head sums [V, D], as if on one device; in a pmap or shard_map of
      the caller's the device's own part of them.
    """
    cut = find_cut(where)
    on_device = functools.partial(_on_device, cut, local)
    if cut.mesh is None:
        return on_device(rows, heads)
    by_token, by_entry = (
        PartitionSpec(cut.token_axes),
        PartitionSpec(cut.vocab_axis, cut.width_axis),
    )
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    missing = -num_rows % math.prod(cut.mesh.shape[axis] for axis in cut.token_axes)
    outer = jax.sharding.get_abstract_mesh()
    results, sums = jax.shard_map(
        on_device,
        # Inside a shard_map JAX takes the mesh from the context, and no other.
        mesh=None if outer.manual_axes else cut.mesh,
        axis_names=set(cut.axes) if outer.manual_axes else set(),
        in_specs=(by_token, by_entry),
        out_specs=(by_token, by_entry),
    )(jax.tree.map(lambda array: _pad_rows(array, missing), rows), heads)
    return jax.tree.map(lambda array: array[:num_rows], results), sums


def _on_device(cut: Cut, local: Any, rows: Any, heads: Any) -> tuple[Any, Any]:
    gather = functools.partial(jax.lax.all_gather, axis_name=cut.width_axis, axis=1, tiled=True)
    whole = heads if cut.width_axis is None else jax.tree.map(gather, heads)
    results, sums = local(rows, whole, Vocabulary(cut.vocab_axis))
    return results, jax.tree.map(functools.partial(_add_over_devices, cut), sums)


def _add_over_devices(cut: Cut, head_sum: jax.Array) -> jax.Array:
    """Sums over the devices that hold other tokens; each keeps its slice of the width."""
    others = tuple(axis for axis in cut.token_axes if axis != cut.width_axis)
    if cut.width_axis is not None:
        head_sum = jax.lax.psum_scatter(
            head_sum, cut.width_axis, scatter_dimension=1, tiled=True
        )
    return jax.lax.psum(head_sum, others) if others else head_sum


def add_over_tokens(where: Where, total: jax.Array) -> jax.Array:
    """The sum over all tokens, from that over the tokens at hand."""
    cut = find_cut(where)
    return jax.lax.psum(total, cut.token_axes) if _is_by_name(cut) else total


def aligned(where: Where, rows: Any, heads: Any) -> tuple[Any, Any]:
    """Both, marked as varying over the same axes of the enclosing shard_maps.

    A derivative must vary over the axes over which its primal does. That of a row or a head
    varies wherever any of them does, but for the axes over which it is summed here. JAX sums
    what it finds marked here over the other axes.

    Raises:
      ValueError: rows differ along the axis of the vocabulary, or heads along one of tokens.
    """
    cut = find_cut(where)
    own = set() if cut.mesh is not None else set(cut.axes)
    vocab, tokens = own & {cut.vocab_axis}, own & set(cut.token_axes)
    of_rows, of_heads = (
        set().union(*map(varying, jax.tree.leaves(tree))) for tree in (rows, heads)
    )
    for what, axes in (("rows", of_rows & vocab), ("heads", of_heads & tokens)):
        if axes:
            raise ValueError(f"{what} must be the same along {', '.join(sorted(axes))}")
    everywhere = of_rows | of_heads
    rows = jax.tree.map(lambda leaf: vary(leaf, everywhere - vocab), rows)
    return rows, jax.tree.map(lambda leaf: vary(leaf, everywhere - tokens), heads)


def varying(array: Any) -> frozenset[str]:
    """Axes of the enclosing shard_maps over which JAX knows that an array may vary."""
    return jax.typeof(array).manual_axis_type.varying


def vary(array: jax.Array, axes: Any) -> jax.Array:
    """The same numbers, marked as varying over more axes; without any, the array itself."""
    more = tuple(sorted(set(axes) - varying(array)))
    return jax.lax.pcast(array, more, to="varying") if more else array


def _is_by_name(cut: Cut) -> bool:
    return cut.mesh is None and bool(cut.token_axes)


def _pad_rows(array: jax.Array, missing: int) -> jax.Array:
    return jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array
