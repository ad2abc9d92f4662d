# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Trees that are kept in host memory while another model has the devices.

    waiting = offload(state)     the devices' memory is free; `state` may not be used any more
    state = restore(waiting)     the same bits, cut over the same devices

Where the platform has pinned host memory (TPU, GPU, CPU), the arrays stay JAX arrays, cut
as they were, each part in the memory of its own host; elsewhere they become NumPy arrays.
On a GPU the runtime bounds pinned memory, at 64 GiB a process unless the environment
variable XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB says otherwise.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

_HOST_MEMORY = "pinned_host"


@dataclass(frozen=True)
class HostTree:
    """A tree that waits in host memory.

    Attributes:
      arrays: its leaves there, cut as on the devices, or whole as NumPy arrays.
      shardings: where each leaf goes back to.
    """

    arrays: Any
    shardings: Any


def has_host_memory() -> bool:
    """Whether this platform's devices can address pinned host memory."""
    return any(m.kind == _HOST_MEMORY for m in jax.local_devices()[0].addressable_memories())


def offload(tree: Any) -> HostTree:
    """Moves a tree of jax.Array to host memory; the arrays on the devices are deleted."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, tree)
    if has_host_memory():
        targets = jax.tree.map(lambda s: s.with_memory_kind(_HOST_MEMORY), shardings)
        arrays = jax.block_until_ready(jax.device_put(tree, targets))
    else:
        arrays = jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)
    delete(tree)
    return HostTree(arrays, shardings)


def restore(waiting: HostTree) -> Any:
    """Returns the tree on its devices; the copy in host memory is the caller's to drop."""
    return jax.block_until_ready(jax.device_put(waiting.arrays, waiting.shardings))


def delete(tree: Any) -> None:
    """Frees the memory of a tree at once; none of its arrays may be used again."""
    for leaf in jax.tree.leaves(tree):
        leaf.delete()


class Resident:
    """One tree that lives on devices, or in host memory while another model has them.

        weights = Resident(tree)    weights.to_host()    weights.to_device()

    What has not been replaced since it was last in host memory still has its copy there, so
    frozen weights are moved off the devices once, and afterwards only deleted from them.
    """

    def __init__(self, tree: Any = None):
        """Args: `tree` of jax.Array on devices, which `to_host` deletes there; None: later."""
        self._tree = tree
        self._host_copy: HostTree | None = None
        self._on_host = False

    @property
    def tree(self) -> Any:
        """The tree on its devices; its arrays are deleted while it is in host memory."""
        return self._tree

    def replace(self, tree: Any) -> None:
        """Holds another tree from now on, on the devices; a host copy of the old one goes."""
        self._tree, self._host_copy, self._on_host = tree, None, False

    def to_host(self) -> None:
        """Frees the devices of this tree; nothing happens if it is in host memory."""
        if self._on_host:
            return
        if self._host_copy is None:
            self._host_copy = offload(self._tree)
        else:
            delete(self._tree)
        self._on_host = True

    def to_device(self) -> None:
        """Puts the tree back where it was; nothing happens if it is there."""
        if self._on_host and self._host_copy is not None:
            self._tree = restore(self._host_copy)
            self._on_host = False
