# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What one chip has, as its maker says, and the devices of a TPU topology without a TPU."""

import math
import os
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
      memory: bytes that programs may take; of a TPU those that its compiler grants.
      flops: products per second in 16 bits, dense, times two.
      bandwidth: bytes per second of its main memory.
    """

    memory: float
    flops: float
    bandwidth: float


_KEPT = 8 * 2**20  # of a TPU's memory, by its compiler

# TPUs: cloud.google.com/tpu/docs, "System architecture" of each; their memory is what libtpu's
# compiler refuses to exceed, a little less than the chip has, found by giving it one array
# (tests/planning/test_verdicts_tpu.py). GPUs: NVIDIA's data sheets.
TPUS = {
    "v5e": Chip(15.75 * GIB - _KEPT, 197e12, 819e9),
    "v5p": Chip(95.75 * GIB - _KEPT, 459e12, 2_765e9),
    "v6e": Chip(31.25 * GIB - _KEPT, 918e12, 1_640e9),
}
GPUS = {
    "t4": Chip(15 * GIB, 65e12, 320e9),
    "l4": Chip(22 * GIB, 121e12, 300e9),
    "a100-40": Chip(39 * GIB, 312e12, 1_555e9),
    "a100-80": Chip(79 * GIB, 312e12, 2_039e9),
    "h100": Chip(79 * GIB, 989e12, 3_350e9),
    "h200": Chip(140 * GIB, 989e12, 4_800e9),
}


_CHIPS_OF_A_HOST = 8  # at most, of v5e and v6e, whose chips form a plane


class Topology(NamedTuple):
    """Chips that a run is planned for.

    Attributes:
      name: `v5e:2x4`, or `h100:4`.
      chip: one of them.
      devices: one per chip, only good for compiling; None where no compiler is at hand, and all
        that is said is an estimate.
      number: of chips.
    """

    name: str
    chip: Chip
    devices: list[Any] | None
    number: int


def open_topology(name: str) -> Topology:
    """Returns the chips called `name`: `v5e:2x4` of a TPU, `h100:4` of GPUs.

    Raises:
      UserError: there is no such chip or no such arrangement of them.
    """
    kind, _, shape = name.partition(":")
    sides = shape.split("x")
    if kind not in TPUS | GPUS or not all(side.isdecimal() and int(side) for side in sides):
        known = ", ".join([*(f"{tpu}:2x4" for tpu in TPUS), *(f"{gpu}:4" for gpu in GPUS)])
        raise UserError(
            f"--topology {name!r} is unknown: name a chip and how many, as {known}."
        )
    grid = [int(side) for side in sides]
    number = math.prod(grid)
    if kind in GPUS:
        return Topology(name, GPUS[kind], None, number)
    devices = _tpu_devices(name, grid)
    return Topology(name, TPUS[kind], devices, number if devices is None else len(devices))


def _tpu_devices(name: str, grid: list[int]) -> list[Any] | None:
    """The devices that libtpu compiles for; None where it is not installed."""
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    # Else libtpu asks the machine which TPU it is, and waits where it is none.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    bounds = {}
    if len(grid) == 2 and math.prod(grid) <= _CHIPS_OF_A_HOST:
        # By default a host has four chips, no fewer and no more.
        bounds = {"chips_per_host_bounds": [*grid, 1]}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds)
    except Exception as error:  # libtpu's own kinds, which JAX does not name
        raise UserError(
            f"the TPU compiler knows no topology {name!r} ({_first_line(error)}): "
            "take one that is rented, such as v5e:2x4, v6e:2x4 or v5p:2x2x1."
        ) from error
    return list(found.devices)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
