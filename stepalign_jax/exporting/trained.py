# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of a run to export: which one, its weights, and rollouts to measure it on."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.config.learning import EmaTeacher, LiveTeacher
from stepalign_jax.config.load import config_from_json
from stepalign_jax.config.schema import Config, LoraTrainable
from stepalign_jax.exporting.rounding import ProbeText
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.huggingface.language_model import LanguageModel, open_language_model
from stepalign_jax.model.lora import LoraSpec, abstract_lora
from stepalign_jax.model.qwen3 import abstract_params
from stepalign_jax.parallel.mesh import make_mesh, param_shardings, unboxed
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.checkpoint import finished_steps, restore_part
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.inputs import warn_of_another_model

SECTIONS = ("model", "trainable", "prompts", "parallel")  # of the run's config

# Read of each rollout: the cost of rounding does not depend on where a long text ends.
_COMPLETION_TOKENS = 256


class Trained(NamedTuple):
    """One checkpoint of a run, before any array is loaded.

    Attributes:
      run: its directory.
      config: its config.
      model: its base, opened, with an adapter of the run's size if it trained one.
      step: optimizer steps done at the checkpoint.
    """

    run: RunDirectory
    config: Config
    model: LanguageModel
    step: int


def find_trained(
    run: RunDirectory, overrides: Sequence[str], *, step: int | None, metric: str | None
) -> Trained:
    """Returns the checkpoint that `choose_step` chooses.

    Args:
      run: its config.json is read.
      overrides: of the config, such as `--model.path=...` where the base has moved.
      step: which checkpoint, or None.
      metric: of validation, or None.

    Raises:
      UserError: there is no such run, checkpoint or base model.
    """
    config = config_of_run(run, overrides)
    chosen = choose_step(run, step, metric)
    trainable, mesh = config.trainable, make_mesh(config.parallel)
    # Merging is computed in fp32, whatever the run computed in.
    model = open_language_model(config.model.path, dtype=jnp.float32, mesh=mesh)
    if isinstance(trainable, LoraTrainable):
        model = model.with_adapter(LoraSpec.of(trainable))
    return Trained(run, config, model, chosen)


def config_of_run(run: RunDirectory, overrides: Sequence[str]) -> Config:
    """Returns the config of a run, with overrides of what an export reads.

    Raises:
      UserError: there is no such run, or an override cannot be.
    """
    if not run.config_file.is_file():
        raise UserError(f"{run.path} is not a run: it has no {run.config_file.name}.")
    return config_from_json(run.config_file, overrides, SECTIONS)


def choose_step(run: RunDirectory, step: int | None, metric: str | None) -> int:
    """Returns `step`, or the kept one that is best by `metric`, or else the newest.

    Of equally good steps the earliest is the best. A warning on stderr names a better step
    whose checkpoint was not kept.

    Raises:
      UserError: that checkpoint is not there; the sentence lists those that are.
    """
    kept = finished_steps(run.checkpoints)
    if not kept:
        raise UserError(f"{run.checkpoints} holds no finished checkpoint; train first.")
    there = f"{run.checkpoints} has those of steps {', '.join(map(str, kept))}"
    if step is not None and step not in kept:
        raise UserError(f"step {step} has no checkpoint: {there}.")
    if metric is None:
        return kept[-1] if step is None else step
    scores = run.validation_scores(metric)
    candidates = [candidate for candidate in kept if candidate in scores]
    if not candidates:
        raise UserError(
            f"no checkpoint of {run.path} was validated, so there is no best one: {there}; "
            "choose with --step."
        )
    best = max(scores, key=lambda candidate: scores[candidate])
    chosen = max(candidates, key=lambda candidate: scores[candidate])
    if scores[best] > scores[chosen]:
        print(
            f"warning: the best validation {metric} is {scores[best]:.4f} at step {best}, "
            f"which has no checkpoint; step {chosen} with {scores[chosen]:.4f} is the best "
            f"that has one ({there}).",
            file=sys.stderr,
        )
    return chosen


def load_trained(trained: Trained) -> dict[str, Any]:
    """Returns {"lora": ...} or {"params": ...}, fp32; teacher and optimizer are not read.

    Raises:
      UserError: the checkpoint is damaged, or of another base.
    """
    warn_of_another_model(trained.run, trained.model.directory)
    return _load(trained, "trainable")


def load_teacher(trained: Trained, solver: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables of the checkpoint's teacher.

    Args:
      trained: its model is loaded.
      solver: the checkpoint's, which are those of a live teacher.

    Raises:
      UserError: as `load_trained`.
    """
    model = trained.model
    match trained.config.teacher:
        case LiveTeacher():
            return solver
        case EmaTeacher():
            return {"params": model.base} | _load(trained, "teacher")
        case _:
            return model.variables()


def _load(trained: Trained, field: str) -> dict[str, Any]:
    """A tree like the trainable one, from a field of the state."""
    model = trained.model
    if model.lora is None:
        name, boxed = "params", abstract_params(model.sizes)
    else:
        name, boxed = "lora", abstract_lora(model.sizes, model.lora)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=sharding),
        unboxed(boxed),
        param_shardings(model.mesh, boxed),
    )
    part = {field: {name: abstract}}
    return restore_part(trained.run.checkpoints, part, trained.step)[field]


def probe_texts(trained: Trained, num_texts: int) -> list[ProbeText]:
    """Returns the last rollouts before the checkpoint with their prompts, up to `num_texts`."""
    roles, texts = Roles(trained.model.tokenizer, trained.config.prompts), []
    for step in reversed(range(trained.step)):
        path = trained.run.rollouts_file(step)
        if len(texts) >= num_texts:
            break
        if not path.exists():
            continue
        for row in read_jsonl(path):
            problem = Problem(row["problem"], row["answer"], None, "rollout")
            tokens = row["tokens"][:_COMPLETION_TOKENS]
            if tokens:
                texts.append(ProbeText(roles.solver(problem), tokens))
    return texts[:num_texts]
