# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Avg@k, Pass@k and Maj@k of one set of weights on one set of problems."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stepalign_jax.base.progress import advance
from stepalign_jax.base.progress import progress as progress_bar
from stepalign_jax.config.schema import EvaluationConfig
from stepalign_jax.evaluation.statistics import (
    avg_at_k,
    bootstrap_interval,
    maj_at_k,
    paired_interval,
    pass_at_k,
)
from stepalign_jax.feedback.roles import Roles, addresses
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import Grader
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.setup import Workbench
from stepalign_jax.sampling.engine import Engine, Purpose


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results per problem; [P] float64 arrays under the names that summaries use.

    Attributes:
      per_problem: avg_at_k, pass_at_k, maj_at_k, greedy, mean_tokens, truncated and
        unparsed (shares of the samples).
    """

    per_problem: dict[str, np.ndarray]

    def as_lists(self) -> dict[str, list[float]]:
        """JSON form."""
        return {name: values.tolist() for name, values in self.per_problem.items()}

    @classmethod
    def from_lists(cls, lists: Mapping[str, list[float]]) -> "Evaluation":
        """The inverse of `as_lists`."""
        return cls({name: np.asarray(values, np.float64) for name, values in lists.items()})

    def intervals(self, config: EvaluationConfig, seed: int) -> dict[str, dict[str, float]]:
        """Bootstrap intervals over problems, by name."""
        return {
            name: bootstrap_interval(
                values,
                num_resamples=config.num_resamples,
                confidence=config.confidence,
                seed=seed,
            ).as_dict()
            for name, values in self.per_problem.items()
        }


def gains(
    before: Evaluation, after: Evaluation, config: EvaluationConfig, seed: int
) -> dict[str, dict[str, float]]:
    """Paired intervals of after - before on the same problems, by name."""
    return {
        name: paired_interval(
            values,
            after.per_problem[name],
            num_resamples=config.num_resamples,
            confidence=config.confidence,
            seed=seed,
        ).as_dict()
        for name, values in before.per_problem.items()
    }


def evaluate(
    engine: Engine,
    variables: dict[str, Any],
    roles: Roles,
    grader: Grader,
    problems: list[Problem],
    config: EvaluationConfig,
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Samples k completions of each problem and one greedy one, and grades them.

    The samples' addresses hold the problem, the sample's index and the seed alone, so
    that the same weights always give the same result, and weights compare in pairs.

    Args:
      engine: samples.
      variables: the solver's weights.
      roles: prompts and tokenizer.
      grader: judges answers.
      problems: what is asked.
      config: k and how to sample.
      seed: the run's.
      progress: called with the number of sampled completions done so far.
    """
    k = config.num_samples
    prompts = [roles.solver(problem) for problem in problems]
    sampled = engine.sample(
        variables,
        [prompt for prompt in prompts for _ in range(k)],
        addresses(problems, k, 0),
        seed=seed,
        purpose=Purpose.EVALUATION,
        settings=config,
        progress=progress,
    )
    greedy = engine.sample(
        variables,
        prompts,
        addresses(problems, 1, 0),
        seed=seed,
        purpose=Purpose.EVALUATION,
        settings=dataclasses.replace(config, temperature=0.0),
    )
    shape = (len(problems), k)
    golds = [problem.answer for problem in problems]
    answers = [extract_answer(t, roles.prompts.answer_pattern) for t in roles.texts(sampled)]
    correct = np.array(
        grader.grade(answers, [gold for gold in golds for _ in range(k)]), bool
    ).reshape(shape)
    classes = np.array(
        [grader.equivalence_classes(answers[i * k : (i + 1) * k]) for i in range(len(problems))]
    )
    greedy_answers = [
        extract_answer(t, roles.prompts.answer_pattern) for t in roles.texts(greedy)
    ]
    return Evaluation(
        {
            "avg_at_k": avg_at_k(correct),
            "pass_at_k": pass_at_k(correct, k),
            "maj_at_k": maj_at_k(classes, correct),
            "greedy": np.array(grader.grade(greedy_answers, golds), np.float64),
            "mean_tokens": np.asarray(sampled.lengths).reshape(shape).mean(1),
            "truncated": 1.0 - np.asarray(sampled.finished).reshape(shape).mean(1),
            "unparsed": np.array([a is None for a in answers]).reshape(shape).mean(1),
        }
    )


def evaluate_visibly(
    bench: Workbench,
    variables: dict[str, Any],
    grader: Grader,
    problems: list[Problem],
    config: EvaluationConfig,
    *,
    seed: int,
    description: str,
) -> Evaluation:
    """Returns `evaluate` of a workbench's model, with a progress bar called `description`."""
    total = len(problems) * config.num_samples
    with progress_bar(total=total, description=description) as bar:
        return evaluate(
            bench.engine,
            variables,
            bench.roles,
            grader,
            problems,
            config,
            seed=seed,
            progress=advance(bar),
        )
