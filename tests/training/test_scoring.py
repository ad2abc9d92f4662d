# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Forward-only scores: both roles, the same tokens, each context at its own offsets."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from support.float64 import log_softmax
from support.updates import (
    ALL,
    BATCH,
    COMPLETIONS,
    DIVERGENCE,
    LENGTH,
    LORA,
    MODEL,
    OTHER_PARAMS,
    PARAMS,
    SOLVER_PROMPTS,
    TEACHER_PROMPTS,
    copy,
    make_part,
    make_state,
    plain_logits,
    plain_logprobs,
    run_step,
    spread,
)

from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.training.scoring import (
    ScoringPrograms,
    make_logprobs_program,
    make_scoring_programs,
    score_contexts,
    whole_logprobs,
)

ONE = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), devices=jax.devices()[:1])
LENGTHS = np.array([len(completion) for completion in COMPLETIONS], np.int32)


def rollouts_of(rows: slice = slice(None)) -> Rollouts:
    tokens = np.zeros((BATCH, LENGTH), np.int32)
    for line, completion in zip(tokens, COMPLETIONS, strict=True):
        line[: len(completion)] = completion
    zeros = np.zeros(tokens.shape, np.float32)
    arrays = (tokens, zeros, LENGTHS, LENGTHS < LENGTH)
    return Rollouts(*(values[rows] for values in arrays))


@functools.cache
def programs() -> ScoringPrograms:
    return make_scoring_programs(MODEL, DIVERGENCE, num_top=4)


def score(
    solver: Any, teacher: Any, contexts: dict[str, Any], *, num_parts: int = 1
) -> dict[str, TokenScores]:
    return score_contexts(
        programs(), solver, teacher, SOLVER_PROMPTS, contexts, rollouts_of(),
        num_parts=num_parts, mesh=ONE,
    )  # fmt: skip


SOLVER, TEACHER = {"params": PARAMS}, {"params": OTHER_PARAMS}


def test_equal_weights_and_prompts_diverge_nowhere():
    # As two arguments the passes cannot become one.
    [scores] = score(SOLVER, {"params": copy(PARAMS)}, {"same": SOLVER_PROMPTS}).values()
    assert np.abs(scores.divergence).max() <= 1e-6
    # First order in the rounding of the logits, where the divergence is second order.
    assert np.abs(scores.advantage).max() <= 2e-5
    [away] = score(SOLVER, TEACHER, {"same": SOLVER_PROMPTS}).values()
    assert away.divergence[ALL].min() > 1e-3


@pytest.mark.parametrize("num_parts", [1, 3])
def test_contexts_share_the_tokens_and_have_offsets_of_their_own(num_parts):
    # Three parts of four rollouts: two of the six rows only fill up.
    longer = [[9, *prompt, 7] for prompt in TEACHER_PROMPTS]
    contexts = {"a": TEACHER_PROMPTS, "b": longer, "none": SOLVER_PROMPTS}
    found = score(SOLVER, TEACHER, contexts, num_parts=num_parts)
    assert list(found) == list(contexts)
    own = plain_logprobs(SOLVER, SOLVER_PROMPTS)
    for name, prompts in contexts.items():
        other, scores = plain_logprobs(TEACHER, prompts), found[name]
        for values, expected in (
            (scores.solver_logprobs, own),
            (scores.teacher_logprobs, other),
            (scores.advantage, other - own),
        ):
            assert isinstance(values, np.ndarray) and values.shape == (BATCH, LENGTH)
            np.testing.assert_allclose(values, expected, atol=2e-5, rtol=0)
        for entropy in (scores.solver_entropy, scores.teacher_entropy):
            assert (entropy[ALL] > 0).all() and not entropy[~ALL].any()


def test_one_rollout_has_the_scores_it_has_among_others():
    all_rows = score(SOLVER, TEACHER, {"a": TEACHER_PROMPTS})["a"]
    for row in range(BATCH):
        one = slice(row, row + 1)
        alone = score_contexts(
            programs(), SOLVER, TEACHER, SOLVER_PROMPTS[one], {"a": TEACHER_PROMPTS[one]},
            rollouts_of(one), num_parts=1, mesh=ONE,
        )["a"]  # fmt: skip
        for values, expected in zip(alone, all_rows, strict=True):
            np.testing.assert_allclose(values, expected[one], atol=2e-5, rtol=0)


@pytest.mark.long
def test_scores_are_those_of_the_update_before_it_moves():
    """With an adapter both sides share the base's head."""
    _, _, [update] = run_step(make_state({"lora": LORA}), PARAMS, make_part())
    [found] = score(SOLVER | {"lora": LORA}, SOLVER, {"a": TEACHER_PROMPTS}).values()
    for values, expected in (
        (found.divergence, update.loss),
        (found.advantage, update.advantage),
        (found.solver_logprobs, update.solver_logprobs),
    ):
        np.testing.assert_allclose(values, spread(expected), atol=2e-5, rtol=0)


def test_the_solver_reads_each_rollout_once_whatever_the_number_of_contexts():
    read = []
    counting = programs()._replace(
        hidden=lambda variables, rows: (
            read.append(variables) or programs().hidden(variables, rows)
        )
    )
    contexts = dict.fromkeys("abc", TEACHER_PROMPTS)
    score_contexts(
        counting, SOLVER, TEACHER, SOLVER_PROMPTS, contexts, rollouts_of(),
        num_parts=2, mesh=ONE,
    )  # fmt: skip
    assert [variables is SOLVER for variables in read] == [True, False, False, False] * 2


def test_whole_log_probabilities_behind_several_prompts():
    program, prompts = make_logprobs_program(MODEL), SOLVER_PROMPTS[:2]
    found = whole_logprobs(program, SOLVER, prompts, COMPLETIONS[0][:3], mesh=ONE)
    assert found.shape == (2, 3, MODEL.config.vocab_size)
    for prompt, rows in zip(prompts, found, strict=True):
        tokens = np.zeros(16, np.int32)
        tokens[: len(prompt) + 3] = [*prompt, *COMPLETIONS[0][:3]]
        logits = np.asarray(plain_logits(SOLVER, tokens), np.float64)[len(prompt) - 1 :][:3]
        np.testing.assert_allclose(rows, log_softmax(logits), atol=2e-5, rtol=0)
