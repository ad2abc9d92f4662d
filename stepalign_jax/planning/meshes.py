# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The meshes of a run on chips that are not there."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh, AxisType, Mesh

from stepalign_jax.config.schema import CheckpointCritic, Config
from stepalign_jax.critics.devices import make_critic_mesh, split_devices
from stepalign_jax.parallel.mesh import MESH_AXES, make_mesh
from stepalign_jax.planning.chips import Topology


class Meshes(NamedTuple):
    """Where a run's models lie; AbstractMeshes of chips that nothing is compiled for.

    Attributes:
      trained: the mesh of the model that is trained.
      critic: that of a second model as critic; else the same.
    """

    trained: Any
    critic: Any


@dataclass(frozen=True)
class _Chip:
    """Stands in for a device that nothing is compiled for; one process has them all."""

    id: int
    process_index: int = 0


def make_meshes(config: Config, topology: Topology) -> Meshes:
    """Returns the meshes that the run would make on these chips.

    Raises:
      UserError: the sizes of a mesh do not fit the number of chips.
    """
    devices: list[Any] = topology.devices or list(map(_Chip, range(topology.number)))
    own, critics = split_devices(config.critic, devices)
    trained = make_mesh(config.parallel, own)
    critic = trained
    if isinstance(config.critic, CheckpointCritic):
        critic = make_critic_mesh(config.critic, critics)
    if topology.devices is None:
        return Meshes(_abstract(trained), _abstract(critic))
    return Meshes(trained, critic)


def _abstract(mesh: Mesh) -> AbstractMesh:
    """The same sizes without devices, which the compiler alone would need."""
    return AbstractMesh(mesh.axis_sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
