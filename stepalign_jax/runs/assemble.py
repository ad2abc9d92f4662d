# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From a config to the objects a command works with. Cheap checks come first."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stepalign_jax.base.config import Config, ProblemsConfig
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Problem
from stepalign_jax.feedback.prompts import check_templates
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.model.qwen3 import Qwen3, abstract_params
from stepalign_jax.model.tokenizer import load_tokenizer, stop_ids
from stepalign_jax.model.weights import load_config, load_params, resolve_checkpoint
from stepalign_jax.objectives.optimizer import make_optimizer
from stepalign_jax.objectives.update import TrainState
from stepalign_jax.parallel.mesh import make_mesh, param_shardings
from stepalign_jax.problems.arithmetic import arithmetic_problems
from stepalign_jax.problems.grading import Grader
from stepalign_jax.problems.jsonl import load_problems
from stepalign_jax.sampling.engine import Engine

SPLITS = ("train", "validation", "test")
GRADING_WORKERS = 2


@dataclass(frozen=True)
class Workbench:
    """One model in its three roles, and how to sample from it.

    Attributes:
      directory: the checkpoint's files.
      model_config: sizes.
      model: the module for scoring, layers scanned.
      base: params of the base in the compute dtype, on the mesh.
      lora: the adapter's spec, or None when all weights train.
      engine: samples from the same module.
      roles: prompts and tokenizer.
      mesh: where it all lies.
    """

    directory: Path
    model_config: Qwen3Config
    model: Qwen3
    base: dict[str, Any]
    lora: LoraSpec | None
    engine: Engine
    roles: Roles
    mesh: jax.sharding.Mesh


def assemble(config: Config) -> Workbench:
    """Loads the model and its tokenizer.

    Raises:
      UserError: for prompts that cannot work, or a checkpoint that cannot be had.
    """
    check_templates(config.prompts, sees=config.critic.sees)
    mesh = make_mesh(config.parallel)
    directory = resolve_checkpoint(config.model.path)
    model_config = load_config(directory)
    dtype = jnp.dtype(config.model.compute_dtype)
    shardings = param_shardings(mesh, abstract_params(model_config))
    base = load_params(directory, model_config, dtype=dtype, shardings=shardings)
    trainable = config.trainable
    lora = None
    if trainable.kind == "lora":
        lora = LoraSpec(trainable.rank, trainable.alpha, trainable.targets)
    tokenizer = load_tokenizer(directory)
    stops = stop_ids(tokenizer, directory)
    pad_id = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Workbench(
        directory=directory,
        model_config=model_config,
        model=Qwen3(model_config, dtype, lora=lora, remat=config.model.remat),
        base=base,
        lora=lora,
        engine=Engine(model_config, dtype, lora, stops, pad_id),
        roles=Roles(tokenizer, config.prompts),
        mesh=mesh,
    )


def initial_state(config: Config, bench: Workbench) -> TrainState:
    """Returns the state before the first optimizer step."""
    if bench.lora is None:
        # Copies even where the base is float32: an update may overwrite what it trains.
        params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), bench.base)
        trainable = {"params": params}
    else:
        key = jax.random.key(config.seed)
        trainable = {"lora": init_lora(bench.model_config, bench.lora, key)}
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    # The frozen teacher is the base itself; an average needs weights of its own.
    teacher = jax.tree.map(jnp.copy, trainable) if config.teacher.kind == "ema" else {}
    return TrainState(jnp.int32(0), trainable, teacher, optimizer.init(trainable))  # pyright: ignore[reportCallIssue]


def make_grader(config: Config) -> Grader:
    """Returns the judge of answers; use it as a context manager."""
    return Grader(deadline_secs=config.evaluation.grading_secs, num_workers=GRADING_WORKERS)


def problem_set(config: ProblemsConfig, split: str) -> list[Problem]:
    """Returns the problems of `split`, one of SPLITS.

    Raises:
      UserError: if there are none, or their file is missing or damaged.
    """
    wanted = {
        "train": config.num_train,
        "validation": config.num_validation,
        "test": config.num_test,
    }[split]
    if config.source == "jsonl":
        problems = load_problems(Path(config.path) / f"{split}.jsonl")[:wanted]
    else:
        problems = arithmetic_problems(
            "training" if split == "train" else split,
            wanted,
            config.min_reasoning_steps,
            config.max_reasoning_steps,
        )
    if not problems:
        raise UserError(
            f"the {split} set has no problems; give problems.num_{split} a number above 0."
        )
    return problems
