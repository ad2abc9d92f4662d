# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""On-policy self-distillation: sample, grade, critique, score, update, log, save.

    python -m stepalign_jax.train --config configs/tiny.py
    python -m stepalign_jax.train --config configs/tiny.py:refsol --seed=1 --name=refsol-1

The same command again goes on where the run was stopped.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.cli import parse_arguments, progress, run_command
from stepalign_jax.base.config import Config
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.load_config import load_config
from stepalign_jax.base.types import Problem, Rollouts
from stepalign_jax.feedback.conditions import Condition, build_contexts, get_condition
from stepalign_jax.feedback.critic import ask_model, ask_oracle, exact_share
from stepalign_jax.feedback.critique import Critique, count_failures, fit_budget
from stepalign_jax.feedback.roles import addresses
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.objectives.optimizer import learning_rate_at, make_optimizer
from stepalign_jax.objectives.policy_gradient import group_advantages
from stepalign_jax.objectives.update import Batch, TrainState, make_update
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.problems.grading import Grader, extract_answer
from stepalign_jax.problems.pipeline import make_problem_iterator
from stepalign_jax.runs.assemble import (
    Workbench,
    assemble,
    initial_state,
    problem_set,
)
from stepalign_jax.runs.checkpoint import Checkpoints, restore_latest
from stepalign_jax.runs.directory import RunDirectory, open_run, read_json, read_jsonl
from stepalign_jax.runs.evaluation import Evaluation, evaluate, gains
from stepalign_jax.runs.metrics import MetricsWriter
from stepalign_jax.runs.report import plot_run, summary_table
from stepalign_jax.runs.selection import select_problems
from stepalign_jax.sampling.engine import Purpose, prompt_bucket

GRADING_WORKERS = 2
# Sampler and scorer run the same forward: a larger gap than rounding means a broken alignment.
_LARGEST_LOGPROB_GAP = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.3}


class Stopwatch:
    """Seconds spent in each named phase of one optimizer step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


@dataclass
class Samples:
    """One step's rollouts and all that was found out about them, rows in one order."""

    problems: list[Problem]
    rollouts: Rollouts
    texts: list[str]
    correct: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    contexts: list[Critique] = field(default_factory=list)
    critic_exact: float | None = None


class Trainer:
    """What a run needs at each step; every method is one phase of it."""

    def __init__(self, config: Config, bench: Workbench, grader: Grader):
        self.config, self.bench, self.grader = config, bench, grader
        self.condition: Condition = get_condition(config.condition)
        self.update = make_update(
            bench.model,
            make_optimizer(config.optimizer, config.train.num_steps),
            config.objective,
            config.teacher,
            distils=self.condition.objective == "divergence",
            micro_batches=config.train.micro_batches,
        )

    def problems(self, split: str) -> list[Problem]:
        """The problems of a split, checked, and filtered by difficulty if the config asks."""
        candidates = problem_set(self.config.problems, split)
        self.bench.roles.check_problems(candidates)
        return select_problems(self.config, self.bench, self.grader, candidates, split)

    def solver(self, state: TrainState) -> dict[str, Any]:
        """The solver's weights."""
        return {"params": self.bench.base} | state.trainable

    def sample(self, state: TrainState, problems: list[Problem], step: int) -> Samples:
        """Samples G rollouts of each problem."""
        num_samples = self.config.train.samples_per_problem
        repeated = [problem for problem in problems for _ in range(num_samples)]
        prompts = [self.bench.roles.solver(problem) for problem in repeated]
        rollouts = self.bench.engine.sample(
            self.solver(state),
            prompts,
            addresses(problems, num_samples, step),
            seed=self.config.seed,
            purpose=Purpose.SOLVER,
            settings=self.config.sampling,
        )
        return Samples(repeated, rollouts, self.bench.roles.texts(rollouts))

    def grade(self, samples: Samples) -> None:
        """Fills in which final answers are right."""
        pattern = self.config.prompts.answer_pattern
        answers = [extract_answer(text, pattern) for text in samples.texts]
        golds = [problem.answer for problem in samples.problems]
        samples.correct = np.array(self.grader.grade(answers, golds), bool)

    def critique(self, samples: Samples, problems: list[Problem], step: int) -> None:
        """Fills in the teacher's context of each rollout; the critic is asked if need be."""
        critiques = None
        if self.condition.needs_critiques:
            critiques = self._ask_critic(samples, problems, step)
            samples.critic_exact = exact_share(samples.problems, samples.texts, critiques)
        contexts = build_contexts(self.condition, samples.problems, critiques)
        budget = self.config.prompts.max_context_tokens
        samples.contexts = fit_budget(contexts, self.bench.roles.count_tokens, budget)

    def _ask_critic(
        self, samples: Samples, problems: list[Problem], step: int
    ) -> list[Critique]:
        if self.config.critic.kind == "oracle":
            return ask_oracle(samples.problems, samples.texts)
        return ask_model(
            self.bench.engine,
            {"params": self.bench.base},
            self.bench.roles,
            self.config.critic,
            samples.problems,
            samples.texts,
            addresses=addresses(problems, self.config.train.samples_per_problem, step),
            seed=self.config.seed,
            grade=self.grader.grade,
        )

    def batch(self, samples: Samples) -> Batch:
        """Puts rollouts behind the prompts of both roles; failed critiques are masked."""
        roles, rollouts = self.bench.roles, samples.rollouts
        distils = self.condition.objective == "divergence"
        solver_prompts = [roles.solver(problem) for problem in samples.problems]
        teacher_prompts = solver_prompts
        if distils:
            teacher_prompts = [
                roles.teacher(problem, context.text)
                for problem, context in zip(samples.problems, samples.contexts, strict=True)
            ]
        usable = np.array([context.failure is None for context in samples.contexts])
        valid = np.arange(rollouts.tokens.shape[1])[None] < rollouts.lengths[:, None]
        rewards = samples.correct.reshape(-1, self.config.train.samples_per_problem)
        arrays = (
            *_join(solver_prompts, rollouts),
            *_join(teacher_prompts, rollouts),
            rollouts.tokens,
            valid & usable[:, None],
            rollouts.logprobs,
            group_advantages(jnp.asarray(rewards)).reshape(-1),
        )
        return Batch(*map(jnp.asarray, arrays))

    def metrics(self, samples: Samples, scores: TokenScores, batch: Batch, step: int) -> dict:
        """Metrics that are read off the host's side of a step."""
        gap = np.abs(np.asarray(scores.solver_logprobs) - samples.rollouts.logprobs)
        gap = float(np.max(np.where(np.asarray(batch.mask), gap, 0.0)))
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
        }

    def rows(self, samples: Samples, scores: TokenScores) -> Iterator[dict[str, Any]]:
        """One JSON row per rollout, its per-token advantages included."""
        advantages = np.asarray(scores.advantage)
        for i, problem in enumerate(samples.problems):
            length = int(samples.rollouts.lengths[i])
            yield {
                "problem": problem.text,
                "answer": problem.answer,
                "rollout": samples.texts[i],
                "tokens": np.asarray(samples.rollouts.tokens[i, :length]).tolist(),
                "correct": bool(samples.correct[i]),
                "context": samples.contexts[i].text,
                "failure": samples.contexts[i].failure,
                "advantage": [round(float(a), 5) for a in advantages[i, :length]],
            }

    def evaluate(self, state: TrainState, problems: list[Problem], *, label: str) -> Evaluation:
        """Evaluates the solver; validation draws its own, smaller number of samples."""
        config = self.config.evaluation
        if label == "validate":
            config = replace(config, num_samples=config.num_validation_samples)
        total = len(problems) * config.num_samples
        with progress(total=total, description=label) as bar:
            return evaluate(
                self.bench.engine,
                self.solver(state),
                self.bench.roles,
                self.grader,
                problems,
                config,
                seed=self.config.seed,
                progress=lambda done: (bar.update(done - bar.n), None)[1],
            )


def _join(prompts: list[list[int]], rollouts: Rollouts) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [B, L], prompt then completion then padding, and prompt lengths [B]."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = prompt_bucket(int((lengths + rollouts.lengths).max()))
    tokens = np.zeros((len(prompts), longest), np.int32)
    for row, (prompt, length) in enumerate(zip(prompts, rollouts.lengths, strict=True)):
        end = len(prompt) + int(length)
        tokens[row, :end] = [*prompt, *rollouts.tokens[row, :length]]
    return tokens, lengths


def train(config: Config) -> dict[str, Any]:
    """Runs, or goes on with, the run that `config` describes, and returns its summary."""
    run = open_run(config)
    if run.summary_file.exists():
        return read_json(run.summary_file)
    bench = assemble(config)
    with (
        use_mesh(bench.mesh),
        Grader(
            deadline_secs=config.evaluation.grading_secs, num_workers=GRADING_WORKERS
        ) as grader,
    ):
        trainer = Trainer(config, bench, grader)
        return _train(trainer, run)


def _train(trainer: Trainer, run: RunDirectory) -> dict[str, Any]:
    # --- Problems, and the state to start from -------------------------------------------
    config, started = trainer.config, time.monotonic()
    train_set, test_set = trainer.problems("train"), trainer.problems("test")
    validates = config.train.validate_every_steps > 0
    validation_set = trainer.problems("validation") if validates else []
    stream = make_problem_iterator(train_set, config.train.problems_per_step, config.seed)
    state = initial_state(config, trainer.bench)
    restored = restore_latest(run.checkpoints, state)
    if restored is not None:
        state = restored.state
        stream.set_state(restored.data_state)
    first_step = int(state.step)
    run.truncate_after(first_step)
    run.write_prompts(_prompt_examples(trainer, train_set[0]))
    checkpoints = Checkpoints(run.checkpoints, num_to_keep=config.train.checkpoints_to_keep)
    writer = MetricsWriter(run, num_completed_steps=first_step)
    before = _evaluate_once(trainer, run, state, test_set, "before")

    # --- The loop --------------------------------------------------------------------------
    bar = progress(total=config.train.num_steps, description=config.name)
    bar.update(first_step)
    for step in range(first_step, config.train.num_steps):
        watch = Stopwatch()
        problems = next(stream)
        with watch.phase("sample"):
            samples = trainer.sample(state, problems, step)
        with watch.phase("host"):
            trainer.grade(samples)
        with watch.phase("critique"):
            trainer.critique(samples, problems, step)
        with watch.phase("host"):
            batch = trainer.batch(samples)
        with watch.phase("score_and_update"):
            state, metrics, scores = trainer.update(state, trainer.bench.base, batch)
            jax.block_until_ready(metrics)
        with watch.phase("host"):
            metrics = {**metrics, **trainer.metrics(samples, scores, batch, step)}
            run.write_rollouts(step, trainer.rows(samples, scores))
        done = step + 1
        every = config.train.validate_every_steps
        if every and (done % every == 0 or done == config.train.num_steps):
            with watch.phase("validate"):
                validation = trainer.evaluate(state, validation_set, label="validate")
            run.write_evaluation(f"validation_{done:05d}", validation.as_lists())
            metrics["validation_avg_at_k"] = float(validation.per_problem["avg_at_k"].mean())
        writer.write(step, metrics)
        writer.write_timings(step, {**watch.seconds, "total": sum(watch.seconds.values())})
        texts_every = config.train.sample_texts_every_steps
        if texts_every and step % texts_every == 0:
            _write_texts(writer, trainer, samples, step)
        if done % config.train.checkpoint_every_steps == 0 or done == config.train.num_steps:
            checkpoints.save(done, state, data_state=stream.get_state(), extra={})
        bar.set_postfix(loss=f"{metrics['loss']:.3f}", reward=f"{metrics['reward']:.2f}")
        bar.update()
    bar.close()
    writer.close()
    checkpoints.close()

    # --- What it came to ---------------------------------------------------------------------
    after = _evaluate_once(trainer, run, state, test_set, "after")
    steps = read_jsonl(run.timings_file)
    summary = {
        "name": config.name,
        "condition": config.condition,
        "seed": config.seed,
        "k": config.evaluation.num_samples,
        "num_problems": len(test_set),
        "before": before.intervals(config.evaluation, config.seed),
        "after": after.intervals(config.evaluation, config.seed),
        "gain": gains(before, after, config.evaluation, config.seed),
        "solver_tokens": int(sum(row["solver_tokens"] for row in read_jsonl(run.metrics_file))),
        "step_seconds": sum(row["total"] - row.get("validate", 0.0) for row in steps),
        "seconds": time.monotonic() - started,  # of this process: a resumed run's last part
    }
    run.write_summary(summary)
    plot_run(run)
    return summary


def _evaluate_once(
    trainer: Trainer, run: RunDirectory, state: TrainState, problems: list[Problem], label: str
) -> Evaluation:
    """Evaluates, or reads what an interrupted run had already found."""
    path = run.evaluation_file(label)
    if path.exists():
        return Evaluation.from_lists(read_json(path))
    evaluation = trainer.evaluate(state, problems, label=label)
    run.write_evaluation(label, evaluation.as_lists())
    return evaluation


def _prompt_examples(trainer: Trainer, problem: Problem) -> dict[str, str]:
    """The prompts of all roles as the model reads them, for one problem."""
    roles, config = trainer.bench.roles, trainer.config
    rendered = {
        "solver": roles.solver(problem),
        "teacher": roles.teacher(problem, "(the context)"),
        "critic": roles.critic(problem, "(the rollout)", config.critic.sees) or [],
    }
    return {role: roles.tokenizer.decode(ids) for role, ids in rendered.items()}


def _write_texts(writer: MetricsWriter, trainer: Trainer, samples: Samples, step: int) -> None:
    wrong = int(np.argmin(samples.correct))  # the first wrong rollout, if there is one
    parts = {
        "problem": samples.problems[wrong].text,
        "rollout": samples.texts[wrong],
        "context": samples.contexts[wrong].text or f"({samples.contexts[wrong].failure})",
    }
    writer.add_text(step, "example", "\n\n".join(f"{k}:\n{v}" for k, v in parts.items()))


def main(argv: list[str]) -> None:
    """Trains, and prints the table of before and after."""
    arguments = parse_arguments(
        argv,
        description="Distils critiques of its own rollouts into a model.",
        example="python -m stepalign_jax.train --config configs/tiny.py --train.num_steps=30",
    )
    config = load_config(arguments.config, arguments.overrides)
    summary = train(config)
    print(summary_table(summary))
    print(f"files: {RunDirectory.of(config).path}")


if __name__ == "__main__":
    run_command(main)
