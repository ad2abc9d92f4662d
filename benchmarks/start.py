# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From `python -m stepalign_jax.train` to the first optimizer step: cold, warm, and on what.

    python -m benchmarks.start

Trains configs/tiny.py for one step, in processes of their own: with an empty compilation
cache (cold), and again with what that one left there (warm). The processes take turns. Writes
docs/data/performance/start.json.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, summary, write_json

RESULT = Path("docs/data/performance/start.json")
CONFIG = "configs/tiny.py"
# Phases of a run, in the order of their first call; what lies between them is "preparation".
PHASES = {
    "evaluate": "evaluation and validation",
    "sample": "sample",
    "critique": "critique",
    "score": "score",
    "update": "update",
}


def child(started: float, directory: str) -> None:
    """Runs up to the end of the first step and prints seconds by phase.

    Args:
      started: `time.monotonic` of the parent when it started this process.
      directory: for the run's files.
    """
    import jax

    from stepalign_jax import train
    from stepalign_jax.base.compilation import CompilationCounter, use_compilation_cache
    from stepalign_jax.config.load import load_config

    use_compilation_cache()
    seconds: dict[str, float] = {"interpreter and imports": time.monotonic() - started}
    counter = CompilationCounter()

    def timed(name: str, phase: Any) -> Any:
        @functools.wraps(phase)
        def run(*args: Any, **options: Any) -> Any:
            begun = time.monotonic()
            result = jax.block_until_ready(phase(*args, **options))
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - begun
            if name == "update":
                _report(seconds, counter.take()["compile_seconds"], started)
            return result

        return run

    for function, name in PHASES.items():
        setattr(train, function, timed(name, getattr(train, function)))
    train.train(load_config(CONFIG, (f"--runs_dir={directory}",)))


def _report(seconds: dict[str, float], compiling: float, started: float) -> None:
    """Prints what was found and ends the process, whatever other threads still do."""
    total = time.monotonic() - started
    phases = {**seconds, "preparation": total - sum(seconds.values())}
    print(json.dumps({"total": total, "phases": phases, "compiling": compiling}), flush=True)
    os._exit(0)


def visit(cache: str) -> dict[str, Any]:
    """What one process found, with its compiled programs in the directory `cache`."""
    with tempfile.TemporaryDirectory() as directory:
        started = str(time.monotonic())
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.start", "--child", started, directory],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("STARTED", "RUNS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(float(options.child[0]), options.child[1])
        return
    visits: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in visits:
                visits[name].append(visit(cache))
    result: dict[str, Any] = {
        name: {
            "seconds_to_first_step": summary(found["total"] for found in all_found),
            "of_it_compiling": summary(found["compiling"] for found in all_found),
            "phases": {
                phase: summary(found["phases"][phase] for found in all_found)
                for phase in all_found[0]["phases"]
            },
        }
        for name, all_found in visits.items()
    }
    write_json(RESULT, result | {"machine": machine(["jax", "jaxlib"])})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
