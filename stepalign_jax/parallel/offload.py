# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights that wait in host memory while another model has the devices.

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


class FrozenWeights:
    """Weights that no step changes, on their devices or waiting.

    Once they have waited, a copy stays in host memory: nothing has to be moved to leave the
    devices again.
    """

    def __init__(self, tree: Any):
        """Args: `tree` of jax.Array on devices; this object deletes them when they leave."""
        self._tree = tree
        self._waiting: HostTree | None = None

    @property
    def tree(self) -> Any:
        """The weights, on their devices; without data while they wait."""
        return self._tree

    def leave(self) -> None:
        """Frees the devices of these weights."""
        if self._waiting is None:
            self._waiting = offload(self._tree)
        else:
            delete(self._tree)

    def come(self) -> None:
        """Puts the weights back where they were before they left."""
        if self._waiting is not None:
            self._tree = restore(self._waiting)
