# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling, Qwen3-0.6B's shape with random float32 weights: rivals, bandwidth, long tails.

    python -m benchmarks.sampling --part rivals
    python -m benchmarks.sampling --part decode
    python -m benchmarks.sampling --part long-tail

Rivals run in environments of their own (.venv-slow, .venv-peers) and take turns with ours.
The others need no rival. A part writes docs/data/performance/sampling-<part>.json and, once
all are there, docs/images/performance-sampling.png.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import (
    interleaved,
    machine,
    ratios,
    summary,
    write_json,
)
from benchmarks.plots import draw_bars, plt, save
from benchmarks.sampling_peer import BATCH, SAMPLERS
from benchmarks.shapes import QWEN3_0_6B, write_checkpoint
from stepalign_jax.huggingface.weights import load_model
from stepalign_jax.model import attention
from stepalign_jax.model.products import rows_product
from stepalign_jax.sampling.decode import Slots, decode_chunk, empty_cache, slot_requests
from stepalign_jax.sampling.engine import Engine
from stepalign_jax.sampling.layout import Variables
from stepalign_jax.sampling.programs import decode_model
from stepalign_jax.sampling.request import Address, Request, SamplingParams, make_requests
from stepalign_jax.sampling.scheduler import Schedule, cache_widths
from stepalign_jax.sampling.session import DECODE_STEPS as MOST_STEPS
from stepalign_jax.sampling.session import FEWEST_STOPS

RESULTS = Path("docs/data/performance")
PLOT = Path("docs/images/performance-sampling.png")
PARTS = ("rivals", "decode", "long-tail")
PROMPT, NEW = 64, 128
DECODE_STEPS = 16
DECODE_WIDTHS = cache_widths(PROMPT + 1, NEW)
ADDRESS = Address(0, 0, 0, 0, 0, 0)
GREEDY = SamplingParams(0.0, 0, 1.0, NEW, ())
TAIL_PROMPT, TAIL_BUDGET, TAIL_REQUESTS = 16, 128, 64
PYTHON = {"ours": ".venv", "tunix": ".venv-peers"}


def rivals(directory: Path, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Tokens per second of every sampler, and how many times as fast as each ours is."""
    with ExitStack() as stack:
        candidates: dict[str, Callable[[], object]] = {
            name: stack.enter_context(peer(name, directory)) for name in names
        }
        # Each has completed a batch before it was ready.
        seconds = interleaved(candidates, rounds=rounds, warm_up=False)
    return {
        "tokens_per_second": {
            name: summary(BATCH * NEW / s for s in values) for name, values in seconds.items()
        },
        "ours_is_times_as_fast": {
            name: summary(ratios(seconds, name, to="ours")) for name in names if name != "ours"
        },
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


def load(directory: Path, stop_ids: Sequence[int]) -> tuple[Any, Engine, Variables]:
    """The model's sizes, an engine for it, and the weights in the layout of decoding."""
    config, params = load_model(str(directory))
    engine = Engine(config, jnp.float32, None, stop_ids, 0)
    return config, engine, engine.prepare({"params": params})


def decode(directory: Path, rounds: int) -> dict[str, Any]:
    """How fast the decode loop reads its weights, beside what the memory gives.

    Candidates take turns: DECODE_STEPS steps of the decode program at each of the two cache
    widths that 64 + 128 tokens meet; as many steps of its products with weights alone, and of
    its attention alone in both forms; and the sum of 1 GiB, which no cache holds. Of the decode
    loop weights are counted, once per step; what it reads of the cache is given besides.
    """
    config, _, prepared = load(directory, ())
    weights = prepared["decode"]
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    caches = {width: empty_cache(config, BATCH, width, jnp.float32) for width in DECODE_WIDTHS}
    cache_bytes = {
        width: sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
        for width, cache in caches.items()
    }
    widest = caches[DECODE_WIDTHS[-1]]
    probe, total = jnp.ones(2**28, jnp.float32), jax.jit(jnp.sum)
    candidates: dict[str, Callable[[], object]] = {
        f"decode loop, {width} slots": decode_steps(config, prepared, cache, GREEDY)
        for width, cache in caches.items()
    }
    candidates |= {
        "its products alone": products(weights, BATCH),
        "its attention alone": _attention(config, widest, attention.streamed_attention),
        "its attention as products": _attention(config, widest, attention.attention),
        "memory": lambda: total(probe).block_until_ready(),
    }
    for run in candidates.values():
        run()  # and once more below: decoding is compiled again for the cache it returns
    seconds = interleaved(candidates, rounds=rounds)
    loops = [name for name in seconds if name.startswith("decode loop")]
    # Half of the steps of 64 + 128 tokens are at one width, half at the other.
    seconds["decode loop"] = [
        sum(both) / len(loops)
        for both in zip(*map(seconds.get, loops), strict=True)  # pyright: ignore[reportArgumentType]
    ]
    mean_cache = sum(cache_bytes.values()) / len(cache_bytes)
    seconds["decode loop and cache"] = seconds["decode loop"]
    attended = DECODE_STEPS * cache_bytes[DECODE_WIDTHS[-1]]
    read = dict.fromkeys(seconds, DECODE_STEPS * weight_bytes) | {
        "decode loop and cache": DECODE_STEPS * (weight_bytes + mean_cache),
        "its attention alone": attended,
        "its attention as products": attended,
        "memory": probe.nbytes,
    }
    rates = {name: [read[name] / s / 1e9 for s in values] for name, values in seconds.items()}
    return {
        "gb_per_second": {name: summary(values) for name, values in rates.items()},
        "share_of_memory": {
            name: summary(ratios(rates, name, to="memory"))
            for name in rates
            if name != "memory"
        },
        "turn_ms": {
            name: summary(1e3 * s / DECODE_STEPS for s in values)
            for name, values in seconds.items()
            if name not in ("memory", "decode loop and cache")
        },
        "attention_is_of_products": summary(
            ratios(seconds, "its attention alone", to="its attention as products")
        ),
    }


def decode_steps(
    config: Any,
    prepared: Variables,
    cache: Any,
    params: SamplingParams,
    num_steps: int = DECODE_STEPS,
) -> Callable[[], None]:
    """So many steps of the decode program on every row of `cache`, rows half full.

    Each row has noise of its own, and draws as `params` say; the cache is given away.
    """
    model = decode_model(config, jnp.float32, None)
    num_rows, width = cache[0].v.shape[0], cache[0].num_slots
    zeros = np.zeros(num_rows, np.int32)
    slots = Slots(zeros, zeros + width // 2, zeros, np.zeros(num_rows, bool))
    kept = [jax.tree.map(jnp.copy, cache)]
    asked = [Request([0], ADDRESS._replace(sample=row), params) for row in range(num_rows)]
    requests = slot_requests(asked, (), FEWEST_STOPS)

    def run() -> None:
        kept[0], *drawn = decode_chunk(
            model,
            prepared,
            kept[0],
            slots,
            requests,
            np.int32(num_steps),
            np.int32(num_rows),
            MOST_STEPS,
        )
        jax.block_until_ready(drawn)

    return run


def products(
    weights: Any, num_rows: int, num_steps: int = DECODE_STEPS
) -> Callable[[], object]:
    """As many steps of all products with weights in row blocks, one after the other."""
    blocks = jax.tree.leaves(weights, is_leaf=lambda node: isinstance(node, tuple))
    inputs = [jnp.ones((num_rows, weight[0].shape[1])) for weight in blocks]

    @jax.jit
    def multiply(inputs: list[jax.Array], blocks: Any) -> Any:
        # Each step's inputs depend on the last one's results, as in decoding.
        def once(_: jax.Array, inputs: list[jax.Array]) -> list[jax.Array]:
            pairs = zip(inputs, blocks, strict=True)
            outs = [rows_product(x, weight, jnp.float32) for x, weight in pairs]
            means = [jnp.mean(y, keepdims=True) for y in outs]
            return [x + 1e-9 * m for x, m in zip(inputs, means, strict=True)]

        return jax.lax.fori_loop(0, num_steps, once, inputs)

    return lambda: jax.block_until_ready(multiply(inputs, blocks))


def _attention(config: Any, cache: Any, attend: Callable[..., jax.Array]) -> Any:
    """As many steps of one query per row over every layer's cache, one after the other."""
    query = jnp.ones((BATCH, 1, config.num_heads, config.head_dim))

    @jax.jit
    def run(query: jax.Array, cache: Any) -> Any:
        half = jnp.full((BATCH, 1), cache[0].num_slots // 2)
        mask = attention.cache_mask(half, cache[0].num_slots)

        def once(_: jax.Array, query: jax.Array) -> jax.Array:
            for layer in cache:
                query = query + attend(query, layer.k, layer.v, mask)
            return query

        return jax.lax.fori_loop(0, DECODE_STEPS, once, query)

    return lambda: jax.block_until_ready(run(query, cache))


def long_tail(directory: Path, rounds: int) -> dict[str, Any]:
    """Continuous against static batching on the same requests.

    Lengths come from a set of stop tokens that a uniform draw hits with a fixed chance, so
    they are geometric, cut at the budget.

    The bound is what slots that refill at no cost would gain over static batches, counted
    in steps from the recorded lengths: (sum over batches of the longest) / (steps until all
    are through if each request takes the slot that is free first).
    """
    generator = np.random.default_rng(1)
    vocab_size = QWEN3_0_6B["vocab_size"]
    stops = generator.choice(vocab_size, vocab_size * 4 // TAIL_BUDGET, False)
    _, engine, prepared = load(directory, stops.tolist())
    prompts = generator.integers(0, 100_000, (TAIL_REQUESTS, TAIL_PROMPT)).tolist()
    addresses = [ADDRESS._replace(sample=sample) for sample in range(TAIL_REQUESTS)]
    params = SamplingParams(4.0, 0, 1.0, TAIL_BUDGET, ())
    requests = make_requests(prompts, addresses, params)

    def sample(rows: slice) -> Any:
        return engine.sample(prepared, requests[rows], batch_size=BATCH).lengths

    batches = [slice(i, i + BATCH) for i in range(0, TAIL_REQUESTS, BATCH)]
    ways = {"static": batches, "continuous": [slice(None)]}
    lengths = {}

    def run(way: str) -> None:
        lengths[way] = np.concatenate([sample(rows) for rows in ways[way]])

    sample(batches[0])  # compiles all there is to compile
    seconds = interleaved(
        {way: lambda way=way: run(way) for way in ways}, rounds=rounds, warm_up=False
    )
    if not np.array_equal(lengths["static"], lengths["continuous"]):
        raise SystemExit("static and continuous batching drew completions of unlike lengths")
    found = lengths["static"]
    bound = int(found.reshape(-1, BATCH).max(1).sum()) / scheduled_steps(found)
    speedups = ratios(seconds, "static", to="continuous")
    return {
        "lengths": found.tolist(),
        "mean_share_of_budget": float(found.mean() / TAIL_BUDGET),
        "seconds": {way: summary(values) for way, values in seconds.items()},
        "tokens_per_second": {
            way: summary(int(found.sum()) / s for s in values)
            for way, values in seconds.items()
        },
        "speedup": summary(speedups),
        "bound": bound,
        "share_of_bound": summary(speedup / bound for speedup in speedups),
    }


def scheduled_steps(lengths: np.ndarray) -> int:
    """Steps until all requests are through, in order, on BATCH slots that refill at once."""
    schedule, left, steps = Schedule(BATCH), np.zeros(BATCH, int), 0
    schedule.submit(range(len(lengths)))
    while not schedule.over:
        fresh = schedule.refill()
        left[fresh] = lengths[schedule.request[fresh]]
        jump = int(left[left > 0].min())
        left, steps = np.maximum(left - jump, 0), steps + jump
        schedule.retire(left == 0)
    return steps


def plot(found: dict[str, dict[str, Any]]) -> None:
    """Rivals on the left, the decode loop in the middle, the long tail on the right."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.6))
    draw_bars(axes[0], found["rivals"]["tokens_per_second"], ours="ours")
    axes[0].set(title=f"{BATCH} x ({PROMPT} + {NEW}) tokens", xlabel="tokens per second")
    rates = found["decode"]["gb_per_second"]
    shown = ("decode loop", "decode loop and cache", "its products alone", "memory")
    draw_bars(axes[1], {name: rates[name] for name in shown}, ours="decode loop")
    axes[1].set(title="Reading weights", xlabel="GB per second")
    tail = found["long-tail"]
    draw_bars(axes[2], tail["tokens_per_second"], ours="continuous")
    bound = tail["tokens_per_second"]["static"]["median"] * tail["bound"]
    axes[2].axvline(bound, color="grey", ls="--", label="nothing lost between requests")
    axes[2].set(title=f"{TAIL_REQUESTS} requests, long tail", xlabel="tokens per second")
    axes[2].legend(loc="lower right")
    save(figure, PLOT)


def main() -> None:
    """Writes docs/data/performance/sampling-<part>.json, and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--rounds", type=int, help="2, or 15 of the decode loop")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, help="the rivals")
    parser.add_argument("--checkpoint", type=Path, help="keep the weights in this directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.checkpoint or Path(scratch)
        if not (directory / "model.safetensors").exists():
            write_checkpoint(directory, QWEN3_0_6B)
        if options.part == "rivals":
            names = options.samplers or list(SAMPLERS)
            result = rivals(directory, names, options.rounds or 2)
        elif options.part == "decode":
            result = decode(directory, options.rounds or 15)
        else:
            result = long_tail(directory, options.rounds or 2)
    result["machine"] = machine(("jax", "jaxlib"))
    write_json(RESULTS / f"sampling-{options.part}.json", result)
    print({name: value for name, value in result.items() if name != "lengths"})
    files = {part: RESULTS / f"sampling-{part}.json" for part in PARTS}
    if all(file.exists() for file in files.values()):
        plot({part: json.loads(file.read_text("utf-8")) for part, file in files.items()})


if __name__ == "__main__":
    main()
