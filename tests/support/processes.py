# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes of one command on this machine, each with simulated devices of its own."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from support.runs import ROOT


class Ended(NamedTuple):
    """What a process left."""

    status: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(
    code: str,
    *,
    num_processes: int,
    devices_each: int = 1,
    only: Sequence[int] | None = None,
    **variables: str,
) -> list[subprocess.Popen[str]]:
    """Starts `code` in each process; there `HOSTS` is what `joined` takes.

    Args:
      code: the program.
      num_processes: of the command.
      devices_each: simulated devices of each.
      only: start these alone; None: all.
      variables: of the environment.
    """
    port = free_port()
    prelude = (
        "from stepalign_jax.base.watch import Hosts\n"
        f"PORT, COUNT = {port}, {num_processes}\n"
        "import sys; INDEX = int(sys.argv[1])\n"
        "HOSTS = Hosts(f'127.0.0.1:{PORT}', COUNT, INDEX)\n"
        "OPTIONS = [f'--coordinator=127.0.0.1:{PORT}', f'--num_processes={COUNT}', "
        "f'--process_id={INDEX}']\n"
    )
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_each}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        **variables,
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", prelude + textwrap.dedent(code), str(index)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in (range(num_processes) if only is None else only)
    ]  # fmt: skip


def wait(processes: Sequence[subprocess.Popen[str]], timeout_secs: float) -> list[Ended]:
    """Waits for all of them, and leaves none behind."""
    try:
        outputs = [process.communicate(timeout=timeout_secs) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        Ended(process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def run(code: str, *, timeout_secs: float = 120, **options: object) -> list[Ended]:
    """Starts `code` in each process, and waits for all."""
    return wait(start(code, **options), timeout_secs)  # pyright: ignore[reportArgumentType]


def files(folder: Path) -> list[str]:
    """The names of all files in a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
