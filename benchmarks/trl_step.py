# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole optimizer steps of a real checkpoint, beside TRL's nearest trainer.

    python -m benchmarks.trl_step --checkpoint DIRECTORY --trl-python .venv-trl/bin/python

A step of ours samples, critiques, scores and updates: `stepalign_jax.train` with the paper's
prompts and the model itself as critic. TRL's (`benchmarks.trl_peer`) samples, scores and
updates; it has no critic, so its teacher reads a fixed text of about a critique's length. So
the table has our step with and without the critique. Problems, prompts, batch, new tokens,
adapter, temperature and loss are the same; float32. Each visit is a process of its own, in
turns, and its first step, which compiles, is not counted. Writes
docs/data/performance/trl-step.json.
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

from benchmarks.measure import machine, ratios, summary, write_json
from benchmarks.sampling import RESULTS
from stepalign_jax.configs.stepalign import SOLVER_PROMPT

RANK, ALPHA, LEARNING_RATE, TEMPERATURE = 16, 32, 1e-5, 1.0
REFERENCE = "First multiply, then add what remains; write each result down before going on. "


def problems(number: int) -> list[dict[str, str]]:
    """Rows as in a file of problems: sums with two products."""
    rows = [(f"{12 + i}*{7 + i % 5}+{30 - i}", i) for i in range(number)]
    return [
        {"problem": f"What is {text}?", "answer": str((12 + i) * (7 + i % 5) + 30 - i)}
        for text, i in rows
    ]


def ours(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Seconds and tokens of the steps that a run of `train` took."""
    data = scratch / "data"
    data.mkdir(exist_ok=True)
    rows = [json.dumps(row) for row in problems(options.problems + 2)]
    files = {"train": rows[:-2], "validation": rows[-2:-1], "test": rows[-1:]}
    for name, lines in files.items():
        (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    name = f"ours-{len(list(scratch.glob('ours-*')))}"
    keys = {
        "name": name,
        "runs_dir": scratch,
        "model.path": options.checkpoint,
        "model.compute_dtype": "float32",
        "model.remat": "dots",
        "trainable.rank": RANK,
        "trainable.alpha": ALPHA,
        "problems.path": data,
        "problems.num_train": options.problems,
        "problems.num_validation": 1,
        "problems.num_test": 1,
        "problems.base_avg_below": 0.0,
        "sampling.temperature": TEMPERATURE,
        "sampling.top_k": 0,
        "sampling.top_p": 1.0,
        "sampling.max_new_tokens": options.new_tokens,
        "sampling.batch_size": options.problems,
        "critic.accepts": "any",
        "critic.max_new_tokens": options.new_tokens,
        "critic.batch_size": options.problems,
        "objective.loss_temperature": TEMPERATURE,
        "optimizer.learning_rate": LEARNING_RATE,
        "train.num_steps": options.steps,
        "train.problems_per_step": options.problems,
        "train.micro_batches": 1,
        "evaluation.num_samples": 1,
        "evaluation.num_validation_samples": 1,
        "evaluation.max_new_tokens": 1,
        "evaluation.batch_size": 1,
    }
    command = [sys.executable, "-m", "stepalign_jax.train", "--config", "stepalign"]
    peak = _run([*command, *(f"--{key}={value}" for key, value in keys.items())])
    read = lambda file: [  # noqa: E731
        json.loads(line) for line in (scratch / name / file).read_text("utf-8").splitlines()
    ]
    timings, metrics = read("timings.jsonl"), read("metrics.jsonl")
    phases = [
        {phase: row[phase] for phase in ("sample", "critique", "score", "update", "total")}
        for row in timings
    ]
    tokens = [row["solver_tokens"] for row in metrics if "solver_tokens" in row]
    return {
        "seconds": [row["total"] for row in phases],
        "without_critique": [row["total"] - row["critique"] for row in phases],
        "phases": phases,
        "tokens": tokens,
        "peak_bytes": peak,
    }


def trl(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The same of TRL's trainer."""
    reference = REFERENCE * (options.new_tokens // 16)  # 16 tokens each
    work = {
        "model": str(options.checkpoint),
        "problems": [
            {
                "prompt": SOLVER_PROMPT.replace("{problem}", row["problem"]),
                "context": reference,
            }
            for row in problems(options.problems)
        ],
        "new_tokens": options.new_tokens,
        "num_steps": options.steps,
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": LEARNING_RATE,
        "temperature": TEMPERATURE,
    }
    write_json(scratch / "work.json", work)
    files = [str(scratch / "work.json"), str(scratch / "trl.json")]
    peak = _run([options.trl_python, "-m", "benchmarks.trl_peer", *files])
    return {**json.loads((scratch / "trl.json").read_text("utf-8")), "peak_bytes": peak}


def _run(command: list[str]) -> int:
    """Runs a process; returns the most memory that it held, in bytes (Linux)."""
    # Both sides may use every core, and no more.
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env={**os.environ, **threads}, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ended with {process.returncode}")
    return usage.ru_maxrss * 2**10


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Both sides' visits, and TRL's seconds over ours in each round."""
    sides = {"ours": ours, "TRL": trl}
    visits: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(options.rounds):
        for name in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
            visits[name].append(sides[name](options, scratch))
            print(json.dumps({name: visits[name][-1]}), flush=True)
    later = lambda visit, key: statistics.mean(visit[key][1:])  # noqa: E731
    means = {
        "ours": [later(visit, "seconds") for visit in visits["ours"]],
        "ours without the critique": [later(v, "without_critique") for v in visits["ours"]],
        "TRL": [later(visit, "seconds") for visit in visits["TRL"]],
    }
    tokens = {
        name: [later(visit, "tokens") for visit in visits[name.split(" ")[0]]] for name in means
    }
    return {
        "seconds_per_step": {name: summary(values) for name, values in means.items()},
        "completion_tokens_per_second": {
            name: summary(t / s for t, s in zip(tokens[name], means[name], strict=True))
            for name in means
        },
        "trl_over_ours": {
            name: summary(ratios(means, "TRL", to=name)) for name in means if name != "TRL"
        },
        "peak_bytes": {name: max(v["peak_bytes"] for v in visits[name]) for name in visits},
        "visits": visits,
        "machine": machine(["jax", "jaxlib", "numpy"]),
    }


def main() -> None:
    """Writes docs/data/performance/trl-step.json, and prints each visit as it ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a Hugging Face directory"
    )
    parser.add_argument("--trl-python", required=True, help="has trl, peft and torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of a visit; the first compiles")
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, Path(scratch))
    write_json(RESULTS / "trl-step.json", found)
    print(json.dumps({k: v for k, v in found.items() if k != "visits"}, indent=1))


if __name__ == "__main__":
    main()
