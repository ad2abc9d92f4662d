# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Filters that ask the solver and the critic of a config, before any training.

    too_long         the problem has no room in a prompt of the config
    base_avg         the solver's Avg@n is not below `problems.base_avg_below` (paper: 5/16)
    format_rate      too few of the solver's attempts have a reasoning step and an answer
    critic_unsolved  no critique of an attempt ends in the expected answer

The last two look at the same attempts, sampled as training samples. That the critic solves
what it is asked about is the paper's; how the paper checks that, and its rate of format, is not
known to us.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import Config
from stepalign_jax.critics.protocol import Critic
from stepalign_jax.evaluation.difficulty import SEED, hard_problems
from stepalign_jax.evaluation.probe import Asker
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import Grader
from stepalign_jax.huggingface.fingerprint import fingerprint_adapter
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.preparing.rows import Dropped, Row, Stages
from stepalign_jax.problems.jsonl import scorer_text
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.setup import (
    check_lengths,
    initial_solver,
    make_grader,
    open_run_critic,
    open_solver,
)
from stepalign_jax.sampling.kept import kept_beside
from stepalign_jax.sampling.request import Address, Purpose, sample_addresses

FILTERS = ("too_long", "base_avg", "format_rate", "critic_unsolved")
CHUNK = 128  # problems that pass through all filters together
_DECIDING = ("model", "trainable", "prompts", "sampling", "critic", "critiques", "evaluation")


class StageOptions(NamedTuple):
    """What `format_rate` and `critic_unsolved` ask for.

    Attributes:
      attempts: samples of the solver per problem.
      min_format_rate: share of them that must have a reasoning step and an answer.
      asks_critic: whether `critic_unsolved` is applied.
    """

    attempts: int
    min_format_rate: float
    asks_critic: bool


def model_stages(config: Config, options: StageOptions) -> Stages:
    """Opens the solver and the critic that `config` names; weights are read with the first row.

    Raises:
      UserError: one of them cannot be used, or nobody could tell whether the critic is right.
    """
    model, roles = open_solver(config)
    _check(config, model, roles, Problem("", "", None, ""))
    if options.asks_critic:
        if getattr(config.critic, "accepts", "trace") != "trace":
            raise UserError(
                "critic.accepts is 'any', and such a critique need not end in an answer: give "
                "--critic.accepts=trace, or --skip-critic"
            )
        open_run_critic(config, model, make_grader(config), ())
    adapter = getattr(config.trainable, "adapter", "")
    sections = {name: getattr(config, name) for name in _DECIDING}
    details = {
        "options": options._asdict(),
        "base_avg_below": config.problems.base_avg_below,
        "base_avg_samples": config.problems.base_avg_samples,
        "weights": model.fingerprint,
        "adapter": fingerprint_adapter(Path(adapter)) if adapter else None,
        **{name: dataclasses.asdict(section) for name, section in sections.items()},
    }
    filters = FILTERS if options.asks_critic else FILTERS[:-1]
    return Stages(filters, partial(_apply, config, options, model, roles), details)


def _apply(
    config: Config,
    options: StageOptions,
    model: LanguageModel,
    roles: Roles,
    rows: Iterator[Row],
    directory: Path,
) -> Iterator[Row | Dropped]:
    """Yields each row or why it was dropped; a stopped process finds its samples again."""
    with make_grader(config) as grader, kept_beside(directory / "stages.json") as kept:
        critic = None
        if options.asks_critic:
            critic = open_run_critic(
                config, model, grader, (model.weights,), label="prepare: critiques", kept=kept
            )
        asker = Asker(model, roles, SEED, 0, kept)
        filters = Filters(config, options, asker, grader, critic)
        while chunk := list(islice(rows, CHUNK)):
            yield from filters.apply(chunk)


class Filters:
    """The filters over chunks of rows; weights are read once."""

    def __init__(
        self,
        config: Config,
        options: StageOptions,
        asker: Asker,
        grader: Grader,
        critic: Critic | None,
    ):
        self._config, self._options, self._asker = config, options, asker
        self._grader, self._critic = grader, critic
        self._is_loaded, self._seen = False, Counter[str]()

    def apply(self, rows: Sequence[Row]) -> list[Row | Dropped]:
        problems = [_problem(row) for row in rows]
        self._grader.check_scorers(problem.expected for problem in problems)
        if not self._is_loaded:
            for loaded in filter(None, (self._critic, self._asker.model)):
                loaded.load()
            self._is_loaded = True
        with use_mesh(self._asker.model.mesh):
            dropped = self._dropped(problems)
        self._seen.update(dropped.values())
        self._seen["rows"] += len(rows)
        taken = ", ".join(f"{name} {self._seen[name]}" for name in FILTERS)
        left = self._seen["rows"] - sum(self._seen[name] for name in FILTERS)
        print(f"{self._seen['rows']} problems: {left} kept; {taken}", flush=True)
        return [
            Dropped(dropped[problem.text]) if problem.text in dropped else row
            for row, problem in zip(rows, problems, strict=True)
        ]

    def _dropped(self, problems: list[Problem]) -> dict[str, str]:
        """The filter that takes a problem out, by its text; no two problems share one."""
        dropped: dict[str, str] = {}

        def keep(name: str, kept: Sequence[Problem]) -> list[Problem]:
            texts = {problem.text for problem in kept}
            dropped.update((p.text, name) for p in left if p.text not in texts)
            return list(kept)

        left = problems
        left = keep("too_long", [problem for problem in left if self._fits(problem)])
        left = keep("base_avg", self._hard(left))
        attempts, addresses = self._attempts(left)
        formed = self._by_problem([self._is_formed(a.text) for a in attempts])
        bound = self._options.min_format_rate * self._options.attempts
        left = keep(
            "format_rate",
            [p for p, found in zip(left, formed, strict=True) if sum(found) >= bound],
        )
        if self._critic is not None:
            texts = {problem.text for problem in left}
            asked = [i for i, a in enumerate(attempts) if a.problem.text in texts]
            solved = self._solved([attempts[i] for i in asked], [addresses[i] for i in asked])
            left = keep(
                "critic_unsolved",
                [
                    p
                    for p, found in zip(left, self._by_problem(solved), strict=True)
                    if any(found)
                ],
            )
        return dropped

    def _fits(self, problem: Problem) -> bool:
        try:
            _check(self._config, self._asker.model, self._asker.roles, problem)
        except UserError:
            return False
        return True

    def _hard(self, problems: list[Problem]) -> list[Problem]:
        if not problems:
            return []
        model, roles = self._asker.model, self._asker.roles
        return hard_problems(
            self._config,
            problems,
            "problems",
            fingerprint=lambda: model.fingerprint,
            evaluate=initial_solver(model, roles, self._grader),
        )

    def _attempts(self, problems: list[Problem]) -> tuple[list[Attempt], list[Address]]:
        """The solver's attempts, those of one problem side by side, and their addresses."""
        n, asker = self._options.attempts, self._asker
        addresses = sample_addresses(
            [problem.id for problem in problems], n, seed=SEED, purpose=Purpose.SOLVER, step=0
        )
        repeated = [problem for problem in problems for _ in range(n)]
        prompts = [asker.roles.solver(problem) for problem in repeated]
        how = self._config.sampling
        texts = asker.ask(prompts, addresses, how, "prepare: attempts") if repeated else []
        return list(map(Attempt, repeated, texts)), addresses

    def _is_formed(self, text: str) -> bool:
        trace = self._asker.roles.trace
        return extract_answer(text, trace.answer_pattern) is not None and bool(
            trace.steps(text)
        )

    def _solved(self, attempts: list[Attempt], addresses: list[Address]) -> list[bool]:
        if not attempts or self._critic is None:
            return []
        critiques = self._critic.review(attempts, addresses).critiques
        pattern = self._asker.roles.trace.answer_pattern
        return self._grader.grade(
            [_answer(critique, pattern) for critique in critiques],
            [attempt.problem.expected for attempt in attempts],
        )

    def _by_problem(self, values: Sequence[Any]) -> list[Sequence[Any]]:
        n = self._options.attempts
        return [values[i : i + n] for i in range(0, len(values), n)]


def _check(config: Config, model: LanguageModel, roles: Roles, problem: Problem) -> None:
    split = {"problems": [problem]}
    check_lengths(config, model, roles, split, trained=("problems",), teacher=True)


def _problem(row: Row) -> Problem:
    scorer = None if row.scorer is None else scorer_text(row.scorer)
    return Problem(row.problem, row.answer, row.reference, "prepare", scorer=scorer)


def _answer(critique: Context, pattern: str) -> str | None:
    return None if critique.failure else extract_answer(critique.text, pattern)
