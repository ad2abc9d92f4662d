# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What is kept of a step, worked by hand from two problems with two rollouts each."""

import contextlib
import dataclasses
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runs import small_config

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.base.types import Rollouts
from stepalign_jax.critics.protocol import CriticReply
from stepalign_jax.feedback.contexts import FAILURES, Attempt, Context, describe_failures
from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.metrics import MetricsWriter
from stepalign_jax.runs.phases import Batch, Critiques, Samples
from stepalign_jax.runs.record import (
    LARGEST_LOGPROB_GAP,
    EmptySteps,
    StepResults,
    example_texts,
    logprob_gap,
    record_step,
    rollout_rows,
    step_metrics,
    step_timings,
)
from stepalign_jax.training.packing import Layout


def counted(tokens: Sequence[int], _text: str) -> list[int]:
    """The ends of tokens of one character each."""
    return list(range(1, len(tokens) + 1))


ROLES: Any = SimpleNamespace(ends=counted)
PROBLEMS = [Problem("1+1", "2", None, "t")] * 2 + [Problem("2+2", "4", None, "t")] * 2
LENGTHS = np.array([3, 1, 2, 2], np.int32)
LOGPROBS = -np.arange(1, 13, dtype=np.float32).reshape(4, 3) / 8
ADVANTAGES = np.arange(12, dtype=np.float32).reshape(4, 3) / 16
# The third rollout does not count, nor do places behind a rollout's end.
LOSSES = np.array([[1, 0, 2], [3, 9, 9], [9, 9, 9], [-1, 1, 9]], np.float32)
MARKUP = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 1]], bool)
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
    by_name = names | {
        "loss": LOSSES,
        "advantage": ADVANTAGES,
        "solver_logprobs": LOGPROBS,
    }
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
        "critiques": Critiques(
            CONTEXTS, CriticReply(CONTEXTS, [5, 3, 4], [True, True, False]), 0.25
        ),
        "batch": Batch(parts, [wide, wide], MARKUP, None, solver_tokens=30, teacher_tokens=48),
        "metrics": {"loss": 0.5, "gradient_norm": 0.25, "tokens_in_loss": 6},
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
        "gradient_norm": 0.25,
        "tokens_in_loss": 6,
        "reward": 0.75,
        "mean_tokens": 2.0,
        "solver_tokens": 8.0,
        "truncated": 0.25,
        "looping": 0.0,
        "sampler_logprob_gap": 0.0,
        "contexts_failed": 1.0,
        "context_failed/empty": 1.0,
        "kl_on_markup": (1 + 1) / (1 + 2 + 3 + 1 + 1),
        "critic_exact_on_wrong": 0.25,
        "critic_tokens": 12.0,
        "critic_mean_tokens": 4.0,
        "critic_truncated": pytest.approx(1 / 3),
    }
    assert "empty" in FAILURES


def test_the_share_on_markup_is_of_a_teachers_divergence_alone():
    quiet = make_results()
    for scores in quiet.scores:
        scores.loss[:] = 0.0  # pyright: ignore[reportIndexIssue]
    assert step_metrics(quiet, compute_dtype="float32")["kl_on_markup"] is None
    without = quiet._replace(batch=quiet.batch._replace(teacher=None))
    assert "kl_on_markup" not in step_metrics(without, compute_dtype="float32")


def test_failed_contexts_are_counted_by_kind_and_together():
    kinds = ["empty", "too_long", "empty", None]
    critiques = Critiques([Context("", kind) for kind in kinds], None, None)
    found = step_metrics(make_results(critiques=critiques), compute_dtype="float32")
    by_name = {name: value for name, value in found.items() if name.startswith("context")}
    assert by_name == {
        "contexts_failed": 3.0,
        "context_failed/empty": 2.0,
        "context_failed/too_long": 1.0,
    }


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
    rows = list(rollout_rows(make_results(), counted))
    assert rows[0] == {
        "problem": "1+1",
        "answer": "2",
        "rollout": "try 0",
        "tokens": [0, 1, 2],
        "ends": [1, 2, 3],
        "logprobs": [-0.125, -0.25, -0.375],
        "finished": True,
        "correct": True,
        "context": "a",
        "failure": None,
        "advantage": [0.0, 0.0625, 0.125],
        "loss": [1.0, 0.0, 2.0],
    }
    assert [row["advantage"] for row in rows[1:]] == [[0.1875], None, [0.5625, 0.625]]
    assert [row["loss"] for row in rows[1:]] == [[3.0], None, [-1.0, 1.0]]
    # What was sampled is known of every rollout.
    assert [row["logprobs"] for row in rows[1:]] == [[-0.5], [-0.875, -1.0], [-1.25, -1.375]]
    assert [row["finished"] for row in rows] == [True, True, False, True]
    assert [row["failure"] for row in rows] == [None, None, "empty", None]


def test_the_example_is_the_first_wrong_rollout():
    assert example_texts(make_results()) == "problem:\n1+1\n\nrollout:\ntry 1\n\ncontext:\nb"
    right = make_results(correct=np.array([True, True, False, True]))
    assert example_texts(right).endswith("rollout:\ntry 2\n\ncontext:\nc")
    failed = dataclasses.replace(CONTEXTS[2], text="")
    critiques = make_results().critiques._replace(contexts=[*CONTEXTS[:2], failed, CONTEXTS[3]])
    assert example_texts(right._replace(critiques=critiques)).endswith("context:\n(empty)")


def failed(step: int) -> StepResults:
    contexts = [Context("", "truncated")] * 3 + [Context("", "empty")]
    return make_results(step=step, critiques=Critiques(contexts, None, None))


def test_a_step_without_a_usable_context_is_warned_of_and_too_many_end_the_run(capsys):
    watch = EmptySteps(3)
    for results in (failed(0), failed(1), make_results(step=2), failed(3), failed(4)):
        watch.see(results)
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(" has ")[0] for line in warnings] == [
        f"warning: no rollout of step {step}" for step in (0, 1, 3, 4)
    ]
    assert "3 truncated (the token budget ended the critique), 1 empty" in warnings[0]
    ending = (
        r"step 5 .*; raise critic\.max_new_tokens\. .*3 such steps in a row \(train\.max_empty"
    )
    with pytest.raises(UserError, match=ending):
        watch.see(failed(5))
    never = EmptySteps(0)
    for step in range(9):
        never.see(failed(step))


@pytest.mark.parametrize(
    ("failure", "key"),
    [
        ("truncated", "critic.max_new_tokens"),
        ("unparsable", "critic.accepts=any"),
        ("too_long", "prompts.max_context_tokens"),
        ("wrong_answer", "critic.sees"),
        ("of_my_own", "change the condition or its critic"),
    ],
)
def test_the_most_frequent_failure_names_the_key_to_change(failure, key, capsys):
    contexts = [Context("", "empty")] + [Context("", failure)] * 3
    EmptySteps(0).see(make_results(critiques=Critiques(contexts, None, None)))
    words = capsys.readouterr().err
    assert f"context: 3 {failure}" in words and key in words.split(", 1 empty")[1]


def test_every_failure_has_a_key_to_change():
    for name in FAILURES:
        assert (
            describe_failures([Context("", name)])[1]
            != describe_failures([Context("", "of_my_own")])[1]
        )


def test_a_step_without_a_gradient_is_warned_of_once(capsys):
    flat = make_results(metrics={"gradient_norm": 0.0, "tokens_in_loss": 6})
    watch = EmptySteps(5)
    watch.see(make_results())
    watch.see(flat._replace(batch=flat.batch._replace(teacher=None)))  # GRPO
    assert capsys.readouterr().err == ""
    watch.see(flat)
    watch.see(flat)
    assert (
        capsys.readouterr().err.count("gradient_norm is exactly 0 at step 4, although 6") == 1
    )


class FakeWriter:
    """Keeps what a `MetricsWriter` is given."""

    def __init__(self) -> None:
        self.metrics: dict[int, Any] = {}
        self.timings: dict[int, Any] = {}
        self.texts: list[tuple[int, str, str]] = []

    def write(self, step: int, metrics: Any) -> None:
        self.metrics[step] = metrics

    def write_timings(self, step: int, timings: Any) -> None:
        self.timings[step] = timings

    def add_text(self, step: int, tag: str, text: str) -> None:
        self.texts.append((step, tag, text))


def test_a_step_that_diverged_is_one_sentence_and_leaves_no_file(tmp_path):
    """In float16 the forward pass overflows, so that the scores of a rollout are NaN too."""
    results = make_results(metrics={"loss": np.float32(np.nan)})
    for scores in results.scores:
        scores.advantage[:] = np.nan  # pyright: ignore[reportIndexIssue]
    run = RunDirectory(tmp_path / "run")
    config = small_config(tmp_path, model={"compute_dtype": "float16"})
    tmp_path.joinpath("run").mkdir()
    with (
        contextlib.closing(MetricsWriter(run, num_completed_steps=4)) as writer,
        pytest.raises(UserError, match=r"loss is nan at step 4: training has diverged"),
    ):
        record_step(run, writer, EmptySteps(0), results, config, roles=ROLES, num_devices=1)
    assert run.metrics_file.read_text() == "" and not run.rollouts_file(4).exists()


def test_what_is_recorded_of_a_step(tmp_path):
    config = small_config(
        tmp_path,
        train={"num_steps": 9, "sample_texts_every_steps": 2},
        optimizer={"learning_rate": 0.5, "warmup_steps": 7},
    )
    run, writer = RunDirectory(tmp_path), FakeWriter()
    results = {step: make_results(step=step) for step in (4, 5)}
    record = partial(
        record_step,
        run,
        writer,
        EmptySteps(0),
        config=config,
        roles=ROLES,
        num_devices=2,  # pyright: ignore[reportArgumentType]
    )
    words = [record(result) for result in results.values()]
    assert words == ["loss=0.500 reward=0.75"] * 2
    for step, result in results.items():
        # Steps count from 0, so step 4 is the fifth of the eight that lead to the full rate.
        rate = 0.5 * (step + 1) / 8
        metrics = step_metrics(result, compute_dtype="float32")
        assert writer.metrics[step] == metrics | {"learning_rate": rate}
        assert writer.timings[step] == step_timings(result, num_devices=2)
        assert read_jsonl(run.rollouts_file(step)) == list(rollout_rows(result, counted))
    assert writer.texts == [(4, "example", example_texts(results[4]))]


def test_targets_have_neither_a_gap_nor_advantages():
    """Other tokens were scored than sampled: nothing of both compares."""
    batch = make_results().batch._replace(targets=CONTEXTS, teacher=None)
    # Scores of another width would not even fit the rollouts' rows.
    results = make_results(batch=batch, scores=[], step=0)
    metrics = step_metrics(results, compute_dtype="float32")
    assert metrics["sampler_logprob_gap"] is None and metrics["contexts_failed"] == 1.0
    rows = list(rollout_rows(results, counted))
    assert [row["advantage"] for row in rows] == [None] * 4
    assert [row["context"] for row in rows] == ["a", "b", "c", "d"]


def test_what_failed_is_counted_of_the_targets_that_train():
    rollout = [Context("a", None)] * 4  # as `rejection` has where a rollout is right
    failed = Critiques([Context("", "empty")] * 4, None, None)
    batch = make_results().batch._replace(targets=rollout, teacher=None)
    results = make_results(batch=batch, critiques=failed)
    assert step_metrics(results, compute_dtype="float32")["contexts_failed"] == 0.0
    EmptySteps(1).see(results)  # no empty step
