# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From a config to the objects a command works with. Cheap checks come first."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stepalign_jax.base.config import Config, ProblemsConfig
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Problem
from stepalign_jax.feedback.critic import Critic
from stepalign_jax.feedback.prompts import check_templates
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.objectives.optimizer import make_optimizer
from stepalign_jax.objectives.update import TrainState
from stepalign_jax.parallel.mesh import make_mesh, split_devices
from stepalign_jax.parallel.offload import FrozenWeights
from stepalign_jax.problems.arithmetic import arithmetic_problems
from stepalign_jax.problems.grading import Grader
from stepalign_jax.problems.jsonl import load_problems
from stepalign_jax.runs.outline import Outline, load_weights, make_engine, outline
from stepalign_jax.runs.second_model import check_room, load_critic, outline_critic
from stepalign_jax.sampling.engine import Engine

SPLITS = ("train", "validation", "test")
GRADING_WORKERS = 2


@dataclass(frozen=True)
class Workbench:
    """One model in its roles, how to sample from it, and whom to ask for critiques.

    Attributes:
      directory: the checkpoint's files.
      model_config: sizes.
      model: the module for scoring, layers scanned.
      frozen: params of the base in the compute dtype, on the mesh or waiting.
      lora: the adapter's spec, or None when all weights train.
      engine: samples from the same module.
      roles: prompts and tokenizer.
      mesh: where it all lies.
      critic: the base itself, unless a second model was assembled with it.
    """

    directory: Path
    model_config: Qwen3Config
    model: Qwen3
    frozen: FrozenWeights
    lora: LoraSpec | None
    engine: Engine
    roles: Roles
    mesh: jax.sharding.Mesh
    critic: Critic

    @property
    def base(self) -> dict[str, Any]:
        """Params of the base; ask again after the critic's turn, which may move them."""
        return self.frozen.tree


def assemble(config: Config) -> Workbench:
    """Loads the model and its tokenizer; a second model as critic is left out.

    Raises:
      UserError: for prompts that cannot work, or a checkpoint that cannot be had.
    """
    return _load(config, _outline(config))


def assemble_with_critic(config: Config) -> Workbench:
    """Loads the model and whom the config names for critiques.

    Raises:
      UserError: as `assemble`, for both models, before the weights of either are read.
    """
    known = _outline(config)
    if config.critic.kind != "checkpoint":
        if config.critic.kind == "self":
            check_room(config, known.roles, known.model_config.max_positions)
        return _load(config, known)
    second = outline_critic(config)
    check_room(config, second.roles, second.model_config.max_positions)
    # First, so that one that takes turns has left the devices when the other comes.
    critic = load_critic(config, second)
    return replace(_load(config, known), critic=critic)


def _outline(config: Config) -> Outline:
    check_templates(config.prompts, sees=config.critic.sees)
    mesh = make_mesh(config.parallel, split_devices(config.critic, jax.devices())[0])
    return outline(config.model.path, config.model.compute_dtype, mesh, config.prompts)


def _load(config: Config, known: Outline) -> Workbench:
    trainable, lora = config.trainable, None
    if trainable.kind == "lora":
        lora = LoraSpec(trainable.rank, trainable.alpha, trainable.targets)
    frozen = FrozenWeights(load_weights(known))
    engine = make_engine(known, lora)
    max_positions = known.model_config.max_positions
    return Workbench(
        directory=known.directory,
        model_config=known.model_config,
        model=Qwen3(known.model_config, known.dtype, lora=lora, remat=config.model.remat),
        frozen=frozen,
        lora=lora,
        engine=engine,
        roles=known.roles,
        mesh=known.mesh,
        critic=Critic(engine, frozen, known.roles, known.mesh, max_positions, False),
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
