# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What is kept of a step, worked by hand from two problems with two rollouts each."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.critics.protocol import CriticReply
from stepalign_jax.feedback.contexts import FAILURES, Attempt, Context
from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.phases import Batch, Critiques, Samples
from stepalign_jax.runs.record import (
    LARGEST_LOGPROB_GAP,
    StepResults,
    example_texts,
    logprob_gap,
    rollout_rows,
    step_metrics,
    step_timings,
)
from stepalign_jax.training.packing import Layout

PROBLEMS = [Problem("1+1", "2", None, "t")] * 2 + [Problem("2+2", "4", None, "t")] * 2
LENGTHS = np.array([3, 1, 2, 2], np.int32)
LOGPROBS = -np.arange(1, 13, dtype=np.float32).reshape(4, 3) / 8
ADVANTAGES = np.arange(12, dtype=np.float32).reshape(4, 3) / 16
# The third rollout has no context; the others count, in two micro-batches of two rows.
CONTEXTS = [Context("a", None), Context("b", None), Context("c", "empty"), Context("d", None)]
PLACES = [[(0, 0), (0, 1), (0, 2), (1, 0)], [(3, 0), (3, 1)]]


def layout(places: list[tuple[int, int]], rollouts: list[int], num_tokens: int) -> Layout:
    fill = num_tokens - len(places)
    rows = [rollouts.index(rollout) for rollout, _ in places] + [0] * fill
    columns = [column for _, column in places] + [0] * fill
    counts = [True] * len(places) + [False] * fill
    return Layout(*(np.array([values]) for values in (rollouts, rows, columns, counts)))


def make_results(**changes: Any) -> StepResults:
    layouts = [layout(PLACES[0], [0, 1], 8), layout(PLACES[1], [2, 3], 4)]

    def packed(values: np.ndarray) -> list[np.ndarray]:
        rubbish = [np.full(x.counts.size, 99.0, np.float32) for x in layouts]
        for part, places in zip(rubbish, PLACES, strict=True):
            part[: len(places)] = [values[place] for place in places]
        return rubbish

    names: dict[str, Any] = dict.fromkeys(LossScores._fields, np.zeros_like(LOGPROBS))
    by_name = names | {"advantage": ADVANTAGES, "solver_logprobs": LOGPROBS}
    pieces = {name: packed(values) for name, values in by_name.items()}
    scores = [LossScores(**{name: p[i] for name, p in pieces.items()}) for i in range(2)]
    rows: Any = SimpleNamespace(tokens=np.zeros((2, 10)))
    parts: Any = [SimpleNamespace(layout=x, solver=rows) for x in layouts]
    wide: Any = SimpleNamespace(tokens=np.zeros((2, 16)))
    rollouts = Rollouts(
        tokens=np.arange(12, dtype=np.int32).reshape(4, 3),
        logprobs=LOGPROBS.copy(),
        lengths=LENGTHS,
        finished=np.array([True, True, False, True]),
    )
    attempts = [Attempt(p, f"try {i}") for i, p in enumerate(PROBLEMS)]
    values: dict[str, Any] = {
        "step": 4,
        "samples": Samples(attempts, [[1]] * 4, [], rollouts),
        "correct": np.array([True, False, True, True]),
        "critiques": Critiques(CONTEXTS, CriticReply(CONTEXTS, [5, 7], [True, False]), 0.25),
        "batch": Batch(parts, [wide, wide], solver_tokens=30, teacher_tokens=48),
        "metrics": {"loss": 0.5},
        "scores": scores,
        "seconds": {"sample": 2.0, "critique": 4.0, "score": 0.5, "update": 3.0, "host": 0.5},
        "compiled": {"compilations": 1, "compile_seconds": 0.25},
        "ungraded": {"grading_timeouts": 2, "grading_crashes": 0},
    }
    return StepResults(**values | changes)


def shifted(by: float, place: tuple[int, int], step: int) -> StepResults:
    results = make_results(step=step)
    results.samples.rollouts.logprobs[place] += by  # pyright: ignore[reportIndexIssue]
    return results


def test_metrics_by_hand():
    assert step_metrics(make_results(), compute_dtype="float32") == {
        "loss": 0.5,
        "reward": 0.75,
        "mean_tokens": 2.0,
        "solver_tokens": 8.0,
        "truncated": 0.25,
        "sampler_logprob_gap": 0.0,
        "contexts_failed": 1.0,
        "context_failed/empty": 1.0,
        "critic_exact_on_wrong": 0.25,
        "critic_tokens": 12.0,
        "critic_mean_tokens": 6.0,
        "critic_truncated": 0.5,
    }
    assert "empty" in FAILURES


def test_a_step_without_a_critic_has_no_critic_numbers():
    quiet = Critiques([Context("", None)] * 4, None, None)
    found = step_metrics(make_results(critiques=quiet), compute_dtype="float32")
    names = ("critic_tokens", "critic_mean_tokens", "critic_truncated", "critic_exact_on_wrong")
    assert [found[name] for name in names] == [0.0, None, None, None]


def test_the_gap_is_the_largest_over_the_tokens_that_count():
    assert logprob_gap(shifted(0.5, (3, 1), step=4)) == 0.5
    assert logprob_gap(shifted(-0.25, (0, 2), step=4)) == 0.25
    # The third rollout does not count, nor does padding.
    assert logprob_gap(shifted(0.5, (2, 1), step=4)) == 0.0
    assert logprob_gap(shifted(0.5, (1, 2), step=4)) == 0.0


@pytest.mark.parametrize("dtype", LARGEST_LOGPROB_GAP)
def test_a_first_step_whose_sampler_and_scorer_disagree_is_refused(dtype):
    limit = LARGEST_LOGPROB_GAP[dtype]
    step_metrics(shifted(0.9 * limit, (0, 0), step=0), compute_dtype=dtype)
    with pytest.raises(UserError, match="sampler and scorer differ by"):
        step_metrics(shifted(1.1 * limit, (0, 0), step=0), compute_dtype=dtype)
    # Later the weights have moved between sampling and nothing: only the number is kept.
    found = step_metrics(shifted(1.1 * limit, (0, 0), step=1), compute_dtype=dtype)
    assert found["sampler_logprob_gap"] == pytest.approx(1.1 * limit, rel=1e-4)


def test_timings_by_hand():
    found = step_timings(make_results(), num_devices=2)
    rate = "tokens_per_second_per_device/"
    assert found == {
        "sample": 2.0,
        "critique": 4.0,
        "score": 0.5,
        "update": 3.0,
        "host": 0.5,
        "total": 10.0,
        "compilations": 1,
        "compile_seconds": 0.25,
        "grading_timeouts": 2,
        "grading_crashes": 0,
        rate + "sample": 8 / 2.0 / 2,
        rate + "critique": 12 / 4.0 / 2,
        rate + "score": 48 / 0.5 / 2,
        rate + "update": 30 / 3.0 / 2,
        "padding/update": 1 - 30 / 40,
        "padding/head": 1 - 6 / 12,
        "padding/score": 1 - 48 / 64,
    }


def test_a_step_without_a_teacher_has_no_scoring_numbers():
    batch = make_results().batch._replace(teacher=None, teacher_tokens=0)
    found = step_timings(make_results(batch=batch), num_devices=1)
    assert not [name for name in found if "/score" in name]


def test_rows_by_hand():
    rows = list(rollout_rows(make_results()))
    assert rows[0] == {
        "problem": "1+1",
        "answer": "2",
        "rollout": "try 0",
        "tokens": [0, 1, 2],
        "correct": True,
        "context": "a",
        "failure": None,
        "advantage": [0.0, 0.0625, 0.125],
    }
    assert [row["advantage"] for row in rows[1:]] == [[0.1875], None, [0.5625, 0.625]]
    assert [row["failure"] for row in rows] == [None, None, "empty", None]


def test_the_example_is_the_first_wrong_rollout():
    assert example_texts(make_results()) == "problem:\n1+1\n\nrollout:\ntry 1\n\ncontext:\nb"
    right = make_results(correct=np.array([True, True, False, True]))
    assert example_texts(right).endswith("rollout:\ntry 2\n\ncontext:\nc")
    failed = dataclasses.replace(CONTEXTS[2], text="")
    critiques = make_results().critiques._replace(contexts=[*CONTEXTS[:2], failed, CONTEXTS[3]])
    assert example_texts(right._replace(critiques=critiques)).endswith("context:\n(empty)")
