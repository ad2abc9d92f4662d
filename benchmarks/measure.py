# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How every benchmark here measures: candidates take turns in one run; medians and spread.

A candidate that runs alone for a minute meets another machine than its rival a minute later.
Turns share what the machine does meanwhile, so their ratio means something. Nothing here
imports JAX: a rival in another framework, in a process of its own, measures the same way.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Returns seconds per candidate, one number a round.

    Each candidate runs once before the clock starts (compilation) if it is to warm up, then
    all run once a round, every other round in reverse order. A candidate returns when its
    work is done: it waits for its device itself (`jax.block_until_ready`).
    """
    for run in candidates.values() if warm_up else ():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(rounds):
        names = list(candidates) if index % 2 == 0 else list(candidates)[::-1]
        for name in names:
            started = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(values: Iterable[float]) -> dict[str, float]:
    """Returns the median with the least and the greatest of the values."""
    values = list(values)
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(values: Mapping[str, list[float]], name: str, *, to: str) -> list[float]:
    """Returns each round's value of `name` divided by the same round's value of `to`."""
    return [ours / theirs for ours, theirs in zip(values[name], values[to], strict=True)]


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """Returns what the numbers were measured on; `packages` are those whose versions matter."""
    return {
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_kibibytes(Path("/proc/meminfo"), "MemTotal") / 2**20, 1),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def worth_a_turn(candidates: Iterable[str]) -> list[str]:
    """Returns the candidates without those in bfloat16, where the CPU has no product for it.

    For training: PyTorch's products on the way back then take over a hundred times as long
    as in float32, which is no rival; the rates stand in docs/log.md#machines.
    """
    flags = _first_value(Path("/proc/cpuinfo"), "flags").split()
    if {"avx512_bf16", "amx_bf16"} & set(flags):
        return list(candidates)
    return [name for name in candidates if "bfloat16" not in name and "bf16" not in name]


def peak_memory_bytes() -> int:
    """Returns the most memory this process has held so far (Linux's VmHWM)."""
    return _kibibytes(Path("/proc/self/status"), "VmHWM") * 2**10


def reset_peak_memory() -> None:
    """Lets `peak_memory_bytes` start anew from what the process holds now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def write_json(path: Path, value: Any) -> None:
    """Writes `value`, readable and the same for the same value; makes the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _kibibytes(path: Path, key: str) -> int:
    return int(_first_value(path, key).removesuffix(" kB"))


def _first_value(path: Path, key: str) -> str:
    """Returns the first `key: value` of a file in /proc."""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
