# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory and compile time of scoring and the update, by XLA's attention and by splash.

    python -m benchmarks.attention --topology v5e:1x1 --widths 4096 8192

Needs libtpu and no TPU: the programs of a Qwen3-1.7B with an adapter of rank 64, bfloat16, one
row per chip, are compiled for the topology and not run. Writes
docs/data/performance/attention-TOPOLOGY.json.
"""

import argparse
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, write_json
from benchmarks.sampling import RESULTS
from stepalign_jax.config.load import load_config
from stepalign_jax.planning.chips import Topology, open_topology
from stepalign_jax.planning.meshes import make_meshes
from stepalign_jax.planning.program import Program
from stepalign_jax.planning.programs import RunPrograms
from stepalign_jax.planning.sizes import published_config
from stepalign_jax.planning.workload import workload

SIZES = published_config("Qwen3-1.7B")
KEYS = ("program", "width", "kernel")
TOKENS = 1_024  # of a row that count
KERNELS, PROGRAMS = ("xla", "splash"), ("score", "update")


def measure(topology: Topology, name: str, kernel: str, width: int) -> dict[str, Any]:
    """Of one program: temporaries in GiB, seconds of compilation."""
    config = load_config("stepalign", (f"--model.attention={kernel}",))
    rows = {"rows": topology.number, "parts": 1, "solver_row": width, "teacher_row": width}
    work = workload(config)._replace(completion=TOKENS, **rows)
    programs = RunPrograms(config, SIZES, make_meshes(config, topology))
    return _compiled(next(programs.phase(name, work)))


def _compiled(program: Program) -> dict[str, Any]:
    started, processor = time.monotonic(), time.process_time()
    compiled = program.lower().compile()
    memory = compiled.memory_analysis()
    return {
        "temporaries_gib": round(memory.temp_size_in_bytes / 2**30, 3),
        "kernel_calls": len(re.findall(r"tpu_custom_call", compiled.as_text())),
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
    }


def main() -> None:
    """Writes the file, and prints each pair of programs as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:1x1", help="v5e:1x1, v5e:2x4, v6e:2x4, ...")
    parser.add_argument("--widths", type=int, nargs="+", default=[4_096, 8_192])
    parser.add_argument("--kernels", nargs="+", default=KERNELS, choices=KERNELS)
    parser.add_argument("--programs", nargs="+", default=PROGRAMS, choices=PROGRAMS)
    options = parser.parse_args()
    topology = open_topology(options.topology)
    if topology.devices is None:
        raise SystemExit("libtpu is not installed: see .venv-slow in the Makefile.")
    path = RESULTS / f"attention-{options.topology.replace(':', '-')}.json"
    for case in itertools.product(options.programs, options.widths, options.kernels):
        program, width, kernel = case
        row = dict(zip(KEYS, case, strict=True))
        row |= measure(topology, program, kernel, width)
        print(json.dumps(row), flush=True)
        add(path, row)


def add(path: Path, row: dict[str, Any]) -> None:
    """Puts it into the file, in place of an older row of the same program."""
    rows = json.loads(path.read_text())["programs"] if path.exists() else []
    same = lambda other: [other[key] for key in KEYS]  # noqa: E731
    rows = sorted([r for r in rows if same(r) != same(row)] + [row], key=same)
    write_json(path, {"machine": machine(["jax", "jaxlib", "libtpu"]), "programs": rows})


if __name__ == "__main__":
    main()
