# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One distillation step of a 0.6B model, beside PyTorch with transformers and peft.

    python -m benchmarks.step --trainable lora --torch-python .venv-slow/bin/python
    python -m benchmarks.step --trainable full --torch-python .venv-slow/bin/python

A step scores 256 completion tokens of 2 rollouts under the teacher (64 tokens of prompt and 512
of context before them), goes forward and backward through the solver (64 before them), and
updates. Candidates take turns. Each visit is a process of its own, since two copies of a fully
trained model with their moments need more memory than a laptop has; it takes two steps that
are not timed, then two that are. Writes docs/data/performance/step-<trainable>.json, and
docs/images/performance-step.png once both are there. About 25 minutes each on two cores.
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

from benchmarks.measure import machine, summary, worth_a_turn, write_json
from benchmarks.plots import draw_bars, plt, save
from benchmarks.shapes import QWEN3_0_6B, write_checkpoint
from benchmarks.step_work import flops

RESULTS = Path("docs/data/performance")
PLOT = Path("docs/images/performance-step.png")
TRAINABLE = ("lora", "full")
STEPS = "2"
CANDIDATES = {
    "ours, float32": ("benchmarks.step_ours", "--remat", "dots"),
    "ours, float32, all saved": ("benchmarks.step_ours", "--remat", "none"),
    "PyTorch, float32": ("benchmarks.step_torch", "--dtype", "float32"),
    "PyTorch, float32, compiled": (
        "benchmarks.step_torch",
        "--dtype",
        "float32",
        "--compiled",
    ),
    "PyTorch, bfloat16": ("benchmarks.step_torch", "--dtype", "bfloat16"),
    "PyTorch, bfloat16, compiled": (
        "benchmarks.step_torch",
        "--dtype",
        "bfloat16",
        "--compiled",
    ),
}


def visit(name: str, model: Path, arguments: argparse.Namespace, to: Path) -> dict[str, Any]:
    """Returns what one process of a candidate measured; its gradients lie beside `to`."""
    module, *options = CANDIDATES[name]
    python = sys.executable if module == "benchmarks.step_ours" else arguments.torch_python
    command = [python, "-m", module, *options, "--model", str(model)]
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


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Returns every candidate's visits, summed up, and how its gradients compare."""
    model = arguments.checkpoint or scratch / "model"
    if not (model / "model.safetensors").exists():
        write_checkpoint(model, QWEN3_0_6B)
    candidates = arguments.candidates or worth_a_turn(CANDIDATES)
    visits: dict[str, list[dict[str, Any]]] = {name: [] for name in candidates}
    files = {name: scratch / f"{i}.json" for i, name in enumerate(visits)}
    for turn in range(arguments.rounds):
        names = list(visits) if turn % 2 == 0 else list(visits)[::-1]
        for name in names:
            visits[name].append(visit(name, model, arguments, files[name]))
    reference = candidates[0]
    table = {}
    for name, found in visits.items():
        errors = relative_errors(files[reference], files[name])
        pairs = zip(found, visits[reference], strict=True)
        means = [[statistics.mean(v["seconds"]) for v in pair] for pair in pairs]
        table[name] = {
            "seconds": summary(s for v in found for s in v["seconds"]),
            "of_ours": summary(theirs / ours for theirs, ours in means),
            "first_step_seconds": summary(v["first"] for v in found),
            "peak_bytes": max(v["peak"] for v in found),
            "loss": found[0]["loss"],
            "gradient_error": {"median": statistics.median(errors), "high": max(errors)},
            "product_flops_per_second": summary(v["product_flops_per_second"] for v in found),
        }
    best = max(
        row["product_flops_per_second"]["high"]
        for name, row in table.items()
        if name.startswith("ours")
    )
    return {
        "trainable": arguments.trainable,
        "candidates": table,
        "flops": flops(arguments.trainable),
        "seconds_at_our_best_rate": flops(arguments.trainable) / best,
        "machine": machine(["jax", "jaxlib", "numpy", "transformers"]),
    }


def plot(found: dict[str, dict[str, Any]]) -> None:
    """Seconds of every candidate with an adapter on the left, with all weights on the right."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 3))
    for side, (trainable, result) in zip(axes, found.items(), strict=True):
        table = result["candidates"]
        seconds = {name: table[name]["seconds"] for name in table}
        draw_bars(side, seconds, ours=next(name for name in table if name.startswith("ours")))
        least = result["seconds_at_our_best_rate"]
        side.axvline(least, color="k", ls="--", label="XLA's products alone")
        side.set(title=f"One step, 0.6B, {trainable}", xlabel="seconds")
        side.legend(loc="lower right")
    save(figure, PLOT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainable", choices=TRAINABLE, required=True)
    parser.add_argument("--torch-python", required=True, help="has torch, peft, transformers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES)
    parser.add_argument("--checkpoint", type=Path, help="keep the weights in this directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = measure(arguments, Path(directory))
    write_json(RESULTS / f"step-{arguments.trainable}.json", result)
    print(json.dumps(result, indent=1))
    files = {trainable: RESULTS / f"step-{trainable}.json" for trainable in TRAINABLE}
    if all(file.exists() for file in files.values()):
        plot({name: json.loads(file.read_text("utf-8")) for name, file in files.items()})


if __name__ == "__main__":
    main()
