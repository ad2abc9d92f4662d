# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Scored rollouts as other programs are told of them, with every number as it was scored."""

from typing import Any

import numpy as np

from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.exporting.told import Told, solver_prompt_of
from stepalign_jax.feedback.roles import Roles


def told_by_scores(scored: ScoredRollouts, roles: Roles) -> list[Told]:
    """Returns the rollouts of an analysis.

    Args:
      scored: of it.
      roles: prompts and tokenizer of the run.
    """
    return [_told(scored, rollout, roles) for rollout in range(len(scored.rows))]


def _told(scored: ScoredRollouts, rollout: int, roles: Roles) -> Told:
    row, own = scored.rows[rollout], scored.of(rollout)
    usable = {
        name: index
        for index, name in enumerate(scored.contexts)
        if scored.usable[index, rollout]
    }
    return Told(
        id=row["id"],
        step=row["step"],
        problem=row["problem"],
        answer=row["answer"],
        text=row["rollout"],
        prompt=solver_prompt_of(roles, row["problem"], row["answer"]),
        tokens=scored.tokens[own].tolist(),
        correct=bool(scored.correct[rollout]),
        contexts=_by_context(scored, row["contexts"]),
        failures=_by_context(scored, row["failures"]),
        advantages={name: scored.advantage[i, own].tolist() for name, i in usable.items()},
        kl={name: scored.kl[i, own].tolist() for name, i in usable.items()},
        logprobs=scored.solver_logprobs[own].tolist(),
        entropy=scored.solver_entropy[own].tolist(),
        top=_top(scored.solver_top_ids[own], scored.solver_top_logprobs[own]),
    )


def _by_context(scored: ScoredRollouts, values: list[Any]) -> dict[str, Any]:
    pairs = zip(scored.contexts, values, strict=True)
    return {name: value for name, value in pairs if value is not None}


def _top(ids: np.ndarray, logprobs: np.ndarray) -> list[list[tuple[int, float]]]:
    return [
        list(zip(row, values, strict=True))
        for row, values in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]
