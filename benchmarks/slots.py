# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The decode loop on a real checkpoint at several numbers of slots, beside its bound.

    python -m benchmarks.slots --checkpoint DIRECTORY --slots 8 32 64 --rounds 5

The bound is what no decode step can do without, measured in the same turns: its products with
weights, in the form that the loop uses, and one read of its cache. Rows hold real text, since
what a top-p filter costs depends on the logits. Beside seconds stands the processor's time over
the number of cores: on a machine that others use it says more. Writes
docs/data/performance/slots.json.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import interleaved, machine, ratios, summary, write_json
from benchmarks.sampling import RESULTS, decode_steps, load, products
from stepalign_jax.huggingface.tokenizer import encode_plain, load_tokenizer
from stepalign_jax.sampling.decode import prefill, resize
from stepalign_jax.sampling.layout import Variables
from stepalign_jax.sampling.programs import decode_model
from stepalign_jax.sampling.request import SamplingParams

TEXT = Path("README.md")
STEPS = 4  # of one turn: short turns meet the same machine
WIDTH = 256  # cache slots; half of them hold text
WAYS = {
    "greedy": SamplingParams(0.0, 0, 1.0, WIDTH, ()),
    "temperature 1.1": SamplingParams(1.1, 0, 1.0, WIDTH, ()),
    "1.1, top-k 20, top-p 0.95": SamplingParams(1.1, 20, 0.95, WIDTH, ()),
    "1.0, top-p 0.95": SamplingParams(1.0, 0, 0.95, WIDTH, ()),
}
PRODUCTS, CACHE = "its products alone", "its cache, summed"


def measure(directory: Path, num_slots: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of each way to draw, and its share of the bound."""
    config, _, prepared = load(directory, ())
    cache = text_cache(directory, config, prepared, num_slots)
    total = jax.jit(lambda cache: [jnp.sum(leaf) for leaf in jax.tree.leaves(cache)])

    def read_cache() -> None:
        for _ in range(STEPS):
            jax.block_until_ready(total(cache))

    candidates: dict[str, Callable[[], object]] = {
        name: decode_steps(config, prepared, cache, params, STEPS)
        for name, params in WAYS.items()
    }
    candidates |= {PRODUCTS: products(prepared["decode"], num_slots, STEPS), CACHE: read_cache}
    for run in candidates.values():
        run()  # and once more below: decoding is compiled again for the cache it returns
    processor: dict[str, list[float]] = {name: [] for name in candidates}
    timed = {name: _noting(run, processor[name]) for name, run in candidates.items()}
    seconds = interleaved(timed, rounds=rounds, warm_up=False)
    cores = len(os.sched_getaffinity(0))
    return {
        "of_seconds": _table(seconds, num_slots),
        "of_processor_time": _table(
            {name: [s / cores for s in values] for name, values in processor.items()}, num_slots
        ),
    }


def text_cache(directory: Path, config: Any, prepared: Variables, num_slots: int) -> Any:
    """A cache of WIDTH slots, half full with other words of README in each row."""
    ids = encode_plain(load_tokenizer(directory), TEXT.read_text(encoding="utf-8"))
    starts = np.linspace(0, len(ids) - WIDTH, num_slots, dtype=int)
    rows = np.stack([np.array(ids[start : start + WIDTH // 2], np.int32) for start in starts])
    model = decode_model(config, jnp.float32, None)
    return resize(model.config, prefill(model, prepared, rows, None, jnp.float32), WIDTH)


def _noting(run: Callable[[], object], to: list[float]) -> Callable[[], None]:
    """`run`, which notes the processor's seconds of all threads."""

    def noted() -> None:
        started = time.process_time()
        run()
        to.append(time.process_time() - started)

    return noted


def _table(seconds: dict[str, list[float]], num_slots: int) -> dict[str, Any]:
    bounds = [sum(pair) for pair in zip(seconds[PRODUCTS], seconds[CACHE], strict=True)]
    drawn = num_slots * STEPS
    both = seconds | {"bound": bounds}
    return {
        "tokens_per_second": {
            name: summary(drawn / s for s in both[name]) for name in ("bound", *WAYS)
        },
        "share_of_bound": {name: summary(ratios(both, "bound", to=name)) for name in WAYS},
        "ms_per_step": {
            name: summary(1e3 * s / STEPS for s in values) for name, values in both.items()
        },
    }


def main() -> None:
    """Writes docs/data/performance/slots.json, and prints each number of slots as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a Hugging Face directory"
    )
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(["jax", "jaxlib", "numpy"]), "slots": {}}
    for num_slots in options.slots:
        found["slots"][num_slots] = measure(options.checkpoint, num_slots, options.rounds)
        print(json.dumps({num_slots: found["slots"][num_slots]}, indent=1), flush=True)
        write_json(RESULTS / "slots.json", found)


if __name__ == "__main__":
    main()
