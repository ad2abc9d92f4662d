# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes the packaged tiny model from nothing: one seeded run of three phases.

    python -m stepalign_jax.pretrain --config configs/tiny.py --to /tmp/tiny

The corpus is drawn on the fly (`feedback/pretraining_corpus.py`); no row repeats. First
the arithmetic is learnt in every role, then reading attempts and contexts, and last the
solver's role, alone, unlearns the carry.
"""

import functools
import json
import queue
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stepalign_jax.base.cli import parse_arguments, progress, run_command
from stepalign_jax.base.config import Config
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.load_config import load_config
from stepalign_jax.feedback.pretraining_corpus import (
    CLEAN,
    ROW_KINDS,
    Corpus,
    Mixture,
    PackedBatch,
    Slips,
    draw_batch,
)
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import Qwen3, init_params, stack_layers, unstack_layers
from stepalign_jax.model.weights import save_model
from stepalign_jax.problems.arithmetic_tokenizer import VOCABULARY, save_tokenizer

CARRY_FORGETTING = Slips(forget_carry=0.92, result=0.03, operand=0.0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything the packaged model depends on, beside the corpus and the prompts."""

    seed: int
    num_steps: int
    tokens_per_step: int
    learning_rate: float  # of Muon, for the matrices inside the layers
    adam_learning_rate: float  # for embedding and norms
    warmup_steps: int
    constant_share: float  # of the steps; from there on linear to 0
    clip_norm: float
    phases: tuple[tuple[float, Mixture], ...]  # (share of the steps at which it ends, mixture)
    model: Qwen3Config


RECIPE = Recipe(
    seed=0,
    num_steps=5000,
    tokens_per_step=3584,
    learning_rate=0.02,
    adam_learning_rate=2e-3,
    warmup_steps=60,
    constant_share=0.6,
    clip_norm=1.0,
    phases=(
        (0.2, Mixture(0.30, 0.22, 0.11, 0.11, 0.02, 0.03, 0.21, CLEAN, long_share=0.2)),
        (0.6, Mixture(0.10, 0.15, 0.14, 0.14, 0.03, 0.07, 0.37, CLEAN, long_share=0.45)),
        (
            1.0,
            Mixture(0.04, 0.18, 0.14, 0.14, 0.06, 0.10, 0.34, CARRY_FORGETTING, long_share=0.4),
        ),
    ),
    model=Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        intermediate_size=384,
        rope_theta=10_000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        max_positions=512,
    ),
)


def mixture_at(recipe: Recipe, step: int) -> Mixture:
    """Returns the mixture of the phase that `step` belongs to."""
    return next(m for end, m in recipe.phases if step < end * recipe.num_steps)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Returns Muon for the layers' kernels and Adam for all else, warmed up and decayed."""

    def schedule(peak: float) -> optax.Schedule:
        start = int(recipe.constant_share * recipe.num_steps)
        return optax.schedules.join_schedules(
            [
                optax.schedules.linear_schedule(0.0, peak, recipe.warmup_steps),
                optax.schedules.constant_schedule(peak),
                optax.schedules.linear_schedule(peak, 0.0, recipe.num_steps - start),
            ],
            [recipe.warmup_steps, start],
        )

    def is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        kernel = leaf.ndim == 2 and path[-1].key == "kernel"
        return optax.contrib.MuonDimensionNumbers(0, 1) if kernel else None

    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        optax.contrib.muon(
            schedule(recipe.learning_rate),
            weight_decay=0.05,
            adam_b2=0.98,
            adam_learning_rate=schedule(recipe.adam_learning_rate),
            muon_weight_dimension_numbers=functools.partial(
                jax.tree_util.tree_map_with_path, is_kernel
            ),
        ),
    )


def token_losses(
    model: Qwen3, params: Any, batch: PackedBatch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns [B, T-1] negative log-likelihoods, hits, and weights of the targets."""
    apply: Any = functools.partial(model.apply, {"params": params})
    hidden, _ = apply(batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids)
    logits = apply(hidden[:, :-1], method="logits")
    targets = batch.targets[:, 1:]
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses, logits.argmax(-1) == targets, jnp.asarray(batch.weights)[:, 1:]


def make_step(model: Qwen3, optimizer: optax.GradientTransformation) -> Any:
    """Returns the jitted step: (params, optimizer state, batch) -> (both, loss, accuracy)."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, batch: PackedBatch) -> Any:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            losses, hits, weights = token_losses(model, params, batch)
            counted = weights > 0
            return (losses * weights).sum() / weights.sum(), (
                hits & counted
            ).sum() / counted.sum()

        (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value, accuracy

    return step


def batches(corpus: Corpus, recipe: Recipe) -> Iterator[PackedBatch]:
    """Yields one batch per step, drawn ahead in a thread; batch n depends on seed and n."""
    ahead: queue.Queue[PackedBatch] = queue.Queue(8)

    def draw() -> None:
        for step in range(recipe.num_steps):
            rng = random.Random(f"{recipe.seed} {step}")
            ahead.put(draw_batch(corpus, rng, mixture_at(recipe, step), recipe.tokens_per_step))

    threading.Thread(target=draw, daemon=True).start()
    for _ in range(recipe.num_steps):
        yield ahead.get()


def make_kind_accuracies(model: Qwen3, corpus: Corpus, recipe: Recipe) -> Any:
    """Returns (params, step) -> token accuracy of each row kind, on long rows of their own."""
    counted = jax.jit(lambda params, batch: token_losses(model, params, batch)[1:])

    def measure(params: Any, step: int) -> dict[str, float]:
        found = {}
        for kind in ROW_KINDS:
            only = {name: float(name == kind) for name in ROW_KINDS}
            mixture = mixture_at(recipe, step)._replace(**only, long_share=1.0)
            rng = random.Random(f"accuracy {recipe.seed} {step} {kind}")
            hits, weights = counted(params, draw_batch(corpus, rng, mixture, 2048))
            found[kind] = round(float((hits & (weights > 0)).sum() / (weights > 0).sum()), 4)
        return found

    return measure


def pretrain(config: Config, recipe: Recipe, directory: Path, log_every_steps: int) -> None:
    """Trains, and writes the checkpoint and its log to `directory`.

    Raises:
      UserError: if `directory` cannot be written, or the loss stops being a number.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {directory} ({error}); choose another --to."
        ) from error
    corpus = Corpus(config.prompts)
    # Unrolled: on a CPU, scanning over stacked layers takes twice as long.
    model = Qwen3(recipe.model, jnp.float32, scan_layers=False)
    num_layers = recipe.model.num_layers
    params = unstack_layers(init_params(recipe.model, jax.random.key(recipe.seed)), num_layers)
    optimizer = make_optimizer(recipe)
    state, step_fn = optimizer.init(params), make_step(model, optimizer)
    started, tokens, losses, hits = time.monotonic(), 0, [], []
    kind_accuracies = make_kind_accuracies(model, corpus, recipe)
    log = (directory / "pretraining.jsonl").open("w")
    stream = batches(corpus, recipe)
    for step, batch in enumerate(
        progress(stream, total=recipe.num_steps, description="pretrain")
    ):
        params, state, loss, accuracy = step_fn(params, state, batch)
        tokens += int((batch.segment_ids > 0).sum())
        losses.append(loss)
        hits.append(accuracy)
        if (step + 1) % log_every_steps == 0 or step + 1 == recipe.num_steps:
            row = {
                "step": step + 1,
                "loss": round(float(np.mean(losses)), 5),
                "accuracy": round(float(np.mean(hits)), 4),
                "accuracy_by_kind": kind_accuracies(params, step),
                "tokens": tokens,
                "seconds": round(time.monotonic() - started, 1),
            }
            losses, hits = [], []
            if not np.isfinite(row["loss"]):
                raise UserError(f"pre-training diverged before step {step + 1}; change RECIPE.")
            print(json.dumps(row), file=log, flush=True)
            save_model(directory, recipe.model, stack_layers(params, num_layers))
    log.close()
    save_tokenizer(directory)


def main(argv: list[str]) -> None:
    """Runs the recipe."""
    arguments = parse_arguments(
        argv,
        description="Pre-trains the packaged tiny model from nothing.",
        example="python -m stepalign_jax.pretrain --config configs/tiny.py --to /tmp/tiny",
        options={
            "--to": {"required": True, "metavar": "DIR", "help": "where the checkpoint goes"},
            "--log-every-steps": {"type": int, "default": 200, "metavar": "N"},
        },
    )
    config = load_config(arguments.config, arguments.overrides)
    pretrain(config, RECIPE, Path(arguments.to), arguments.log_every_steps)


if __name__ == "__main__":
    run_command(main)
