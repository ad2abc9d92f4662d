# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false
"""The matrix products of benchmarks/step.py by themselves, in XLA and in PyTorch.

    JAX_PLATFORMS=cpu .venv-slow/bin/python -m benchmarks.step_products

Each product of a step with an adapter, in its own shape and with nothing else around it, takes
turns between the two frameworks in one process. Multiplied by how often a step has it, the sum
is what neither goes below with its products as they are. Products with weights and with the
output head only: attention and the adapter come on top of it, on both sides. Writes
docs/data/performance/step-products.json. About two minutes on two cores.
"""

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# PyTorch's threads would go on spinning for a while and take a core from XLA's next turn.
os.environ["OMP_WAIT_POLICY"] = "passive"

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import step_work as work
from benchmarks.measure import interleaved, machine, summary, write_json
from benchmarks.shapes import QWEN3_0_6B

TO = Path("docs/data/performance/step-products.json")
Shape = tuple[int, int, int]  # rows, inputs, outputs


def products() -> Counter[Shape]:
    """Returns how often a step multiplies [rows, inputs] by [inputs, outputs].

    The teacher and the solver go forward through every projection, the solver back to its
    input; the head is read by both, and once more on the way back.
    """
    teacher, solver = work.SEQUENCES * work.TEACHER, work.SEQUENCES * work.SOLVER
    layers, width = QWEN3_0_6B["num_hidden_layers"], QWEN3_0_6B["hidden_size"]
    counts: Counter[Shape] = Counter()
    for inputs, outputs in work.projections():
        counts[teacher, inputs, outputs] += layers
        counts[solver, inputs, outputs] += layers
        counts[solver, outputs, inputs] += layers
    tokens, vocabulary = work.SEQUENCES * work.COMPLETION, QWEN3_0_6B["vocab_size"]
    counts[tokens, width, vocabulary] += 2
    counts[tokens, vocabulary, width] += 1
    return counts


def candidates(shape: Shape) -> dict[str, Callable[[], object]]:
    """The product in both frameworks; weights lie as each of them has them."""
    rows, inputs, outputs = shape
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, inputs), np.float32)
    weight = random.standard_normal((inputs, outputs), np.float32)
    ours = (jnp.asarray(x), jnp.asarray(weight))
    theirs = (torch.from_numpy(x), torch.from_numpy(weight.T.copy()))
    multiply = jax.jit(jnp.matmul)
    return {
        "XLA": lambda: multiply(*ours).block_until_ready(),
        "PyTorch": lambda: torch.nn.functional.linear(*theirs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    seconds = {name: np.zeros(arguments.rounds) for name in ("XLA", "PyTorch")}
    table, flops = [], 0
    for shape, count in products().items():
        found = interleaved(candidates(shape), rounds=arguments.rounds)
        once = 2 * math.prod(shape)
        flops += count * once
        row = {"shape": shape, "count": count}
        for name, values in found.items():
            seconds[name] += count * np.array(values)
            row[name] = summary(once / np.array(values))
        table.append(row)
        print(json.dumps(row), flush=True)
    result = {
        "products": table,
        "seconds": {name: summary(values.tolist()) for name, values in seconds.items()},
        "of_xla": summary((seconds["PyTorch"] / seconds["XLA"]).tolist()),
        "flops": flops,
        "machine": machine(["jax", "jaxlib", "torch", "numpy"]),
    }
    write_json(TO, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
