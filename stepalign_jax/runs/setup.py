# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From a config to the objects a command works with. Cheap checks come first."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import (
    ArithmeticProblems,
    CheckpointCritic,
    Config,
    EmaTeacher,
    EngineCritic,
    InitialTeacher,
    JsonlProblems,
    LoraTrainable,
    ProblemsConfig,
    TrainableConfig,
)
from stepalign_jax.critics.engine_critic import Critic
from stepalign_jax.feedback.prompts import check_templates
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.grader import Grader
from stepalign_jax.huggingface.peft_adapters import load_adapter
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.parallel.mesh import make_mesh, split_devices
from stepalign_jax.parallel.offload import FrozenWeights
from stepalign_jax.problems.arithmetic import arithmetic_problems
from stepalign_jax.problems.jsonl import load_problems
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.outline import Outline, load_weights, make_engine, outline
from stepalign_jax.runs.second_model import check_room, load_critic, outline_critic
from stepalign_jax.sampling.engine import Engine
from stepalign_jax.training.optimizer import make_optimizer
from stepalign_jax.training.step import TrainState

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
      adapter: the adapter to start from, fp32 in host memory, or None for a fresh one.
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
    adapter: dict[str, Any] | None
    engine: Engine
    roles: Roles
    mesh: jax.sharding.Mesh
    critic: Critic

    @property
    def base(self) -> dict[str, Any]:
        """Params of the base; ask again after the critic's turn, which may move them."""
        return self.frozen.tree

    def initial_solver(self) -> dict[str, Any]:
        """The solver's weights before training; a frozen teacher has the same.

        A fresh adapter changes nothing, so the base alone stands for it.
        """
        if self.adapter is None:
            return {"params": self.base}
        return {"params": self.base, "lora": _to_device(self.adapter)}


def assemble(config: Config) -> Workbench:
    """Loads the model and its tokenizer; a second model as critic is left out.

    Raises:
      UserError: for prompts that cannot work, a checkpoint that cannot be had, or an
        adapter that does not fit it or the config.
    """
    known = _outline(config)
    return _load(config, known, *make_lora(config.trainable, known.model_config))


def assemble_with_critic(config: Config) -> Workbench:
    """Loads the model and whom the config names for critiques.

    Raises:
      UserError: as `assemble`, for both models, before the weights of either are read.
    """
    known = _outline(config)
    adapter = make_lora(config.trainable, known.model_config)
    if not isinstance(config.critic, CheckpointCritic):
        if isinstance(config.critic, EngineCritic):
            check_room(config, known.roles, known.model_config.max_positions)
        return _load(config, known, *adapter)
    second = outline_critic(config)
    check_room(config, second.roles, second.model_config.max_positions)
    # First, so that one that takes turns has left the devices when the other comes.
    critic = load_critic(config, second)
    return replace(_load(config, known, *adapter), critic=critic)


def _outline(config: Config) -> Outline:
    critic = config.critic
    check_templates(
        config.prompts, sees=critic.sees if isinstance(critic, EngineCritic) else "answer"
    )
    mesh = make_mesh(config.parallel, split_devices(config.critic, jax.devices())[0])
    return outline(config.model.path, config.model.compute_dtype, mesh, config.prompts)


def _load(
    config: Config, known: Outline, lora: LoraSpec | None, adapter: dict[str, Any] | None
) -> Workbench:
    frozen = FrozenWeights(load_weights(known))
    engine = make_engine(known, lora)
    max_positions = known.model_config.max_positions
    return Workbench(
        directory=known.directory,
        model_config=known.model_config,
        model=Qwen3(known.model_config, known.dtype, lora=lora, remat=config.model.remat),
        frozen=frozen,
        lora=lora,
        adapter=adapter,
        engine=engine,
        roles=known.roles,
        mesh=known.mesh,
        critic=Critic(engine, frozen, known.roles, known.mesh, max_positions, False),
    )


def make_lora(
    config: TrainableConfig, model_config: Qwen3Config
) -> tuple[LoraSpec | None, dict[str, Any] | None]:
    """Returns the adapter's spec (None: all weights train), and its values if it has a file.

    Raises:
      UserError: the adapter of the file cannot be read, or is another than the config's.
    """
    if not isinstance(config, LoraTrainable):
        return None, None
    spec = LoraSpec(config.rank, config.alpha, config.targets)
    if config.adapter == "":
        return spec, None
    found, adapter = load_adapter(Path(config.adapter), model_config)
    wanted = {"rank": spec.rank, "alpha": spec.alpha, "targets": ",".join(sorted(spec.targets))}
    actual = {
        "rank": found.rank,
        "alpha": found.alpha,
        "targets": ",".join(sorted(found.targets)),
    }
    for key, value in actual.items():
        if wanted[key] != value:
            raise UserError(
                f"trainable.{key} is {wanted[key]}, but the adapter in {config.adapter} has "
                f"{value}: set trainable.{key}={value} to start from it."
            )
    return spec, adapter


def initial_state(config: Config, bench: Workbench) -> TrainState:
    """Returns the state before the first optimizer step."""
    if bench.lora is None:
        # Copies even where the base is float32: an update may overwrite what it trains.
        params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), bench.base)
        return make_state(config, {"params": params})
    if bench.adapter is not None:
        return make_state(config, {"lora": _to_device(bench.adapter)})
    key = jax.random.key(config.seed)
    return make_state(config, {"lora": init_lora(bench.model_config, bench.lora, key)})


def make_state(config: Config, trainable: dict[str, Any]) -> TrainState:
    """Returns the state of a run that starts to train the tree `trainable`."""
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    # The frozen teacher is the base, with the adapter frozen where the run starts from one;
    # an average needs weights of its own. Either costs a second copy of `trainable`.
    adapted = isinstance(config.trainable, LoraTrainable) and config.trainable.adapter != ""
    frozen = isinstance(config.teacher, InitialTeacher) and adapted
    own = frozen or isinstance(config.teacher, EmaTeacher)
    teacher = jax.tree.map(jnp.copy, trainable) if own else {}
    return TrainState(jnp.int32(0), trainable, teacher, optimizer.init(trainable))  # pyright: ignore[reportCallIssue]


def _to_device(tree: Any) -> Any:
    # Copies: an update may overwrite what it trains, and never the host's arrays.
    return jax.tree.map(jnp.array, tree)


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
    if isinstance(config, JsonlProblems):
        problems = load_problems(Path(config.path) / f"{split}.jsonl")[:wanted]
    else:
        assert isinstance(config, ArithmeticProblems)
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
