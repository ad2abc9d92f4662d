# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One distillation step of a 0.6B model, beside PyTorch with transformers and peft.

    python -m benchmarks.step --trainable lora --model MODEL \\
        --torch-python .venv-slow/bin/python --to docs/data/performance/step-lora.json

A step scores 256 completion tokens of 2 rollouts under the teacher (64 tokens of prompt and 512
of context before them), goes forward and backward through the solver (64 before them), and
updates. Candidates take turns. Each visit is a process of its own, since two copies of a fully
trained model with their moments need more memory than a laptop has; it takes one step that is
not timed, then three that are. MODEL is made, of random weights, if it is not there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine, summary, write_json

STEPS = "3"
CANDIDATES = {
    "ours, float32": ("benchmarks.step_ours", "--remat", "none"),
    "ours, float32, remat": ("benchmarks.step_ours", "--remat", "full"),
    "PyTorch, float32": ("benchmarks.step_torch", "--dtype", "float32"),
    "PyTorch, bfloat16": ("benchmarks.step_torch", "--dtype", "bfloat16"),
    "PyTorch, bfloat16, compiled": (
        "benchmarks.step_torch",
        "--dtype",
        "bfloat16",
        "--compiled",
    ),
}


def visit(name: str, arguments: argparse.Namespace, to: Path) -> dict[str, Any]:
    """Returns what one process of a candidate measured; its gradients lie beside `to`."""
    module, *options = CANDIDATES[name]
    python = sys.executable if module == "benchmarks.step_ours" else arguments.torch_python
    command = [python, "-m", module, *options, "--model", str(arguments.model)]
    command += ["--trainable", arguments.trainable, "--steps", STEPS, "--to", str(to)]
    # Both sides may use both cores, and no more.
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    subprocess.run(command, check=True, env=environment)
    return json.loads(to.read_text(encoding="utf-8"))


def relative_errors(ours: Path, theirs: Path) -> list[float]:
    """Returns, per weight, the norm of the gradients' difference by the norm of ours."""
    found, expected = (np.load(path.with_suffix(".npz")) for path in (ours, theirs))
    if set(found) != set(expected):
        raise SystemExit(f"{ours} and {theirs} hold gradients of unlike weights")
    norm = lambda values: float(np.linalg.norm(values.astype(np.float64)))  # noqa: E731
    return [norm(found[key] - expected[key]) / norm(found[key]) for key in found]


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Returns every candidate's visits, summed up, and how its gradients compare."""
    visits: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.candidates}
    files = {name: directory / f"{i}.json" for i, name in enumerate(visits)}
    for turn in range(arguments.rounds):
        names = list(visits) if turn % 2 == 0 else list(visits)[::-1]
        for name in names:
            visits[name].append(visit(name, arguments, files[name]))
    reference = files[arguments.candidates[0]]
    table = {}
    for name, found in visits.items():
        errors = relative_errors(reference, files[name])
        table[name] = {
            "seconds": summary(s for v in found for s in v["seconds"]),
            "first_step_seconds": summary(v["first"] for v in found),
            "peak_bytes": max(v["peak"] for v in found),
            "loss": found[0]["loss"],
            "gradient_error": {"median": statistics.median(errors), "high": max(errors)},
        }
    return {
        "trainable": arguments.trainable,
        "candidates": table,
        "machine": machine(["jax", "jaxlib", "numpy", "transformers"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainable", choices=("lora", "full"), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--torch-python", required=True, help="has torch, peft, transformers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    if not arguments.model.exists():
        make = "from pathlib import Path; from benchmarks.step_work import make_model; "
        make += f"make_model(Path({str(arguments.model)!r}))"
        subprocess.run([arguments.torch_python, "-c", make], check=True)
    with tempfile.TemporaryDirectory() as directory:
        write_json(arguments.to, measure(arguments, Path(directory)))


if __name__ == "__main__":
    main()
