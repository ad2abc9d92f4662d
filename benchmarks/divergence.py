# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Forward KL over the whole vocabulary: time and memory, tiled, dense, and in PyTorch.

    python -m benchmarks.divergence --peer-python .venv-slow/bin/python

About 6 minutes and 8 GiB on two cores. Every candidate gets the same arrays and returns the
sum of KL(teacher || solver) over all tokens with its gradient by the solver's hidden states
(the head is frozen and shared, as it is with an adapter). Writes
docs/data/performance/divergence.json and docs/images/performance-divergence.png.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import (
    interleaved,
    machine,
    peak_memory_bytes,
    ratios,
    reset_peak_memory,
    summary,
    worth_a_turn,
    write_json,
)
from benchmarks.plots import draw_bars, plt, save
from stepalign_jax.config.learning import ForwardKl
from stepalign_jax.objectives.tiled_divergence import tiled_divergence

VOCAB, TEMPERATURE, TILE = 151_936, 1.1, 128
TIMED = {"tokens": 1024, "width": 2048}  # the dense forms fit beside each other
WIDTH, TOKENS, MEASURED_TOKENS = 2048, (1024, 2048, 4096, 8192, 16384), (2048, 8192)
FORWARD_KL = ForwardKl(
    loss_temperature=TEMPERATURE,
    grpo_mix=0.0,
    element_clip=0.0,
    top_k=0,
    token_tile=TILE,
    token_weights=(),
)
RESULT = Path("docs/data/performance/divergence.json")
PLOT = Path("docs/images/performance-divergence.png")
GIB = 2**30

Arrays = tuple[Any, Any, Any]  # solver hidden [N, D], teacher hidden [N, D], head [V, D]


def draw(tokens: int, width: int) -> Arrays:
    """Arrays whose logits have a deviation of 1, the teacher's close to the solver's."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((tokens, width), np.float32)
    teacher = hidden + np.float32(0.3) * rng.standard_normal((tokens, width), np.float32)
    head = rng.standard_normal((VOCAB, width), np.float32) * np.float32(width**-0.5)
    return hidden, teacher, head


def tiled(hidden: jax.Array, teacher: jax.Array, head: jax.Array) -> tuple[jax.Array, Any]:
    """The project's own form, as an update calls it; it returns scores per token as well."""
    return tiled_divergence(
        hidden,
        teacher,
        head,
        None,
        jnp.zeros(hidden.shape[0], jnp.int32),
        token_weights=jnp.ones(hidden.shape[0]),
        divergence=FORWARD_KL,
        mesh=None,
    )


def dense(hidden: jax.Array, teacher: jax.Array, head: jax.Array) -> tuple[jax.Array, Any]:
    """The plain form: all logits, log_softmax, and what jax.grad makes of them."""
    solver = jax.nn.log_softmax(hidden @ head.T / TEMPERATURE)
    tutor = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) @ head.T / TEMPERATURE)
    values = jnp.sum(jnp.exp(tutor) * (tutor - solver), axis=-1)
    return jnp.sum(values), values


def compiled(form: Callable[..., Any], arrays: Any) -> Any:
    return jax.jit(jax.value_and_grad(form, has_aux=True)).lower(*arrays).compile()


def planned_memory() -> dict[str, dict[str, float]]:
    """GiB of temporaries by the compiler's own account, without running anything."""
    found: dict[str, dict[str, float]] = {"tiled": {}, "dense": {}}
    for tokens in TOKENS:
        rows = jax.ShapeDtypeStruct((tokens, WIDTH), jnp.float32)
        arrays = (rows, rows, jax.ShapeDtypeStruct((VOCAB, WIDTH), jnp.float32))
        for name, form in (("tiled", tiled), ("dense", dense)):
            plan = compiled(form, arrays).memory_analysis()
            found[name][str(tokens)] = plan.temp_size_in_bytes / GIB
    return found


def measure_peak(tokens: int) -> None:
    """Prints GiB that one tiled step at full size takes beyond inputs and gradients."""
    # Made on the device, for a copy that is freed late would hide what the step takes.
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = ((tokens, WIDTH), (tokens, WIDTH), (VOCAB, WIDTH))
    arrays = [jax.random.normal(key, size) for key, size in zip(keys, sizes, strict=True)]
    step = compiled(tiled, jax.block_until_ready(arrays))
    reset_peak_memory()
    before = peak_memory_bytes()
    (_, scores), gradient = jax.block_until_ready(step(*arrays))
    results = gradient.nbytes + sum(score.nbytes for score in scores)
    print((peak_memory_bytes() - before - results) / GIB)


def in_a_process_of_its_own(tokens: int) -> float:
    command = [sys.executable, "-m", "benchmarks.divergence", "--measure-peak", str(tokens)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


class Peer:
    """PyTorch candidates in another interpreter, one turn at a time."""

    def __init__(self, python: str, arrays: Arrays, directory: str):
        path = Path(directory) / "arrays.npz"
        np.savez(path, *arrays)
        command = [python, "-m", "benchmarks.divergence_peer", str(path)]
        self._process = subprocess.Popen(
            [*command, str(TEMPERATURE), str(TILE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        *self.names, self.version = self._read()
        self.last: dict[str, dict[str, float]] = {}

    def run(self, name: str) -> None:
        """One turn; what was found out about it stays in `last`."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        self.last[name] = self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def time_all(peer_python: str | None, rounds: int) -> dict[str, Any]:
    """Seconds of every candidate in turns, and how well their results agree."""
    arrays = draw(**TIMED)
    placed, last = jax.device_put(arrays), {}
    steps = {"tiled": compiled(tiled, placed), "dense": compiled(dense, placed)}

    def run(name: str) -> None:
        (loss, _), gradient = jax.block_until_ready(steps[name](*placed))
        last[name] = {"loss": float(loss), "gradient_norm": float(jnp.linalg.norm(gradient))}

    candidates = {name: functools.partial(run, name) for name in steps}
    with tempfile.TemporaryDirectory() as directory:
        peer = None if peer_python is None else Peer(peer_python, arrays, directory)
        if peer is not None:
            candidates |= {
                name: functools.partial(peer.run, name) for name in worth_a_turn(peer.names)
            }
        seconds = interleaved(candidates, rounds=rounds)
    if peer is not None:
        peer.close()
        last |= peer.last
    return {
        **TIMED,
        "pytorch": peer and peer.version,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "tiled_over_dense": summary(ratios(seconds, "tiled", to="dense")),
        "results": last,
    }


def plot(found: dict[str, Any]) -> None:
    """Memory over tokens on the left, seconds on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    memory = found["memory"]
    for name, by_tokens in memory["planned_gib"].items():
        _draw(left, by_tokens, marker="o", label=f"{name}, planned")
    _draw(left, memory["measured_gib"], color="k", marker="x", ls="", label="tiled, measured")
    left.axhline(1.0, color="grey", linewidth=0.8)
    left.set(
        xscale="log", yscale="log", xlabel="tokens", ylabel="GiB beyond inputs and gradients"
    )
    left.set_title(f"Memory: {VOCAB:,} entries, width {WIDTH}, float32")
    left.legend()
    draw_bars(right, found["timed"]["seconds"], ours="tiled")
    right.set(xlabel="seconds, forward and backward")
    right.set_title("Time: {tokens:,} tokens, width {width:,}".format(**TIMED))
    save(figure, PLOT)


def _draw(axes: Any, by_tokens: dict[str, float], **style: Any) -> None:
    pairs = sorted((int(tokens), value) for tokens, value in by_tokens.items())
    axes.plot(*zip(*pairs, strict=True), **style)


def main() -> None:
    parser = argparse.ArgumentParser(description="Forward KL: tiled, dense, and in PyTorch.")
    parser.add_argument("--peer-python", help="an interpreter that has PyTorch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("time", "memory"), help="keeps the other's numbers")
    parser.add_argument("--measure-peak", type=int, metavar="TOKENS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_peak is not None:
        measure_peak(options.measure_peak)
        return
    found = json.loads(RESULT.read_text()) if options.only and RESULT.exists() else {}
    found |= {"machine": machine(["jax", "jaxlib", "numpy"]), "token_tile": TILE}
    if options.only != "memory":
        found["timed"] = time_all(options.peer_python, options.rounds)
    if options.only != "time":
        found["memory"] = {
            "width": WIDTH,
            "planned_gib": planned_memory(),
            "measured_gib": {str(n): in_a_process_of_its_own(n) for n in MEASURED_TOKENS},
        }
    write_json(RESULT, found)
    if {"timed", "memory"} <= found.keys():
        plot(found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
