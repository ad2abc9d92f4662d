# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Streams one answer to the terminal: the quickest way to see that a checkpoint works.

    python -m stepalign_jax.generate --model packaged:tiny --prompt "47+3*8-12"
    python -m stepalign_jax.generate --model Qwen/Qwen3-0.6B --prompt "Why is the sky blue?"
    python -m stepalign_jax.generate --model Qwen/Qwen3-0.6B --adapter DIR --prompt "..."
    python -m stepalign_jax.generate --run runs/tiny-stepalign --prompt "47+3*8-12"

The answer goes to stdout, everything about it to stderr. Sampling settings come from the
options, then from the checkpoint's generation_config.json; without either decoding is greedy,
as in transformers. Keys of that file that are not followed are named. It runs on one device.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from stepalign_jax.base.compilation import CompilationCounter
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.text import surrogate_at
from stepalign_jax.config.cli import parse_arguments, run_command
from stepalign_jax.config.fields import annotations
from stepalign_jax.config.rules import check_value
from stepalign_jax.config.schema import ParallelConfig, SamplingConfig, Seed
from stepalign_jax.exporting.trained import Trained, find_trained, load_trained
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.huggingface.generation import GenerationSettings, read_generation_settings
from stepalign_jax.huggingface.language_model import LanguageModel, open_language_model
from stepalign_jax.huggingface.text_stream import TextStream
from stepalign_jax.huggingface.tokenizer import render_prompt
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.sampling.request import Address, Purpose, Request, SamplingParams

_TOKENS_SHOWN_AT_ONCE = 8
_MAX_NEW_TOKENS = 512

_OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {
        "metavar": "PATH",
        "help": "a Hugging Face directory or hub id, or packaged:tiny",
    },
    "--run": {
        "metavar": "DIR",
        "help": "instead of --model: the newest checkpoint of a run, which may be training; "
        "TEXT is then a problem, put into the run's own prompt",
    },
    "--prompt": {"required": True, "metavar": "TEXT", "help": "the user's message"},
    "--adapter": {"metavar": "DIR", "help": "an adapter in PEFT's layout"},
    "--thinking": {"action": "store_true", "help": "let the chat template open thinking"},
    "--temperature": {"type": float, "metavar": "X", "help": "0 is greedy"},
    "--top-k": {"type": int, "metavar": "N", "help": "0 is off"},
    "--top-p": {"type": float, "metavar": "X", "help": "1 is off"},
    "--max-new-tokens": {
        "type": int,
        "metavar": "N",
        "help": "at most what the model has positions for (default: the checkpoint's, or 512)",
    },
    "--dtype": {
        "choices": ("float32", "bfloat16", "float16"),
        "help": "of weights and computation; default: float32 on a CPU, else bfloat16",
    },
    "--seed": {"type": int, "default": 0, "metavar": "N", "help": "default: 0"},
}


def sampling_for(
    options: argparse.Namespace,
    stored: GenerationSettings,
    max_positions: int,
    prompt_length: int,
) -> SamplingConfig:
    """Sampling settings: the options, then the checkpoint's own, then greedy decoding.

    Raises:
      UserError: a value is out of its range, or the prompt leaves no room for a token.
    """

    def value(name: str, default: float) -> float:
        given, saved = getattr(options, name), getattr(stored, name)
        saved = default if saved is None or not stored.do_sample else saved
        return saved if given is None else given

    room = max_positions - prompt_length
    if room < 1:
        raise UserError(
            f"--prompt has {prompt_length} tokens, but the model has {max_positions} "
            "positions: shorten it."
        )
    most = options.max_new_tokens
    if most is None:
        most = stored.max_new_tokens or _MAX_NEW_TOKENS
    sampled = stored.do_sample or options.top_k is not None or options.top_p is not None
    found = SamplingConfig(
        temperature=float(value("temperature", 1.0 if sampled else 0.0)),
        top_k=int(value("top_k", 0)),
        top_p=float(value("top_p", 1.0)),
        max_new_tokens=min(most, room),
        batch_size=1,
    )
    for name, annotation in annotations(SamplingConfig).items():
        check_value("--" + name.replace("_", "-"), getattr(found, name), annotation)
    check_value("--seed", options.seed, Seed)
    return found


def generate(options: argparse.Namespace) -> Iterator[str]:
    """Yields the answer's text as it comes, then a newline; a line about it goes to stderr.

    Raises:
      UserError: before anything is read, for options that cannot be; or for the checkpoint.
    """
    if (place := surrogate_at(options.prompt)) is not None:
        raise UserError(f"--prompt is no Unicode text at character {place}: type it again.")
    if (options.model is None) == (options.run is None):
        raise UserError("name a model with --model, or a run with --run")
    model, trained = _open(options)
    prompt = _prompt(options, model, trained)
    stored = read_generation_settings(model.directory)
    how = sampling_for(options, stored, model.sizes.max_positions, len(prompt))
    if stored.not_followed:
        _say(f"note: {stored}, which is not followed")
    model.load()
    _say(f"{_describe(how)}; {jax.default_backend()}, {model.dtype}")
    started, compiled = time.perf_counter(), CompilationCounter()
    variables = model.variables() | ({} if trained is None else load_trained(trained))
    session = model.engine.session(
        variables, num_slots=1, max_length=len(prompt) + how.max_new_tokens
    )
    address = Address(options.seed, Purpose.SOLVER, 0, 0, 0, 0)
    session.submit([Request(prompt, address, SamplingParams.of(how))])
    text, arrivals, num_tokens, compile_seconds = TextStream(model.tokenizer), [], 0, 0.0
    while not session.over:
        ids = session.step(_TOKENS_SHOWN_AT_ONCE if num_tokens else 1).tokens_of(0)
        num_tokens += len(ids)
        compile_seconds += compiled.take()["compile_seconds"]
        arrivals.append((num_tokens, time.perf_counter() - started - compile_seconds))
        yield text.push(ids)
    yield text.finish() + "\n"
    compiled.close()
    _say(_report(len(prompt), arrivals, compile_seconds))


def _prompt(
    options: argparse.Namespace, model: LanguageModel, trained: Trained | None
) -> list[int]:
    if trained is None:
        return render_prompt(model.tokenizer, options.prompt, thinking=options.thinking)
    problem = Problem(options.prompt, "", None, "--prompt")
    return Roles(model.tokenizer, trained.config.prompts).solver(problem)


def _open(options: argparse.Namespace) -> tuple[LanguageModel, Trained | None]:
    if options.run is not None:
        if options.adapter is not None:
            raise UserError("--adapter goes with --model: a run has its own weights")
        trained = find_trained(RunDirectory(Path(options.run)), (), step=None, metric=None)
        _say(f"{options.run}, step {trained.step}")
        return trained.model, trained
    on_cpu = jax.default_backend() == "cpu"  # where bfloat16 is 10 to 20 times slower
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
    model = open_language_model(options.model, dtype=dtype, mesh=mesh, path_key="--model")
    if options.adapter:
        model = model.with_saved_adapter(Path(options.adapter))
    return model, None


def _describe(how: SamplingConfig) -> str:
    if how.temperature == 0:
        return "greedy"
    top_p = f"{how.top_p:g}" if how.top_p < 1 else "off"
    return f"temperature {how.temperature:g}, top-k {how.top_k or 'off'}, top-p {top_p}"


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
    options = parse_arguments(
        argv,
        description="Streams a model's answer to one message.",
        example='python -m stepalign_jax.generate --model packaged:tiny --prompt "47+3*8-12"',
        options=_OPTIONS,
    )
    for piece in generate(options):
        print(piece, end="", flush=True)


if __name__ == "__main__":
    run_command(main)
