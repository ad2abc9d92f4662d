# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which devices a second model as critic takes."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import (
    CheckpointCritic,
    CriticConfig,
    OwnDevices,
    ParallelConfig,
)
from stepalign_jax.parallel.mesh import make_mesh


def split_devices(config: CriticConfig, devices: Sequence[Any]) -> tuple[Any, Any]:
    """The devices of the model that is trained, and those of the critic.

    All of them for both, unless the critic has its own: then it has the last ones of each
    process, since a process can take part in no program that has none of its devices.

    Raises:
      UserError: the critic's own devices leave none to train on, or the processes cannot
        share them equally.
    """
    placement = getattr(config, "placement", None)
    if not isinstance(placement, OwnDevices):
        return devices, devices
    if placement.num_devices >= len(devices):
        raise UserError(
            f"critic.placement.num_devices is {placement.num_devices}, but of {len(devices)} "
            "device(s) at least one must be left to train on: lower it, or let the models "
            "share all devices with critic.placement=in_turns (or shared)."
        )
    by_process: dict[int, list[Any]] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    own, rest = divmod(placement.num_devices, len(by_process))
    if rest or any(len(mine) <= own for mine in by_process.values()):
        raise UserError(
            f"critic.placement.num_devices is {placement.num_devices}, which "
            f"{len(by_process)} processes cannot share so that each of them has devices for "
            "the critic and for training: give a multiple of their number, and less than all."
        )
    split = lambda part: [device for mine in by_process.values() for device in mine[part]]  # noqa: E731
    return split(slice(None, -own)), split(slice(-own, None))


def make_critic_mesh(config: CheckpointCritic, devices: Sequence[Any]) -> Mesh:
    """The mesh of a second model as critic: weights cut by tensor alone, the rest are copies.

    Decoding reads every weight for every token, so it does not pay to gather them (fsdp).

    Raises:
      UserError: `critic.tensor` does not divide the number of devices.
    """
    tensor = config.tensor
    if len(devices) % tensor:
        raise UserError(
            f"critic.tensor is {tensor}, which does not divide the critic's "
            f"{len(devices)} device(s): choose a size that divides their number."
        )
    copies = len(devices) // tensor
    return make_mesh(ParallelConfig(data=copies, fsdp=1, tensor=tensor), devices)
