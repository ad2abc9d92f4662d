# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A second model as critic: its checks, its weights, and its turns on the devices.

`critic.placement` says where its weights are:

    own        on the last `critic.num_devices` devices; training has the others
    shared     beside those of the model that is trained, on the same devices: the least
               time, where both fit
    in_turns   on the same devices, which the one that is idle leaves for host memory: base,
               trainable weights, optimizer and teacher while the critic is asked, and the
               critic at all other times
"""

from collections.abc import Callable
from typing import TypeVar

import jax

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import CheckpointCritic, Config, EngineCritic, InTurns
from stepalign_jax.critics.engine_critic import Critic
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.parallel.mesh import make_critic_mesh, split_devices
from stepalign_jax.parallel.offload import FrozenWeights, offload, restore
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.outline import Outline, load_weights, make_engine, outline

Answer = TypeVar("Answer")
Idle = TypeVar("Idle")


def outline_critic(config: Config) -> Outline:
    """Reads all of the second model but its weights.

    Raises:
      UserError: it cannot be had, or does not fit its devices.
    """
    critic = config.critic
    assert isinstance(critic, CheckpointCritic)
    mesh = make_critic_mesh(critic, split_devices(critic, jax.devices())[1])
    try:
        return outline(critic.path, critic.compute_dtype, mesh, config.prompts)
    except UserError as error:  # they speak of the model that is trained
        sentence = str(error).replace("model.path", "critic.path")
        raise UserError(sentence.replace("parallel.", "critic.")) from error


def load_critic(config: Config, known: Outline) -> Critic:
    """Reads the second model's weights; one that takes turns leaves the devices at once.

    Raises:
      UserError: the weights cannot be read.
    """
    weights = FrozenWeights(load_weights(known))
    critic = config.critic
    takes_turns = isinstance(critic, CheckpointCritic) and isinstance(critic.placement, InTurns)
    if takes_turns:
        weights.leave()
    return Critic(
        engine=make_engine(known, lora=None),
        weights=weights,
        roles=known.roles,
        mesh=known.mesh,
        max_positions=known.model_config.max_positions,
        takes_turns=takes_turns,
    )


def check_room(config: Config, roles: Roles, max_positions: int) -> None:
    """Refuses a token budget that the longest prompt of the critic leaves no room for.

    The prompt is the template with the longest problem and rollout that the config admits,
    in tokens of the model that is trained. What exceeds it nevertheless, by a reference or
    because the critic's tokenizer cuts finer, fails as `prompt_too_long` when it comes.

    Raises:
      UserError: naming the budget and the room for it.
    """
    critic = config.critic
    assert isinstance(critic, EngineCritic)
    nothing = Problem("", "", "", "")
    template = len(roles.critic(nothing, "", critic.sees) or [])
    longest = template + config.prompts.max_problem_tokens + config.sampling.max_new_tokens
    if longest + critic.max_new_tokens > max_positions:
        raise UserError(
            f"critic.max_new_tokens is {critic.max_new_tokens}, but of the critic's "
            f"{max_positions} positions its longest prompt takes {longest} (template, "
            "prompts.max_problem_tokens, sampling.max_new_tokens): lower one of them."
        )


def take_turn(
    critic: Critic, base: FrozenWeights, idle: Idle, ask: Callable[[], Answer]
) -> tuple[Answer, Idle]:
    """Returns what `ask` returns, and `idle`, whose arrays were given away if it moved.

    A critic that takes turns has the devices while it is asked: `base` and `idle` wait in
    host memory. For other critics nothing moves.

    Args:
      critic: whom `ask` asks.
      base: the frozen weights of the model that is trained.
      idle: a tree of jax.Array, all else of it that is on the devices; {} if there is none.
      ask: asks.
    """
    if not critic.takes_turns:
        return ask(), idle
    base.leave()
    waiting = offload(idle)
    critic.weights.come()
    answer = ask()
    critic.weights.leave()
    base.come()
    return answer, restore(waiting)
