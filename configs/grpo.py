# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's GRPO baseline: no teacher and no critic, only the reward of the answer.

    python -m stepalign_jax.train --config grpo

What is not named here is configs/stepalign.py, whose words on provenance hold here too.
"""

from dataclasses import replace

from stepalign_jax.config.learning import PolicyGradient
from stepalign_jax.config.load import check_variant
from stepalign_jax.config.schema import Config
from stepalign_jax.configs import stepalign


def get_config(variant: str) -> Config:
    """Returns stepalign's config with the policy-gradient objective and groups of 8."""
    check_variant(variant)
    base = stepalign.get_config("")
    train = replace(
        base.train,
        # inferred, not reported: 32 problems a step, so 256 completions. Only so does the
        # reported best step (30 to 50) lie in the same epochs as for the other conditions.
        problems_per_step=32,
        samples_per_problem=8,  # paper
        micro_batches=64,  # ours: 4 sequences at once, as in stepalign
    )
    objective = PolicyGradient(
        token_tile=base.objective.token_tile,
        token_weights=base.objective.token_weights,
        # ours: the temperature that rollouts are drawn at; top-k and top-p are left out
        loss_temperature=base.sampling.temperature,
        clip=0.2,  # ours
    )
    return replace(base, name="grpo", condition="grpo", objective=objective, train=train)
