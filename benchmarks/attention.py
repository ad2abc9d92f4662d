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
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from benchmarks.measure import machine, write_json
from benchmarks.sampling import RESULTS
from stepalign_jax.config.learning import ForwardKl, InitialTeacher
from stepalign_jax.config.load import load_config
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.model.config import PROJECTIONS
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.parallel.mesh import make_mesh, use_mesh
from stepalign_jax.planning.chips import open_topology
from stepalign_jax.planning.sizes import published_config
from stepalign_jax.training.optimizer import make_optimizer
from stepalign_jax.training.programs import (
    abstract_base,
    abstract_hidden,
    abstract_sequences,
    abstract_targets,
    make_programs,
)
from stepalign_jax.training.state import abstract_state, make_state, state_shardings
from stepalign_jax.training.step import Method

SIZES = published_config("Qwen3-1.7B")
LORA = LoraSpec(rank=64, alpha=128.0, targets=tuple(PROJECTIONS))
DIVERGENCE = ForwardKl(
    token_tile=256,
    token_weights=(),
    loss_temperature=1.0,
    grpo_mix=0.0,
    element_clip=0.0,
    top_k=0,
)
KEYS = ("program", "width", "kernel")
TOKENS = 1_024  # of a row that count
KERNELS, PROGRAMS = ("xla", "splash"), ("score", "update")


def measure(devices: Any, program: str, kernel: str, width: int) -> dict[str, Any]:
    """Of one program: temporaries in GiB, seconds of compilation."""
    mesh = make_mesh(ParallelConfig(data=-1, fsdp=1, tensor=1), devices)
    rows, count = len(devices), len(devices) * TOKENS
    model = Qwen3(SIZES, jnp.bfloat16, lora=LORA, remat="full", kernel=kernel)
    optimizer, teacher = (
        make_optimizer(load_config("stepalign").optimizer, num_steps=100),
        InitialTeacher(),
    )
    make = partial(make_state, optimizer=optimizer, teacher=teacher, starts_from_adapter=False)
    with use_mesh(mesh):
        state = abstract_state(mesh, SIZES, LORA, make)
        base = abstract_base(mesh, SIZES, jnp.bfloat16)
        sequences = abstract_sequences(mesh, rows=rows, width=width, num_tokens=count)
        targets = abstract_targets(mesh, num_tokens=count)
        hidden = abstract_hidden(mesh, SIZES, jnp.bfloat16, num_tokens=count)
        method = Method(model, optimizer, DIVERGENCE, teacher)
        programs = make_programs(method, shardings=state_shardings(state))
        if program == "score":
            return _compiled(programs.teacher_hidden, state, base, sequences)
        return _compiled(programs.whole, state, base, sequences, targets, hidden)


def _compiled(program: Any, *arguments: Any) -> dict[str, Any]:
    started, processor = time.monotonic(), time.process_time()
    compiled = program.lower(*arguments).compile()
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
    devices = open_topology(options.topology).devices
    if devices is None:
        raise SystemExit("libtpu is not installed: see .venv-slow in the Makefile.")
    path = RESULTS / f"attention-{options.topology.replace(':', '-')}.json"
    for case in itertools.product(options.programs, options.widths, options.kernels):
        program, width, kernel = case
        row = dict(zip(KEYS, case, strict=True))
        row |= measure(devices, program, kernel, width)
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
