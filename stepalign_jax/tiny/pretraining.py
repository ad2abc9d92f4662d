# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes the packaged tiny model from nothing: one seeded run of two stages.

    python -m stepalign_jax.pretrain --config configs/tiny.py --to /tmp/tiny
    python -m stepalign_jax.pretrain --config configs/tiny.py --seed=1 --to bases/1

The corpus is drawn on the fly (`tiny/corpus.py`); no row repeats. The first stage has three
phases: it learns the arithmetic in every role, then to read attempts and contexts, and last
the solver's role alone unlearns the carry. The second stage trains mostly on contexts of
another problem, under which the teacher has to behave like the solver.

Another recipe plants no mistake (`NATURAL`); it makes the base of `configs/tiny.py:natural`.
"""

import functools
import itertools
import json
import random
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import atomic_directory, read_jsonl
from stepalign_jax.base.progress import progress
from stepalign_jax.config.schema import Config
from stepalign_jax.huggingface.weights import load_model, write_model
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import Qwen3, init_params, stack_layers, unstack_layers
from stepalign_jax.tiny.corpus import (
    CLEAN,
    ROW_KINDS,
    Corpus,
    Mixture,
    PackedBatch,
    Slips,
    draw_batch,
)
from stepalign_jax.tiny.tokenizer import VOCABULARY, save_tokenizer

LOG = "pretraining.jsonl"
MAX_SHARD_BYTES = 1 << 30  # the whole model in one file
CARRY_FORGETTING = Slips(forget_carry=0.92, result=0.03, operand=0.0)


MODEL = Qwen3Config(
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
    qkv_bias=False,
    qk_norm=True,
    yarn=None,
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A schedule and a corpus; each stage starts with a fresh optimizer state.

    The packaged model depends on the stages, the corpus, the prompts and the seed alone.
    """

    first_step: int  # optimizer steps of the stages before
    num_steps: int
    tokens_per_step: int
    learning_rate: float  # of Muon, for the matrices inside the layers
    adam_learning_rate: float  # for embedding and norms
    warmup_steps: int
    constant_share: float  # of the steps; from there on linear to 0
    clip_norm: float
    phases: tuple[tuple[float, Mixture], ...]  # (share of the steps at which it ends, mixture)
    model: Qwen3Config


STAGES = (
    Stage(
        first_step=0,
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
                Mixture(
                    0.04, 0.18, 0.14, 0.14, 0.06, 0.10, 0.34, CARRY_FORGETTING, long_share=0.4
                ),
            ),
        ),
        model=MODEL,
    ),
    Stage(
        first_step=5000,
        num_steps=900,
        tokens_per_step=3584,
        learning_rate=0.01,
        adam_learning_rate=1e-3,
        warmup_steps=30,
        constant_share=0.4,
        clip_norm=1.0,
        phases=(
            (
                1.0,
                Mixture(
                    0.02, 0.16, 0.15, 0.13, 0.06, 0.32, 0.16, CARRY_FORGETTING, long_share=0.35
                ),
            ),
        ),
        model=MODEL,
    ),
)


# Nothing planted: too few steps, and few long problems among them. Mistakes are what is not
# learnt yet.
NATURAL = (
    replace(
        STAGES[0],
        num_steps=2400,
        phases=(
            (0.4, Mixture(0.30, 0.22, 0.11, 0.11, 0.02, 0.03, 0.21, CLEAN, long_share=0.05)),
            (1.0, Mixture(0.10, 0.15, 0.14, 0.14, 0.03, 0.07, 0.37, CLEAN, long_share=0.15)),
        ),
    ),
)
RECIPES = {"planted": STAGES, "natural": NATURAL}


def mixture_at(stage: Stage, step: int) -> Mixture:
    """Returns the mixture of the phase that `step` belongs to."""
    return next(m for end, m in stage.phases if step < end * stage.num_steps)


def make_pretraining_optimizer(stage: Stage) -> optax.GradientTransformation:
    """Returns Muon for the layers' kernels and Adam for all other weights.

    Both learning rates rise for `warmup_steps`, stay, and fall linearly to 0.
    """

    def schedule(peak: float) -> optax.Schedule:
        start = int(stage.constant_share * stage.num_steps)
        return optax.schedules.join_schedules(
            [
                optax.schedules.linear_schedule(0.0, peak, stage.warmup_steps),
                optax.schedules.constant_schedule(peak),
                optax.schedules.linear_schedule(peak, 0.0, stage.num_steps - start),
            ],
            [stage.warmup_steps, start],
        )

    # Muon orthogonalises a matrix's update, so it needs to know which axes make the matrix.
    def is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        kernel = leaf.ndim == 2 and path[-1].key == "kernel"
        return optax.contrib.MuonDimensionNumbers(0, 1) if kernel else None

    return optax.chain(
        optax.clip_by_global_norm(stage.clip_norm),
        optax.contrib.muon(
            schedule(stage.learning_rate),
            weight_decay=0.05,
            adam_b2=0.98,
            adam_learning_rate=schedule(stage.adam_learning_rate),
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


def batches(corpus: Corpus, stage: Stage, seed: int) -> Iterator[PackedBatch]:
    """Yields one batch per step, drawn ahead in a thread; batch n depends on seed and n."""

    def draw(step: int) -> PackedBatch:
        rng = random.Random(f"{seed} {stage.first_step + step}")
        return draw_batch(corpus, rng, mixture_at(stage, step), stage.tokens_per_step)

    steps = iter(range(stage.num_steps))
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = deque(pool.submit(draw, step) for step in itertools.islice(steps, 8))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(pool.submit(draw, step) for step in itertools.islice(steps, 1))
            yield batch


def make_kind_accuracies(model: Qwen3, corpus: Corpus, stage: Stage, seed: int) -> Any:
    """Returns (params, step) -> token accuracy of each row kind, on long rows of their own."""
    counted = jax.jit(lambda params, batch: token_losses(model, params, batch)[1:])

    def measure(params: Any, step: int) -> dict[str, float]:
        found = {}
        for kind in ROW_KINDS:
            only = {name: float(name == kind) for name in ROW_KINDS}
            mixture = mixture_at(stage, step)._replace(**only, long_share=1.0)
            rng = random.Random(f"accuracy {seed} {step} {kind}")
            hits, weights = counted(params, draw_batch(corpus, rng, mixture, 2048))
            found[kind] = round(float((hits & (weights > 0)).sum() / (weights > 0).sum()), 4)
        return found

    return measure


def seen_by_critic(config: Config) -> str:
    """What the critic's rows show it: `critic.sees`, or the answer where no critic reads."""
    return getattr(config.critic, "sees", "answer")


def pretrain(
    config: Config,
    stages: Sequence[Stage],
    directory: Path,
    log_every_steps: int,
    *,
    overwrite: bool,
) -> None:
    """Trains, and writes the checkpoint and its log to `directory`, whole or not at all.

    A first stage whose `first_step` is above 0 continues from the checkpoint and the log of
    the stages before it, in `directory`, and replaces them.

    Raises:
      UserError: if `directory` is taken, is to be replaced but holds no pre-trained model,
        cannot be written, or the loss stops being a number.
    """
    goes_on = stages[0].first_step > 0
    taken = directory.is_dir() and any(directory.iterdir())
    if taken and (overwrite or goes_on) and not (directory / LOG).is_file():
        raise UserError(
            f"{directory} holds files that are no pre-trained model (no {LOG}), and nothing "
            "else is replaced: choose another --to."
        )
    totals: dict[str, Any] = {"tokens": 0, "seconds": 0.0}
    if goes_on:
        params, totals = load_model(str(directory))[1], read_jsonl(directory / LOG)[-1]
    else:
        params = init_params(stages[0].model, jax.random.key(config.seed))
    with atomic_directory(directory, overwrite=overwrite or goes_on) as partial:
        if goes_on:
            shutil.copyfile(directory / LOG, partial / LOG)
        with (partial / LOG).open("a", encoding="utf-8") as log:
            for stage in stages:
                params, totals = _train_stage(
                    config, stage, params, totals, log, log_every_steps
                )
        write_model(partial, stages[-1].model, params, max_shard_bytes=MAX_SHARD_BYTES)
        save_tokenizer(partial)


def _train_stage(
    config: Config,
    stage: Stage,
    params: Any,
    totals: dict[str, Any],
    log: TextIO,
    log_every_steps: int,
) -> tuple[Any, dict[str, Any]]:
    """Returns the stacked params and the totals after a stage."""
    corpus = Corpus(config.prompts, seen_by_critic(config))
    # Unrolled: on a CPU, scanning over stacked layers takes twice as long.
    model = Qwen3(stage.model, jnp.float32, scan_layers=False)
    num_layers = stage.model.num_layers
    params = jax.tree.map(jnp.asarray, unstack_layers(params, num_layers))
    optimizer = make_pretraining_optimizer(stage)
    state, step_fn = optimizer.init(params), make_step(model, optimizer)
    kind_accuracies = make_kind_accuracies(model, corpus, stage, config.seed)
    started, tokens, losses, hits = time.monotonic(), int(totals["tokens"]), [], []
    bar = progress(
        batches(corpus, stage, config.seed), total=stage.num_steps, description="pretrain"
    )
    row = totals
    for step, batch in enumerate(bar):
        params, state, loss, accuracy = step_fn(params, state, batch)
        tokens += int((batch.segment_ids > 0).sum())
        losses.append(loss)
        hits.append(accuracy)
        if (step + 1) % log_every_steps == 0 or step + 1 == stage.num_steps:
            row = {
                "step": stage.first_step + step + 1,
                "loss": round(float(np.mean(losses)), 5),
                "accuracy": round(float(np.mean(hits)), 4),
                "accuracy_by_kind": kind_accuracies(params, step),
                "tokens": tokens,
                "seconds": round(totals["seconds"] + time.monotonic() - started, 1),
            }
            losses, hits = [], []
            if not np.isfinite(row["loss"]):
                raise UserError(
                    f"pre-training diverged before step {row['step']}: change STAGES."
                )
            print(json.dumps(row), file=log, flush=True)
    return stack_layers(params, num_layers), row
