# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The critic of a run, with what `critiques` of the config wraps around it.

    Accepting( Noisy( Recording( the critic that asks )))

Each is there only if the config asks for it. So noise is not stored, and is checked. A server's
critic keeps its own store, and a replay has one already.
"""

from stepalign_jax.config.critics import EndpointCritic, ReplayCritic
from stepalign_jax.config.schema import CriticConfig, CritiquesConfig
from stepalign_jax.critics.accepting import Accepting
from stepalign_jax.critics.noisy import Noisy
from stepalign_jax.critics.protocol import Critic, Surroundings, open_critic
from stepalign_jax.critics.recording import Recording
from stepalign_jax.feedback.reasoning_steps import TraceFormat


def open_wrapped_critic(
    config: CriticConfig, critiques: CritiquesConfig, surroundings: Surroundings
) -> Critic:
    """Returns the critic that `config` names, its critiques stored, spoilt and checked.

    Raises:
      UserError: the critic cannot be used in this run, or a check is unknown.
    """
    prompts = surroundings.prompts
    trace = TraceFormat(prompts.reasoning_step_pattern, prompts.answer_pattern)
    critic = open_critic(config, surroundings)
    if critiques.store == "all" and not isinstance(config, EndpointCritic | ReplayCritic):
        critic = Recording(critic, config, prompts, surroundings.store)
    if critiques.noise_share:
        critic = Noisy(critic, critiques.noise, critiques.noise_share, trace)
    if critiques.checks or critiques.min_copy_fidelity or critiques.max_retries:
        critic = Accepting(critic, critiques, trace)
    return critic
