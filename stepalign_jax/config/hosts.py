# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How a command learns which processes run it together: from options, Slurm or a TPU slice."""

import argparse
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.processes import platform_hosts
from stepalign_jax.base.watch import Hosts, Patience
from stepalign_jax.config.schema import HostsConfig

# Not keys of the config, which is the same in every process.
HOST_OPTIONS: dict[str, dict[str, Any]] = {
    "--coordinator": {
        "metavar": "HOST:PORT",
        "help": "where the first of several processes listens; Slurm and TPU slices say so "
        "themselves",
    },
    "--num_processes": {"type": int, "metavar": "N", "help": "how many there are"},
    "--process_id": {"type": int, "metavar": "I", "help": "which one this is, from 0 on"},
}

# Of commands that do not train: their config may lie where the first process alone sees it,
# and is read when they have joined.
EVALUATION_PATIENCE = Patience(beat=90.0, progress=1800.0)


def chosen_hosts(arguments: argparse.Namespace) -> Hosts | None:
    """The processes that the options name, or else the platform's; None for one alone.

    Raises:
      UserError: the options name only some of it, or what cannot be.
    """
    given = [arguments.coordinator, arguments.num_processes, arguments.process_id]
    if given == [None] * 3:
        return platform_hosts()
    if None in given:
        raise UserError(
            "--coordinator, --num_processes and --process_id go together: give all three in "
            "every process, or none where Slurm or a TPU slice says them."
        )
    hosts = Hosts(*given)
    if not hosts.coordinator.rpartition(":")[2].isdecimal():
        raise UserError(
            f"--coordinator is {hosts.coordinator}: give the first process's host and a free "
            "port, such as 10.0.0.1:8476."
        )
    if not 0 <= hosts.process < hosts.num_processes:
        raise UserError(
            f"--process_id is {hosts.process}, but {hosts.num_processes} processes have the "
            "numbers from 0 on: give each its own, below --num_processes."
        )
    return hosts


def patience(config: HostsConfig) -> Patience:
    """How long the config waits for a process."""
    return Patience(config.heartbeat_timeout_secs, config.progress_timeout_secs)
