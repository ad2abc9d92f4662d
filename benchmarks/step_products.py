# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false
"""The matrix products of benchmarks/step.py by themselves, in XLA and in PyTorch.

    .venv-slow/bin/python -m benchmarks.step_products

Each product of a step with an adapter, in its own shape and with nothing else around it, takes
turns between the two frameworks in one process. Multiplied by how often a step has it, the sum
is what neither goes below with its products as they are. Products with weights and with the
output head only: attention and the adapter come on top of it, on both sides. Writes
docs/data/performance/step-products.json. About two minutes on two cores.
"""

import argparse
import json
import os
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


def weight_products() -> dict[Shape, int]:
    """Returns how often a step multiplies [rows, inputs] by [inputs, outputs].

    The teacher and the solver go forward through every projection, the solver back to its
    input; the head is read by both, and once more on the way back.
    """
    hf, counts = QWEN3_0_6B, {}
    width, mlp = hf["hidden_size"], hf["intermediate_size"]
    queries = hf["num_attention_heads"] * hf["head_dim"]
    keys = hf["num_key_value_heads"] * hf["head_dim"]
    projections = [(width, queries), (width, keys), (width, keys), (queries, width)]
    projections += [(width, mlp), (width, mlp), (mlp, width)]
    teacher = work.SEQUENCES * (work.PROMPT + work.CONTEXT + work.COMPLETION)
    solver = work.SEQUENCES * (work.PROMPT + work.COMPLETION)
    found = [
        shape
        for i, o in projections
        for shape in ((teacher, i, o), (solver, i, o), (solver, o, i))
    ]
    for shape in found:
        counts[shape] = counts.get(shape, 0) + hf["num_hidden_layers"]
    tokens = work.SEQUENCES * work.COMPLETION
    counts[tokens, width, hf["vocab_size"]] = 2
    counts[tokens, hf["vocab_size"], width] = 1
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
    table = []
    for shape, count in weight_products().items():
        found = interleaved(candidates(shape), rounds=arguments.rounds)
        rate = 2 * np.prod(np.array(shape, float))
        row = {"shape": shape, "count": count}
        for name, values in found.items():
            seconds[name] += count * np.array(values)
            row[name] = summary(rate / np.array(values))
        table.append(row)
        print(json.dumps(row), flush=True)
    result = {
        "products": table,
        "seconds": {name: summary(values.tolist()) for name, values in seconds.items()},
        "of_xla": summary((seconds["PyTorch"] / seconds["XLA"]).tolist()),
        "flops": sum(
            2.0 * np.prod(np.array(s, float)) * n for s, n in weight_products().items()
        ),
        "machine": machine(["jax", "jaxlib", "torch", "numpy"]),
    }
    write_json(TO, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
