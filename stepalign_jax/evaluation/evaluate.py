# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Avg@k, Pass@k and Maj@k of one set of weights on one set of problems."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object
from stepalign_jax.base.progress import counting
from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import EvaluationConfig
from stepalign_jax.evaluation.statistics import (
    Interval,
    avg_at_k,
    bootstrap_interval,
    maj_at_k,
    paired_interval,
    pass_at_k,
)
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import Grader
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.engine import Engine
from stepalign_jax.sampling.kept import Kept
from stepalign_jax.sampling.request import (
    Purpose,
    SamplingParams,
    make_requests,
    sample_addresses,
)

METRICS = (
    "avg_at_k",
    "pass_at_k",
    "maj_at_k",
    "greedy",
    "mean_tokens",
    "truncated",
    "unparsed",
)
NUM_SAMPLES = "num_samples"  # beside METRICS: how many samples the values of a problem are of


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results per problem; [P] float64 arrays under the names that summaries use.

    Attributes:
      per_problem: avg_at_k, pass_at_k, maj_at_k, greedy, mean_tokens, truncated and
        unparsed (shares of the samples), and num_samples.
    """

    per_problem: dict[str, np.ndarray]

    def as_lists(self) -> dict[str, list[float]]:
        """JSON form."""
        return {name: values.tolist() for name, values in self.per_problem.items()}

    @classmethod
    def from_lists(cls, lists: Mapping[str, list[float]]) -> "Evaluation":
        """The inverse of `as_lists`."""
        return cls({name: np.asarray(values, np.float64) for name, values in lists.items()})

    @classmethod
    def read(cls, path: Path) -> "Evaluation":
        """Reads the file of an evaluation.

        Raises:
          UserError: it holds something else, or problems of unlike numbers of samples.
        """
        lists = read_json_object(path)
        if not lists or not all(map(_are_numbers, lists.values())):
            raise UserError(f"{path} is no evaluation: delete it")
        if NUM_SAMPLES in lists:
            _require_samples_in(path, lists[NUM_SAMPLES], max(lists[NUM_SAMPLES]))
        return cls.from_lists(lists)

    @classmethod
    def read_whole(cls, path: Path, num_problems: int, k: int) -> "Evaluation":
        """Reads the file of an evaluation of so many problems, with all its metrics.

        Raises:
          UserError: it holds something else, or a problem has not k samples.
        """
        found = cls.read(path)
        lengths = {len(values) for values in found.per_problem.values()}
        names = {*METRICS, NUM_SAMPLES}
        if set(found.per_problem) != names or lengths != {num_problems}:
            raise UserError(
                f"{path} is no evaluation of {num_problems} problems: delete it to measure "
                "again"
            )
        _require_samples_in(path, found.per_problem[NUM_SAMPLES], k)
        return found

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The values that a mean over problems says something of."""
        return {name: v for name, v in self.per_problem.items() if name != NUM_SAMPLES}

    def mean(self, metric: str) -> float:
        """Mean over problems of one of METRICS."""
        return float(self.per_problem[metric].mean())

    def intervals(self, config: EvaluationConfig, seed: int) -> dict[str, dict[str, float]]:
        """Bootstrap intervals over problems, by name."""
        return {
            name: _interval(bootstrap_interval, config, seed, values)
            for name, values in self.metrics.items()
        }


def require_samples(counts: np.ndarray | Sequence[float], k: float) -> None:
    """Refuses problems with fewer samples than others: k in a table is the k of each problem.

    Args:
      counts: [P] samples of each problem.
      k: what each must have.

    Raises:
      ValueError: naming the first problem that has another number.
    """
    if (wrong := np.flatnonzero(np.asarray(counts) != k)).size:
        first = int(wrong[0])
        raise ValueError(
            f"problem {first + 1} of {len(counts)} has {counts[first]:g} samples, not k={k:g}"
        )


def _require_samples_in(path: Path, counts: np.ndarray | Sequence[float], k: float) -> None:
    try:
        require_samples(counts, k)
    except ValueError as error:
        raise UserError(f"{path}: {error}: delete it to measure again") from error


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def gains(
    before: Evaluation, after: Evaluation, config: EvaluationConfig, seed: int
) -> dict[str, dict[str, float]]:
    """Paired intervals of after - before on the same problems, by name.

    Raises:
      ValueError: a problem has not as many samples after as before.
    """
    asked, answered = (each.as_lists().get(NUM_SAMPLES) for each in (before, after))
    if asked != answered:
        raise ValueError(f"samples per problem differ: {asked} before, {answered} after")
    return {
        name: _interval(paired_interval, config, seed, values, after.per_problem[name])
        for name, values in before.metrics.items()
    }


def difference_interval(
    before: np.ndarray, after: np.ndarray, config: EvaluationConfig, seed: int
) -> dict[str, float] | None:
    """The paired interval of after - before, one value per problem; None for no values."""
    return _interval(paired_interval, config, seed, before, after) if len(before) else None


def share_interval(
    values: np.ndarray, config: EvaluationConfig, seed: int
) -> dict[str, float] | None:
    """The bootstrap interval of one value per problem; None for no values."""
    return _interval(bootstrap_interval, config, seed, values) if len(values) else None


def _interval(
    make: Any, config: EvaluationConfig, seed: int, *values: np.ndarray
) -> dict[str, float]:
    interval: Interval = make(
        *values, num_resamples=config.num_resamples, confidence=config.confidence, seed=seed
    )
    return interval.as_dict()


def evaluate(
    engine: Engine,
    variables: dict[str, Any],
    roles: Roles,
    grader: Grader,
    problems: Sequence[Problem],
    config: EvaluationConfig,
    *,
    seed: int,
    label: str,
    kept: Kept | None,
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
      label: names the progress bar.
      kept: completions of an earlier, stopped process, and where to keep these; or None.

    Raises:
      ValueError: a problem has not k samples: a mean over fewer would not be Avg@k.
    """
    k = config.num_samples
    params = SamplingParams.of(config)
    prompts = [roles.solver(problem) for problem in problems]

    def sample(num_samples: int, params: SamplingParams, **options: Any) -> Rollouts:
        addresses = sample_addresses(
            [problem.id for problem in problems],
            num_samples,
            seed=seed,
            purpose=Purpose.EVALUATION,
            step=0,
        )
        repeated = [prompt for prompt in prompts for _ in range(num_samples)]
        requests = make_requests(repeated, addresses, params)
        return engine.sample(
            variables, requests, batch_size=config.batch_size, kept=kept, **options
        )

    num_sampled = len(problems) * k
    with counting(num_sampled + len(problems), label) as count:
        sampled = sample(k, params, progress=count)
        greedy = sample(
            1,
            params._replace(temperature=0.0),
            progress=lambda done: count(num_sampled + done),
        )
    counts = _count_samples(sampled, len(problems), k)
    require_samples(counts, k)
    require_samples(_count_samples(greedy, len(problems), 1), 1)
    values = _judge(roles, grader, problems, sampled, greedy, k)
    return Evaluation({**values, NUM_SAMPLES: counts})


def _count_samples(rollouts: Rollouts, num_problems: int, k: int) -> np.ndarray:
    """[P] float64: completions of each problem; a completion has at least one token."""
    problem_of = np.arange(len(rollouts.lengths)) // k  # samples of a problem stand together
    weights = (rollouts.lengths > 0).astype(np.float64)
    return np.bincount(problem_of, weights, minlength=num_problems)


def _judge(
    roles: Roles,
    grader: Grader,
    problems: Sequence[Problem],
    sampled: Rollouts,
    greedy: Rollouts,
    k: int,
) -> dict[str, np.ndarray]:
    """Metrics [P] by name, of k sampled completions per problem [P k] and greedy ones [P]."""
    num_problems = len(problems)
    golds = [problem.expected for problem in problems]
    pattern = roles.prompts.answer_pattern
    answers = [extract_answer(text, pattern) for text in roles.texts(sampled)]
    greedy_answers = [extract_answer(text, pattern) for text in roles.texts(greedy)]

    def by_problem(values: Any) -> np.ndarray:
        return np.asarray(values).reshape(num_problems, k)

    correct = by_problem(grader.grade(answers, [gold for gold in golds for _ in range(k)]))
    classes = [
        grader.equivalence_classes(
            answers[i * k : (i + 1) * k], by_text=problem.scorer is not None
        )
        for i, problem in enumerate(problems)
    ]
    return {
        "avg_at_k": avg_at_k(correct),
        "pass_at_k": pass_at_k(correct, k),
        "maj_at_k": maj_at_k(np.array(classes), correct),
        "greedy": np.array(grader.grade(greedy_answers, golds), np.float64),
        "mean_tokens": by_problem(sampled.lengths).mean(1),
        "truncated": 1.0 - by_problem(sampled.finished).mean(1),
        "unparsed": by_problem([answer is None for answer in answers]).mean(1),
    }
