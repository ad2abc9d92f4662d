# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a step scores: both roles, the same tokens, each at its own offsets."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from support.updates import (
    ALL,
    MODEL,
    OBJECTIVE,
    OTHER_PARAMS,
    PARAMS,
    SOLVER_PROMPTS,
    TEACHER_PROMPTS,
    copy,
    make_part,
    plain_logprobs,
    spread,
    teacher_states,
)

from stepalign_jax.model.qwen3 import output_head
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.training.scoring import Part, distillation_scores


@functools.cache
def scorer() -> Callable[..., TokenScores]:
    def score(solver: Any, teacher: Any, part: Part) -> TokenScores:
        hidden, head = teacher_states(MODEL, teacher, part), output_head(teacher["params"])
        return distillation_scores(MODEL, solver, hidden, head, part, OBJECTIVE)[1]

    return jax.jit(score)


def test_equal_weights_and_prompts_diverge_nowhere():
    # As two arguments, and in two shapes, the passes cannot become one.
    part = make_part(SOLVER_PROMPTS, teacher_width=24)
    scores = scorer()({"params": PARAMS}, {"params": copy(PARAMS)}, part)
    assert np.abs(spread(scores.divergence)).max() <= 1e-6
    # First order in the rounding of the logits, where the divergence is second order.
    assert np.abs(spread(scores.advantage)).max() <= 2e-5
    away = scorer()({"params": PARAMS}, {"params": OTHER_PARAMS}, part)
    assert spread(away.divergence)[ALL].min() > 1e-3


def test_both_roles_score_the_same_tokens_at_their_own_offsets():
    solver, teacher = {"params": PARAMS}, {"params": OTHER_PARAMS}
    scores = scorer()(solver, teacher, make_part(teacher_width=24))
    expected_solver = plain_logprobs(solver, SOLVER_PROMPTS)
    expected_teacher = plain_logprobs(teacher, TEACHER_PROMPTS)
    for found, expected in (
        (scores.solver_logprobs, expected_solver),
        (scores.teacher_logprobs, expected_teacher),
        (scores.advantage, expected_teacher - expected_solver),
    ):
        np.testing.assert_allclose(spread(found), expected, atol=2e-5, rtol=0)
