# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Streams one answer to the terminal: the quickest way to see that a checkpoint works.

    python -m stepalign_jax.generate --model packaged:tiny --prompt "47+3*8-12"
    python -m stepalign_jax.generate --model Qwen/Qwen3-0.6B --prompt "Why is the sky blue?"
    python -m stepalign_jax.generate --model Qwen/Qwen3-0.6B --adapter DIR --prompt "..."

The answer goes to stdout, everything about it to stderr. What no option says about
sampling, the checkpoint's generation_config.json does, and without one decoding is greedy,
as in transformers. It runs on one device.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.cli import parse_options, run_command
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.peft_adapters import load_adapter
from stepalign_jax.huggingface.text_stream import TextStream
from stepalign_jax.huggingface.tokenizer import load_tokenizer, render_prompt, stop_ids
from stepalign_jax.huggingface.weights import load_params
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import abstract_params
from stepalign_jax.parallel.mesh import make_mesh, param_shardings
from stepalign_jax.sampling.engine import Engine, Purpose

_TURNS = 8  # tokens shown at a time
_GENERATION = "generation_config.json"

_OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {
        "required": True,
        "metavar": "PATH",
        "help": "a Hugging Face directory or hub id, or packaged:tiny",
    },
    "--prompt": {"required": True, "metavar": "TEXT", "help": "the user's message"},
    "--adapter": {"metavar": "DIR", "help": "an adapter in PEFT's layout"},
    "--thinking": {"action": "store_true", "help": "let the chat template open thinking"},
    "--temperature": {"type": float, "metavar": "X", "help": "0 is greedy"},
    "--top-k": {"type": int, "metavar": "N", "help": "0 is off"},
    "--top-p": {"type": float, "metavar": "X", "help": "1 is off"},
    "--max-new-tokens": {
        "type": int,
        "default": 512,
        "metavar": "N",
        "help": "at most what the model has positions for (default: 512)",
    },
    "--dtype": {
        "choices": ("float32", "bfloat16", "float16"),
        "help": "of weights and computation; default: float32 on a CPU, else bfloat16",
    },
    "--seed": {"type": int, "default": 0, "metavar": "N", "help": "default: 0"},
}


@dataclass(frozen=True)
class Settings:
    """How to draw; what `Engine` calls its settings."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    batch_size: int = 1


def settings_for(
    options: argparse.Namespace, directory: Path, config: Qwen3Config, prompt_length: int
) -> Settings:
    """Sampling settings: the options, then the checkpoint's own, then greedy decoding.

    Raises:
      UserError: a value is out of its range, or the prompt leaves no room for a token.
    """
    path = directory / _GENERATION
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not stored.get("do_sample", False):
        stored = {}

    def value(name: str, default: float) -> float:
        given = getattr(options, name)
        stored_value = stored.get(name)
        return (default if stored_value is None else stored_value) if given is None else given

    room = config.max_positions - prompt_length
    if room < 1:
        raise UserError(
            f"--prompt has {prompt_length} tokens, but the model has {config.max_positions} "
            "positions: shorten it."
        )
    sampled = bool(stored) or options.top_k is not None or options.top_p is not None
    settings = Settings(
        temperature=float(value("temperature", 1.0 if sampled else 0.0)),
        top_k=int(value("top_k", 0)),
        top_p=float(value("top_p", 1.0)),
        max_new_tokens=min(options.max_new_tokens, room),
    )
    _check(settings, options.seed)
    return settings


def _check(settings: Settings, seed: int) -> None:
    rules = {
        "--temperature": (settings.temperature, 0 <= settings.temperature < float("inf")),
        "--top-k": (settings.top_k, settings.top_k >= 0),
        "--top-p": (settings.top_p, 0 < settings.top_p <= 1),
        "--max-new-tokens": (settings.max_new_tokens, settings.max_new_tokens >= 1),
        "--seed": (seed, 0 <= seed < 2**32),
    }
    limits = {
        "--temperature": "at least 0",
        "--top-k": "at least 0",
        "--top-p": "above 0 and at most 1",
        "--max-new-tokens": "at least 1",
        "--seed": "from 0 to 4294967295",
    }
    for name, (found, allowed) in rules.items():
        if not allowed:
            raise UserError(f"{name} is {found}, but it must be {limits[name]}.")


class Clock:
    """Seconds that pass, less those that go into compiling."""

    def __init__(self) -> None:
        self.compiling = 0.0
        self._started = time.perf_counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):  # tracing, lowering, XLA: one after another
            self.compiling += duration_secs

    def working(self) -> float:
        """Seconds since the clock was made, without compilation."""
        return time.perf_counter() - self._started - self.compiling


def generate(options: argparse.Namespace) -> Iterator[str]:
    """Yields the answer's text as it comes; ends with a line about it on stderr."""
    directory = resolve_checkpoint(options.model)
    config = read_sizes(directory)
    tokenizer = load_tokenizer(directory)
    prompt = render_prompt(tokenizer, options.prompt, thinking=options.thinking)
    settings = settings_for(options, directory, config, len(prompt))
    engine, variables = _load(options, directory, config, tokenizer)
    _say(f"{_describe(settings)}; {jax.default_backend()}, {_dtype(options)}")
    clock, text, arrivals, num_tokens = Clock(), TextStream(tokenizer), [], 0
    prepared = engine.prepare(variables)
    pieces = engine.stream(
        prepared,
        prompt,
        (0, 0, 0, 0),
        seed=options.seed,
        purpose=Purpose.SOLVER,
        settings=settings,
        turns=_TURNS,
    )
    for ids in pieces:
        num_tokens += len(ids)
        arrivals.append((num_tokens, clock.working()))
        yield text.push(ids)
    yield text.finish()
    _say(_report(len(prompt), arrivals, clock.compiling))


def _load(
    options: argparse.Namespace, directory: Path, config: Qwen3Config, tokenizer: Any
) -> tuple[Engine, dict[str, Any]]:
    """The engine and the variables that it samples with."""
    lora, adapter = None, {}
    if options.adapter is not None:
        lora, tree = load_adapter(Path(options.adapter), config)
        adapter = {"lora": jax.tree.map(jnp.asarray, tree)}
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    shardings = param_shardings(mesh, abstract_params(config))
    params = load_params(directory, config, dtype=_dtype(options), shardings=shardings)
    stops = stop_ids(tokenizer, directory)
    engine = Engine(config, _dtype(options), lora, stops, stops[0])
    return engine, {"params": params, **adapter}


def _dtype(options: argparse.Namespace) -> jnp.dtype:
    on_cpu = jax.default_backend() == "cpu"  # where bfloat16 is 10 to 20 times slower
    return jnp.dtype(options.dtype or ("float32" if on_cpu else "bfloat16"))


def _describe(settings: Settings) -> str:
    if settings.temperature == 0:
        return "greedy"
    return f"temperature {settings.temperature:g}, top-k {settings.top_k or 'off'}, top-p " + (
        f"{settings.top_p:g}" if settings.top_p < 1 else "off"
    )


def _report(
    prompt_length: int, arrivals: list[tuple[int, float]], compile_seconds: float
) -> str:
    """The last line; the rate counts what came after the first token."""
    (first, start), (total, end) = arrivals[0], arrivals[-1]
    rate = f"{(total - first) / (end - start):.1f} tokens/s" if total > first else "no rate"
    return (
        f"{prompt_length} prompt tokens, first token after {start:.2f} s; {total} new tokens, "
        f"{rate} after the first (compilation, {compile_seconds:.1f} s, not counted)"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str]) -> None:
    """Prints the answer as it comes."""
    options = parse_options(
        argv,
        description="Streams a model's answer to one message.",
        example='python -m stepalign_jax.generate --model packaged:tiny --prompt "47+3*8-12"',
        options=_OPTIONS,
    )
    for piece in generate(options):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    run_command(main)
