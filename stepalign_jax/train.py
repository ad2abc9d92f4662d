# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""On-policy self-distillation: sample, grade, critique, score, update, log, save.

    python -m stepalign_jax.train --config configs/tiny.py
    python -m stepalign_jax.train --config configs/tiny.py:refsol --seed=1 --name=refsol-1

The same command again goes on where the run was stopped.
"""

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import jax
import numpy as np

from stepalign_jax.base.compilation import CompilationCounter
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.base.progress import progress
from stepalign_jax.config.cli import parse_arguments, run_command
from stepalign_jax.config.fields import annotations
from stepalign_jax.config.load import load_config
from stepalign_jax.config.schema import Config, EngineCritic, LiveTeacher, PolicyGradient
from stepalign_jax.evaluation.evaluate import Evaluation, gains
from stepalign_jax.feedback.conditions import get_condition
from stepalign_jax.objectives.divergence import TokenScores
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.planning.fits import memory_json, memory_shares, memory_table
from stepalign_jax.problems.order import ProblemIterator, make_problem_iterator
from stepalign_jax.problems.problem import Problem
from stepalign_jax.report.plots import plot_run, summary_table
from stepalign_jax.runs.checkpoint import Checkpoints, restore_latest
from stepalign_jax.runs.directory import RunDirectory, open_run
from stepalign_jax.runs.metrics import MetricsWriter
from stepalign_jax.runs.phases import Samples, Trainer
from stepalign_jax.runs.setup import (
    SPLITS,
    Workbench,
    assemble,
    assemble_with_critic,
    make_grader,
    problem_set,
)
from stepalign_jax.runs.stopwatch import Stopwatch
from stepalign_jax.training.packing import Packed
from stepalign_jax.training.step import TrainState


def train(config: Config) -> dict[str, Any]:
    """Runs, or goes on with, the run that `config` describes, and returns its summary."""
    run = open_run(config)
    if run.summary_file.exists():
        return read_json(run.summary_file)
    _warn(config)
    validates = config.train.validate_every_steps > 0
    splits = SPLITS if validates else ("train", "test")
    candidates = {split: problem_set(config.problems, split) for split in splits}
    asks = get_condition(config.condition).needs_critiques
    bench = (assemble_with_critic if asks else assemble)(config)
    with use_mesh(bench.mesh), make_grader(config) as grader:
        trainer = Trainer(config, bench, grader, candidates)
        return _train(trainer, run)


def _warn(config: Config) -> None:
    if isinstance(config.teacher, LiveTeacher) and not isinstance(
        config.objective, PolicyGradient
    ):
        print(
            "warning: teacher.kind=live chases its own changes; it collapsed in every trial on "
            "the miniature's predecessor, so watch the validation curve.",
            file=sys.stderr,
        )


def _train(trainer: Trainer, run: RunDirectory) -> dict[str, Any]:
    """Restores, evaluates, trains, evaluates; returns the summary."""
    config, started = trainer.config, time.monotonic()
    train_set, test_set = trainer.problems("train"), trainer.problems("test")
    stream = make_problem_iterator(train_set, config.train.problems_per_step, config.seed)
    state = trainer.initial_state()
    restored = restore_latest(run.checkpoints, state)
    if restored is not None:
        state = restored.state
        stream.set_state(restored.data_state)
    first_step = int(state.step)
    run.truncate_after(first_step)
    _report_memory(run, trainer.bench, state)
    run.write_prompts(_prompt_examples(trainer, train_set[0]))
    with (
        closing(
            Checkpoints(run.checkpoints, num_to_keep=config.train.checkpoints_to_keep)
        ) as saver,
        closing(MetricsWriter(run, num_completed_steps=first_step)) as writer,
    ):
        before = _evaluate_once(trainer, run, state, test_set, "before")
        state = _loop(trainer, run, state, stream, saver, writer)
    after = _evaluate_once(trainer, run, state, test_set, "after")
    summary = _summary(config, run, before, after, time.monotonic() - started)
    run.write_summary(summary)
    plot_run(run)
    return summary


def _loop(
    trainer: Trainer,
    run: RunDirectory,
    state: TrainState,
    stream: ProblemIterator,
    saver: Checkpoints,
    writer: MetricsWriter,
) -> TrainState:
    """Trains from the step that `state` has reached to the last one."""
    config = trainer.config.train
    validation_set = trainer.problems("validation") if config.validate_every_steps else []

    def validate(state: TrainState, done: int) -> float:
        validation = trainer.evaluate(state, validation_set, label="validate")
        run.write_evaluation(f"validation_{done:05d}", validation.as_lists())
        return float(validation.per_problem["avg_at_k"].mean())

    if validation_set and int(state.step) == 0:
        validate(state, 0)  # where the curve starts
    bar = progress(total=config.num_steps, description=trainer.config.name)
    bar.update(int(state.step))
    # One thread beside this one: it grades while the critic writes, and records a step while
    # the next one is sampled. What it raises is raised here when its result is asked for.
    with closing(CompilationCounter()) as compiled, ThreadPoolExecutor(1) as beside:
        recorded: Future[str] | None = None
        for step in range(int(state.step), config.num_steps):
            watch, problems = Stopwatch(), next(stream)
            with watch.phase("sample"):
                samples = trainer.sample(state, problems, step)
            grading = beside.submit(trainer.grade, samples)
            with watch.phase("critique"):
                state = trainer.critique(samples, state)
            with watch.phase("host"):
                grading.result()
                packed = trainer.pack(samples)
            with watch.phase("score"):
                hidden = jax.block_until_ready(trainer.score(state, packed))
            with watch.phase("update"):
                state, metrics, scores = trainer.learn(state, packed, hidden)
                jax.block_until_ready(metrics)
            done = step + 1
            last = done == config.num_steps
            if validation_set and (done % config.validate_every_steps == 0 or last):
                with watch.phase("validate"):
                    metrics |= {"validation_avg_at_k": validate(state, done)}
            with watch.phase("host"):
                if recorded is not None:
                    bar.set_postfix_str(recorded.result())
            timings = {**watch.totals(), **compiled.take()}
            timings |= trainer.rates(samples, packed, watch.seconds)
            step_results = (step, samples, packed, scores, metrics, timings)
            recorded = beside.submit(_record, trainer, run, writer, step_results)
            if done % config.checkpoint_every_steps == 0 or last:
                recorded.result()  # a checkpoint vouches for the rows before it
                saver.save(done, state, data_state=stream.get_state(), extra={})
            bar.update()
    bar.close()
    return state


_StepResults = tuple[
    int, Samples, list[Packed], list[TokenScores], dict[str, Any], dict[str, float]
]


def _record(
    trainer: Trainer, run: RunDirectory, writer: MetricsWriter, results: _StepResults
) -> str:
    """Writes all that is kept of a step; returns a few words for the progress bar."""
    step, samples, packed, part_scores, metrics, timings = results
    scores = trainer.scores(samples, packed, part_scores)
    metrics = {**metrics, **trainer.metrics(samples, packed, scores, step)}
    run.write_rollouts(step, trainer.rows(samples, scores))
    writer.write(step, metrics)
    writer.write_timings(step, timings)
    every = trainer.config.train.sample_texts_every_steps
    if every and step % every == 0:
        _write_texts(writer, samples, step)
    return f"loss={metrics['loss']:.3f} reward={metrics['reward']:.2f}"


def _summary(
    config: Config, run: RunDirectory, before: Evaluation, after: Evaluation, seconds: float
) -> dict[str, Any]:
    timings = read_jsonl(run.timings_file)
    return {
        "name": config.name,
        "condition": config.condition,
        "seed": config.seed,
        "k": config.evaluation.num_samples,
        "num_problems": len(before.per_problem["avg_at_k"]),
        "before": before.intervals(config.evaluation, config.seed),
        "after": after.intervals(config.evaluation, config.seed),
        "gain": gains(before, after, config.evaluation, config.seed),
        "solver_tokens": int(sum(row["solver_tokens"] for row in read_jsonl(run.metrics_file))),
        "step_seconds": sum(row["total"] - row.get("validate", 0.0) for row in timings),
        "seconds": seconds,  # of this process: a resumed run's last part
    }


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


def _report_memory(run: RunDirectory, bench: Workbench, state: TrainState) -> None:
    shares = memory_shares(bench, state)
    print(memory_table(shares))
    run.write_memory(memory_json(shares))


def _prompt_examples(trainer: Trainer, problem: Problem) -> dict[str, str]:
    """The prompts of all roles as the model reads them, for one problem."""
    roles, config, critic = trainer.bench.roles, trainer.config, trainer.bench.critic.roles
    rendered = {
        "solver": roles.solver(problem),
        "teacher": roles.teacher(problem, "(the context)"),
    }
    shown = {role: roles.tokenizer.decode(ids) for role, ids in rendered.items()}
    sees = config.critic.sees if isinstance(config.critic, EngineCritic) else "answer"
    asked = critic.critic(problem, "(the rollout)", sees) or []
    return {**shown, "critic": critic.tokenizer.decode(asked)}


def _write_texts(writer: MetricsWriter, samples: Samples, step: int) -> None:
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
        sections=tuple(annotations(Config)),
    )
    config = load_config(arguments.config, arguments.overrides)
    summary = train(config)
    print(summary_table(summary))
    print(f"files: {RunDirectory.of(config).path}")


if __name__ == "__main__":
    run_command(main)
