# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Trees in host memory: nothing stays on the devices, and all of it comes back."""

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.runs import output_on_devices

from stepalign_jax.parallel import offload as module
from stepalign_jax.parallel.offload import HostTree, Resident, offload, restore


def make_tree() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.standard_normal((4, 6)), jnp.float32),
        "scale": (jnp.asarray(rng.standard_normal(3), jnp.bfloat16), jnp.int32(7)),
    }


def bits(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (str(leaf.dtype), np.asarray(leaf).tobytes()), tree)


def bytes_in(kind: str) -> int:
    gc.collect()
    return sum(a.nbytes for a in jax.live_arrays() if a.sharding.memory_kind == kind)


def round_trip() -> tuple[Any, Any, HostTree]:
    held = bytes_in("device")
    tree = make_tree()
    before = bits(tree)
    assert bytes_in("device") > held
    waiting = offload(tree)
    assert bytes_in("device") == held  # the device's memory is free
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(tree))
    return before, restore(waiting), waiting


def test_what_waits_comes_back_bit_for_bit():
    before, after, waiting = round_trip()
    assert bits(after) == before
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == waiting.shardings
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(waiting.arrays)}
    assert kinds == {"pinned_host"}


def test_a_platform_without_host_memory_uses_numpy(monkeypatch):
    monkeypatch.setattr(module, "has_host_memory", lambda: False)
    before, after, waiting = round_trip()
    assert bits(after) == before
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(waiting.arrays))


def test_an_empty_tree_waits_too():
    assert restore(offload({})) == {}


@pytest.mark.parametrize("host_memory", [True, False])
def test_a_frozen_tree_moves_once_and_is_restored_any_number_of_times(monkeypatch, host_memory):
    monkeypatch.setattr(module, "has_host_memory", lambda: host_memory)
    moved = []
    monkeypatch.setattr(module, "offload", lambda tree: moved.append(1) or offload(tree))
    held, tree = bytes_in("device"), make_tree()
    before, weights = bits(tree), Resident(tree)
    weights.to_device()  # it is there
    assert weights.tree is tree
    for _ in range(2):
        weights.to_host()
        weights.to_host()
        assert bytes_in("device") == held
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(weights.tree))
        weights.to_device()
        weights.to_device()
        assert bits(weights.tree) == before and bytes_in("device") > held
    assert len(moved) == 1


def test_a_tree_that_was_replaced_is_moved_anew():
    first, second = make_tree(), jax.tree.map(lambda leaf: leaf + 1, make_tree())
    after, held = bits(second), bytes_in("pinned_host")
    state = Resident(first)
    state.to_host()
    state.to_device()
    assert bytes_in("pinned_host") > held
    state.replace(second)
    assert bytes_in("pinned_host") == held  # the old tree's copy is gone
    state.to_host()
    state.to_device()
    assert bits(state.tree) == after


# A process of its own imports this module too.
EIGHT_DEVICES = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from parallel.test_offload import bits, bytes_in
    from stepalign_jax.config.schema import ParallelConfig
    from stepalign_jax.parallel.mesh import make_mesh, use_mesh
    from stepalign_jax.parallel.offload import offload, restore

    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    with use_mesh(mesh):
        values = np.random.default_rng(0).standard_normal((8, 12)).astype(np.float32)
        tree = {"cut": put(values, "fsdp", "tensor"), "copy": put(values), "new": jnp.int32(3)}
        before = bits(tree)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, tree)
        double = jax.jit(lambda t: jax.tree.map(lambda leaf: leaf + leaf, t))
        doubled = bits(double(tree))
        waiting = offload(tree)
        assert bytes_in("device") == 0, jax.live_arrays()
        (shard, *_) = waiting.arrays["cut"].addressable_shards
        assert shard.data.shape == (4, 6)  # each device's own part waits, and no more
        tree = restore(waiting)
        assert bits(tree) == before
        assert jax.tree.map(lambda leaf: leaf.sharding, tree) == shardings
        assert bits(double(tree)) == doubled and double._cache_size() == 1
    print("restored on", len(jax.devices()), "devices")
"""


def test_eight_devices_get_back_what_they_had():
    assert output_on_devices(EIGHT_DEVICES, num_devices=8) == "restored on 8 devices"
