# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling, Qwen3-0.6B's shape with random weights: against rivals, and in long tails.

    python -m benchmarks.sampling --part rivals --rounds 2
    python -m benchmarks.sampling --part long-tail

Rivals run in environments of their own (.venv-slow, .venv-peers) and take turns with ours.
The long tail needs no rival: lengths come from a set of stop tokens that a uniform draw
hits with a fixed chance, so they are geometric, cut at the budget.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import interleaved, machine, summary, write_json
from benchmarks.sampling_peer import BATCH, SAMPLERS
from benchmarks.shapes import QWEN3_0_6B, write_checkpoint
from stepalign_jax.model.weights import load_model
from stepalign_jax.sampling.engine import Engine, Purpose
from stepalign_jax.sampling.schedule import Schedule

RESULTS = Path("docs/data/performance")
PROMPT, NEW = 64, 128
TAIL_PROMPT, TAIL_BUDGET, TAIL_REQUESTS = 16, 128, 64
PYTHON = {"ours": ".venv", "tunix": ".venv-peers"}
WEIGHT_BYTES = 4 * 596_049_920  # each weight of the shape once, the tied head included


def rivals(directory: Path, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Seconds per batch of every sampler, and the bandwidth measured beside them."""
    with ExitStack() as stack:
        candidates: dict[str, Callable[[], object]] = {
            name: stack.enter_context(peer(name, directory)) for name in names
        }
        probe = BandwidthProbe()
        candidates["bandwidth"] = probe
        seconds = interleaved(candidates, rounds=rounds)
    rates = [probe.nbytes / value / 1e9 for value in seconds.pop("bandwidth")]
    tokens = {name: [BATCH * NEW / s for s in values] for name, values in seconds.items()}
    return {
        "tokens_per_second": {name: summary(values) for name, values in tokens.items()},
        "ratio_of_ours": {
            name: summary([a / b for a, b in zip(tokens["ours"], values, strict=True)])
            for name, values in tokens.items()
        },
        "weights_gb_per_second": summary(
            [NEW * WEIGHT_BYTES / value / 1e9 for value in seconds["ours"]]
        ),
        "memory_gb_per_second": summary(rates),
    }


@contextmanager
def peer(name: str, directory: Path) -> Iterator[Callable[[], object]]:
    """A sampler in its own process, ready; a call waits for one batch."""
    python = f"{PYTHON.get(name, '.venv-slow')}/bin/python"
    command = [python, "-m", "benchmarks.sampling_peer", name, directory, PROMPT, NEW]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    inbox, outbox = process.stdin, process.stdout
    while "ready" not in (line := outbox.readline()):
        if not line:
            raise SystemExit(f"{name} ended before it was ready")

    def run() -> float:
        print("go", file=inbox, flush=True)
        return float(outbox.readline())

    yield run
    inbox.close()
    process.wait()


class BandwidthProbe:
    """Reads 1 GiB, which no cache holds."""

    def __init__(self) -> None:
        self._values = jnp.ones(2**28, jnp.float32)
        self._sum = jax.jit(jnp.sum)
        self.nbytes = self._values.nbytes

    def __call__(self) -> None:
        self._sum(self._values).block_until_ready()


def long_tail(directory: Path) -> dict[str, Any]:
    """Continuous against static batching on the same requests.

    The bound is what slots that refill at no cost would gain over static batches, counted
    in turns from the recorded lengths: (sum over batches of the longest) / (turns until all
    are through if each request takes the slot that is free first).
    """
    config, params = load_model(str(directory))
    generator = np.random.default_rng(1)
    stops = generator.choice(config.vocab_size, config.vocab_size * 4 // TAIL_BUDGET, False)
    engine = Engine(config, jnp.float32, None, stops.tolist(), 0)
    prepared = engine.prepare({"params": params})
    del params
    prompts = generator.integers(0, 100_000, (TAIL_REQUESTS, TAIL_PROMPT)).tolist()
    addresses = np.zeros((TAIL_REQUESTS, 4), np.uint32)
    addresses[:, 2] = np.arange(TAIL_REQUESTS)
    settings: Any = SimpleNamespace(
        temperature=4.0, top_k=0, top_p=1.0, max_new_tokens=TAIL_BUDGET, batch_size=BATCH
    )

    def sample(rows: slice) -> Any:
        return engine.sample(
            prepared,
            prompts[rows],
            addresses[rows],
            seed=0,
            purpose=Purpose.SOLVER,
            settings=settings,
        )

    batches = [slice(i, i + BATCH) for i in range(0, TAIL_REQUESTS, BATCH)]
    sample(batches[0])
    seconds = {}
    for name, parts in {"static": batches, "continuous": [slice(None)]}.items():
        started = time.perf_counter()
        lengths = np.concatenate([sample(part).lengths for part in parts])
        seconds[name] = time.perf_counter() - started
    static = int(lengths.reshape(-1, BATCH).max(1).sum())
    bound = static / scheduled_turns(lengths)
    speedup = seconds["static"] / seconds["continuous"]
    return {
        "lengths": lengths.tolist(),
        "mean_share_of_budget": float(lengths.mean() / TAIL_BUDGET),
        "seconds": seconds,
        "tokens_per_second": {n: float(lengths.sum() / s) for n, s in seconds.items()},
        "speedup": speedup,
        "bound": bound,
        "share_of_bound": speedup / bound,
    }


def scheduled_turns(lengths: np.ndarray) -> int:
    """Turns until all requests are through, in order, on BATCH slots that refill at once."""
    schedule, left, turns = Schedule(range(len(lengths)), BATCH), np.zeros(BATCH, int), 0
    while not schedule.over:
        fresh = schedule.refill()
        left[fresh] = lengths[schedule.request[fresh]]
        jump = int(left[left > 0].min())
        left, turns = np.maximum(left - jump, 0), turns + jump
        schedule.retire(left == 0)
    return turns


def main() -> None:
    """Writes docs/data/performance/sampling-<part>.json, and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("rivals", "long-tail"), required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--checkpoint", type=Path, help="reuse the files in this directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.checkpoint or Path(scratch)
        if not (directory / "model.safetensors").exists():
            write_checkpoint(directory, QWEN3_0_6B)
        if options.part == "rivals":
            result = rivals(directory, options.samplers, options.rounds)
        else:
            result = long_tail(directory)
    result["machine"] = machine(("jax", "jaxlib"))
    write_json(RESULTS / f"sampling-{options.part}.json", result)
    print({name: value for name, value in result.items() if name != "lengths"})


if __name__ == "__main__":
    main()
