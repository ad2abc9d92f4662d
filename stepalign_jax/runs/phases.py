# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The phases of one optimizer step, which `train.py` calls in turn."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import Config, EngineCritic, PolicyGradient
from stepalign_jax.critics.engine_critic import Asked, ask_model, ask_oracle, exact_share
from stepalign_jax.evaluation.difficulty import select_problems
from stepalign_jax.evaluation.evaluate import Evaluation, evaluate_visibly
from stepalign_jax.feedback.conditions import Condition, build_contexts, get_condition
from stepalign_jax.feedback.critique import Critique, count_failures, fit_budget
from stepalign_jax.feedback.roles import addresses
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import Grader
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.objectives.policy_gradient import group_advantages
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.placement import state_shardings
from stepalign_jax.runs.second_model import take_turn
from stepalign_jax.runs.setup import Workbench, initial_state
from stepalign_jax.runs.stopwatch import padding, token_rates
from stepalign_jax.sampling.engine import Purpose
from stepalign_jax.training.optimizer import learning_rate_at, make_optimizer
from stepalign_jax.training.packing import Packed, check_parts, pack, unpack
from stepalign_jax.training.step import TrainState, make_update

# Sampler and scorer run the same forward: a larger gap than rounding means a broken alignment.
_LARGEST_LOGPROB_GAP = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.3}


@dataclass
class Samples:
    """One step's rollouts and all that was found out about them, rows in one order."""

    problems: list[Problem]
    prompts: list[list[int]]
    addresses: np.ndarray
    rollouts: Rollouts
    texts: list[str]
    correct: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    contexts: list[Critique] = field(default_factory=list)
    critic_exact: float | None = None
    asked: Asked | None = None  # None where no model was asked


class Trainer:
    """What a run needs at each step; every method is one phase of it."""

    def __init__(
        self,
        config: Config,
        bench: Workbench,
        grader: Grader,
        candidates: dict[str, list[Problem]],
    ):
        """Args: `candidates` are the problems of each split, before the difficulty filter.

        Raises:
          UserError: a problem of any split is over its token budget, or the devices cannot
            share a step's sequences equally.
        """
        num_sequences = config.train.problems_per_step * config.train.samples_per_problem
        check_parts(num_sequences, config.train.micro_batches, bench.mesh)
        self.config, self.bench, self.grader = config, bench, grader
        self.candidates = candidates
        for problems in candidates.values():
            bench.roles.check_problems(problems)
        self.condition: Condition = get_condition(config.condition)
        self.distils = not isinstance(config.objective, PolicyGradient)
        self.shardings = state_shardings(config, bench)
        self.update = make_update(
            bench.model,
            make_optimizer(config.optimizer, config.train.num_steps),
            config.objective,
            config.teacher,
            distils=self.distils,
            shardings=self.shardings,
        )

    def initial_state(self) -> TrainState:
        """The state before the first optimizer step, laid out over the mesh."""
        return jax.device_put(initial_state(self.config, self.bench), self.shardings)

    def problems(self, split: str) -> list[Problem]:
        """The problems of a split, filtered by difficulty if the config asks."""
        candidates = self.candidates[split]
        return select_problems(self.config, self.bench, self.grader, candidates, split)

    def solver(self, state: TrainState) -> dict[str, Any]:
        """The solver's weights."""
        return {"params": self.bench.base} | state.trainable

    def sample(self, state: TrainState, problems: list[Problem], step: int) -> Samples:
        """Samples G rollouts of each problem."""
        num_samples = self.config.train.samples_per_problem
        repeated = [problem for problem in problems for _ in range(num_samples)]
        rendered = [self.bench.roles.solver(problem) for problem in problems]
        prompts = [prompt for prompt in rendered for _ in range(num_samples)]
        at = addresses(problems, num_samples, step)
        rollouts = self.bench.engine.sample(
            self.solver(state),
            prompts,
            at,
            seed=self.config.seed,
            purpose=Purpose.SOLVER,
            settings=self.config.sampling,
        )
        return Samples(repeated, prompts, at, rollouts, self.bench.roles.texts(rollouts))

    def grade(self, samples: Samples) -> None:
        """Fills in which final answers are right."""
        pattern = self.config.prompts.answer_pattern
        answers = [extract_answer(text, pattern) for text in samples.texts]
        golds = [problem.answer for problem in samples.problems]
        samples.correct = np.array(self.grader.grade(answers, golds), bool)

    def critique(self, samples: Samples, state: TrainState) -> TrainState:
        """Fills in the teacher's context of each rollout; the critic is asked if need be.

        Returns:
          `state`, which a critic that takes turns on the devices has sent away and back.
        """
        critiques = None
        if self.condition.needs_critiques:
            critiques, state = self._ask_critic(samples, state)
            samples.critic_exact = exact_share(samples.problems, samples.texts, critiques)
        contexts = build_contexts(self.condition, samples.problems, critiques)
        budget = self.config.prompts.max_context_tokens
        samples.contexts = fit_budget(contexts, self.bench.roles.count_tokens, budget)
        return state

    def _ask_critic(
        self, samples: Samples, state: TrainState
    ) -> tuple[list[Critique], TrainState]:
        if not isinstance(self.config.critic, EngineCritic):
            return ask_oracle(samples.problems, samples.texts), state
        ask = partial(
            ask_model,
            self.bench.critic,
            self.config.critic,
            samples.problems,
            samples.texts,
            addresses=samples.addresses,
            seed=self.config.seed,
            grade=self.grader.grade,
        )
        samples.asked, state = take_turn(self.bench.critic, self.bench.frozen, state, ask)
        return samples.asked.critiques, state

    def pack(self, samples: Samples) -> list[Packed]:
        """Puts rollouts behind the prompts of both roles; failed critiques do not count."""
        roles = self.bench.roles
        teacher_prompts = samples.prompts
        if self.distils:
            teacher_prompts = [
                roles.teacher(problem, context.text)
                for problem, context in zip(samples.problems, samples.contexts, strict=True)
            ]
        rewards = samples.correct.reshape(-1, self.config.train.samples_per_problem)
        return pack(
            samples.prompts,
            teacher_prompts,
            samples.rollouts,
            np.array([context.failure is None for context in samples.contexts]),
            np.asarray(group_advantages(jnp.asarray(rewards))).reshape(-1),
            num_parts=self.config.train.micro_batches,
            mesh=self.bench.mesh,
        )

    def score(self, state: TrainState, packed: list[Packed]) -> list[jax.Array | None]:
        """The teacher's hidden states of each part, for `learn`."""
        return self.update.score(state, self.bench.base, [p.part for p in packed])

    def learn(
        self, state: TrainState, packed: list[Packed], hidden: list[jax.Array | None]
    ) -> tuple[TrainState, dict[str, jax.Array], list[TokenScores]]:
        """The optimizer step itself; `state` is used up."""
        parts = [p.part for p in packed]
        return self.update.apply(state, self.bench.base, parts, hidden)

    def scores(
        self, samples: Samples, packed: list[Packed], scores: list[TokenScores]
    ) -> TokenScores:
        """Scores [B, T] of the rollouts; 0 where a token does not count."""
        return unpack(packed, scores, np.shape(samples.rollouts.tokens))

    def metrics(
        self, samples: Samples, packed: list[Packed], scores: TokenScores, step: int
    ) -> dict[str, float | None]:
        """Metrics that are read off the host's side of a step."""
        gaps = np.abs(np.asarray(scores.solver_logprobs) - samples.rollouts.logprobs)
        gap = max(float(gaps[p.rows, p.columns].max(initial=0.0)) for p in packed)
        limit = _LARGEST_LOGPROB_GAP[self.config.model.compute_dtype]
        if step == 0 and gap > limit:
            raise UserError(
                f"log-probabilities of sampler and scorer differ by {gap:.2g} on the first "
                f"rollouts (rounding explains {limit:.2g}): this is a bug, please report it."
            )
        config, failures = self.config, count_failures(samples.contexts)
        return {
            "learning_rate": float(
                learning_rate_at(config.optimizer, config.train.num_steps, step)
            ),
            "reward": float(samples.correct.mean()),
            "mean_tokens": float(samples.rollouts.lengths.mean()),
            "solver_tokens": float(samples.rollouts.lengths.sum()),
            "truncated": float(1.0 - samples.rollouts.finished.mean()),
            "sampler_logprob_gap": gap,
            "contexts_failed": float(sum(failures.values())),
            **{f"context_failed/{name}": float(n) for name, n in failures.items() if n},
            "critic_exact_on_wrong": samples.critic_exact,
            **_critic_tokens(samples.asked),
        }

    def rows(self, samples: Samples, scores: TokenScores) -> Iterator[dict[str, Any]]:
        """One JSON row per rollout; advantages are null where the critique failed."""
        advantages = np.asarray(scores.advantage)
        for i, problem in enumerate(samples.problems):
            length = int(samples.rollouts.lengths[i])
            failure = samples.contexts[i].failure
            yield {
                "problem": problem.text,
                "answer": problem.answer,
                "rollout": samples.texts[i],
                "tokens": np.asarray(samples.rollouts.tokens[i, :length]).tolist(),
                "correct": bool(samples.correct[i]),
                "context": samples.contexts[i].text,
                "failure": failure,
                "advantage": None
                if failure
                else [round(float(a), 5) for a in advantages[i, :length]],
            }

    def rates(
        self, samples: Samples, packed: list[Packed], seconds: dict[str, float]
    ) -> dict[str, float]:
        """Tokens per second of each phase, and what share of the arrays was padding."""
        num_tokens = {
            "sample": int(samples.rollouts.lengths.sum()),
            "critique": 0 if samples.asked is None else int(samples.asked.lengths.sum()),
            "score": sum(p.teacher_tokens for p in packed) if self.distils else 0,
            "update": sum(p.solver_tokens for p in packed),
        }
        rates = token_rates(seconds, num_tokens, self.bench.mesh.size)
        return {**rates, **padding(packed, distils=self.distils)}

    def evaluate(self, state: TrainState, problems: list[Problem], *, label: str) -> Evaluation:
        """Evaluates the solver; validation draws its own, smaller number of samples."""
        config = self.config.evaluation
        if label == "validate":
            config = replace(config, num_samples=config.num_validation_samples)
        return evaluate_visibly(
            self.bench,
            self.solver(state),
            self.grader,
            problems,
            config,
            seed=self.config.seed,
            description=label,
        )


def _critic_tokens(asked: Asked | None) -> dict[str, float | None]:
    """What the critiques of a step took; thinking counts."""
    if asked is None or not asked.lengths.size:
        return {"critic_tokens": 0.0, "critic_mean_tokens": None, "critic_truncated": None}
    return {
        "critic_tokens": float(asked.lengths.sum()),
        "critic_mean_tokens": float(asked.lengths.mean()),
        "critic_truncated": float(1.0 - asked.finished.mean()),
    }
