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
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from stepalign_jax.analysis.probe_set import ProbeSet, probed_conditions
from stepalign_jax.base.compilation import CompilationCounter
from stepalign_jax.base.files import read_json, write_json
from stepalign_jax.base.processes import agreed, is_first, joined, told_by_first
from stepalign_jax.base.progress import progress, say
from stepalign_jax.base.stopping import stop_signals
from stepalign_jax.config.cli import ALL_SECTIONS, parse_arguments, read_config, run_command
from stepalign_jax.config.describe import resolved
from stepalign_jax.config.hosts import HOST_OPTIONS, chosen_hosts, patience
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.evaluate import Evaluation, evaluate
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.parallel.offload import Resident
from stepalign_jax.planning.fits import memory_json, memory_shares, memory_table
from stepalign_jax.problems.locked import count_opening
from stepalign_jax.problems.order import check_batch, make_problem_iterator
from stepalign_jax.problems.sources import SPLITS, load_problems
from stepalign_jax.report.figures import run_images
from stepalign_jax.report.plots import plot_run
from stepalign_jax.report.run_page import write_run_report
from stepalign_jax.report.tables import summary_table
from stepalign_jax.runs.alignment import check_alignment
from stepalign_jax.runs.checkpoint import Checkpoints, finished_steps, restore_latest
from stepalign_jax.runs.directory import RunDirectory, is_finished
from stepalign_jax.runs.inputs import (
    KEPT_BY_FILTER,
    Inputs,
    fingerprint_inputs,
    fingerprint_problems,
    lengthen_run,
)
from stepalign_jax.runs.metrics import MetricsWriter
from stepalign_jax.runs.phases import critique, grade, pack, sample, score, update
from stepalign_jax.runs.preflight import preflight
from stepalign_jax.runs.record import EmptySteps, StepResults, record_step
from stepalign_jax.runs.setup import (
    check_condition,
    check_problems,
    example_prompts,
    initial_state,
    make_grader,
    make_run_programs,
    open_run_critic,
    open_solver,
    select_problems,
    step_sampling,
)
from stepalign_jax.runs.shared import enter_run
from stepalign_jax.runs.stopwatch import Stopwatch, remaining
from stepalign_jax.runs.summary import summarise
from stepalign_jax.runs.tensorboard import show_outcome
from stepalign_jax.sampling.kept import is_begun, kept_beside
from stepalign_jax.training.state import teacher_variables


def train(config: Config) -> dict[str, Any]:
    """Runs, or goes on with, the run that `config` describes, and returns its summary."""
    run, started = RunDirectory.of(config), time.monotonic()
    with ExitStack() as stack:
        if told_by_first(lambda: is_finished(config)):
            _say(f"{run.path} is finished: nothing was run")
            return told_by_first(lambda: read_json(run.summary_file))
        stop = stack.enter_context(stop_signals())
        config, run = stack.enter_context(enter_run(config))
        condition, loop = check_condition(config), config.train
        # Open everything: what can be refused is refused before any weights are read.
        looks = loop.validate_every_steps or config.analysis.every_steps
        splits = SPLITS if looks else ("train", "test")
        problems = {split: load_problems(config.problems, split) for split in splits}
        model, roles = open_solver(config)
        grader = stack.enter_context(make_grader(config))
        check_batch(problems["train"], loop.problems_per_step)
        check_problems(
            config, model, roles, grader, problems,
            trained=("train",), teacher=condition.contexts is not None,
        )  # fmt: skip
        programs = make_run_programs(config, model)
        state, reviewer = Resident(), None
        if any(each.needs_critiques for each in (condition, *probed_conditions(config))):
            reviewer = open_run_critic(config, model, grader, (model.weights, state), run=run)
        critic = reviewer if condition.needs_critiques else None

        done_before = max(finished_steps(run.checkpoints), default=0)
        run.check_rows(done_before)
        inputs = Inputs(run, step=done_before, allow_changes=loop.allow_changed_inputs)
        inputs.check(fingerprint_inputs(config, model.directory, reviewer, problems))

        # Read the weights, the critic's first: one that takes turns leaves the devices again.
        for loaded in filter(None, (reviewer, model)):
            loaded.load()
        stack.enter_context(use_mesh(model.mesh))
        for split, candidates in problems.items():
            problems[split] = select_problems(config, model, roles, grader, candidates, split)
        if config.problems.base_avg_below:
            inputs.check(fingerprint_problems(problems, KEPT_BY_FILTER))
        lengthen_run(run, config, step=done_before)
        state.replace(initial_state(config, model))

        # Go on where the newest checkpoint stands, or start.
        stream = make_problem_iterator(problems["train"], loop.problems_per_step, config.seed)
        if (restored := restore_latest(run.checkpoints, state.tree)) is not None:
            state.replace(restored.state)
            stream.set_state(restored.data_state)
        first_step = int(state.tree.step)
        if first_step:
            _say(f"goes on from step {first_step} of {loop.num_steps}")
        run.truncate_after(first_step)
        shares = memory_shares(model, state.tree, reviewer)
        say(memory_table(shares))
        write_json(run.memory_file, memory_json(shares))
        if first_step == 0:
            first = problems["train"][0]
            example = example_prompts(roles, critic, first)
            if condition.asks_teacher:
                found = check_alignment(config, model, state.tree, roles, first)
                example |= {"alignment": found}
            write_json(run.prompts_file, example)
        saver = stack.enter_context(
            closing(Checkpoints(run.checkpoints, num_to_keep=loop.checkpoints_to_keep))
        )
        writer = stack.enter_context(
            closing(MetricsWriter(run, num_completed_steps=first_step))
        )
        if first_step == 0:
            writer.start_session(config)
            writer.add_text(0, "config", resolved(config))
            for role in filter(example.get, ("solver", "teacher", "critic")):
                writer.add_text(0, f"prompts/{role}", example[role])

        def solver() -> dict[str, Any]:
            return {"params": model.base} | state.tree.trainable

        def evaluate_once(split: str, label: str, weights: dict[str, Any]) -> Evaluation:
            """Evaluates weights, unless an interrupted run has done so."""
            path, how = run.evaluation_file(label), config.evaluation
            if split == "validation":
                how = replace(how, num_samples=how.num_validation_samples)
            if path.exists():
                return Evaluation.read_whole(path, len(problems[split]), how.num_samples)
            where, goes_on = f"{run.path} {label}", is_begun(path)
            if words := count_opening(
                config.problems, split, command="train", of=where, goes_on=goes_on
            ):
                _say(words)
            with kept_beside(path) as kept:
                found = evaluate(
                    model.engine, weights, roles, grader, problems[split], how,
                    seed=config.seed, label=label, kept=kept,
                )  # fmt: skip
                write_json(path, found.as_lists())
            return found

        def validate(done: int) -> float:
            found = evaluate_once("validation", f"validation_{done:05d}", solver())
            average, k = found.mean("avg_at_k"), config.evaluation.num_validation_samples
            _say(f"step {done} of {loop.num_steps}: validation Avg@{k} {100 * average:.1f} %")
            return average

        # Should a file be lost on the way: before training, not before this process.
        initial = model.variables() if first_step else solver()
        before = evaluate_once("test", "before", initial)
        measured = {"test": before}
        if loop.validate_every_steps:  # where the curve starts
            measured["validation"] = evaluate_once("validation", "validation_00000", initial)

        def teacher() -> dict[str, Any]:
            return teacher_variables(state.tree, model.base, config.teacher)

        analyse_every, probe_set = config.analysis.every_steps, None
        if analyse_every:
            probe_set = ProbeSet(
                config, run, model, roles, grader, reviewer, problems["validation"]
            )
            probe_set.analyse(0, initial, model.variables() if first_step else teacher())
        if first_step == 0:
            preflight(config, run, model, roles, grader, critic, problems["train"], measured)

        bar = stack.enter_context(progress(total=loop.num_steps, description=config.name))
        bar.update(first_step)
        compiled = stack.enter_context(closing(CompilationCounter()))
        # One thread beside this one: it grades while the critic writes, and records a step
        # while the next one is sampled. Its exceptions are raised when a result is asked for.
        beside = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="beside"))
        record = partial(
            record_step,
            run,
            writer,
            EmptySteps(loop.max_empty_steps),
            config=config,
            roles=roles,
            num_devices=model.mesh.size,
        )
        recorded: Future[str] | None = None
        sampling = step_sampling(config)
        with stop.deferred():
            for step in range(first_step, loop.num_steps):
                watch, asked = Stopwatch(), next(stream)
                with watch.phase("sample"):
                    samples = sample(
                        model.engine, solver(), roles, asked, sampling,
                        num_samples=loop.samples_per_problem, seed=config.seed, step=step,
                    )  # fmt: skip
                grading = beside.submit(
                    grade, grader, samples.attempts, config.prompts.answer_pattern
                )
                with watch.phase("critique"):
                    critiques = critique(condition, critic, samples, roles)
                with watch.phase("host"):
                    correct = grading.result()
                    batch = pack(
                        condition, samples, correct, critiques, roles,
                        num_samples=loop.samples_per_problem,
                        weight_names=config.objective.token_weights,
                        num_parts=loop.micro_batches, stop_id=model.stop_ids[0],
                        mesh=model.mesh,
                    )  # fmt: skip
                with watch.phase("score"):
                    hidden = jax.block_until_ready(
                        score(programs, state.tree, model.base, batch)
                    )
                with watch.phase("update"):
                    new, metrics, scores = update(
                        programs, state.tree, model.base, batch, hidden
                    )
                    state.replace(new)
                    jax.block_until_ready(metrics)
                done = step + 1
                last = done == loop.num_steps
                if loop.validate_every_steps and (
                    done % loop.validate_every_steps == 0 or last
                ):
                    with watch.phase("validate"):
                        metrics |= {"validation_avg_at_k": validate(done)}
                if probe_set is not None and (done % analyse_every == 0 or last):
                    with watch.phase("analyze"):
                        probe_set.analyse(done, solver(), teacher())
                with watch.phase("host"):
                    if recorded is not None:
                        bar.set_postfix_str(recorded.result())
                results = StepResults(
                    step, samples, correct, critiques, batch, metrics, scores, watch.seconds,
                    compiled.take(), grader.take_failures(),
                )  # fmt: skip
                if is_first():
                    recorded = beside.submit(record, results)
                stop.requested = agreed(stop.requested)
                if step == first_step + 1 and not last:  # the first one compiles
                    own = results.compiled["compile_seconds"]
                    _say(remaining(watch.seconds, own, loop.num_steps - done))
                if done % loop.checkpoint_every_steps == 0 or last or stop.requested:
                    if recorded is not None:
                        recorded.result()  # the rows before a checkpoint are on disk when it is
                    saver.save(done, state.tree, data_state=stream.get_state())
                bar.update()
                if stop.requested and not last:
                    stop.now(f"{done} of {loop.num_steps} steps are saved")
        after = evaluate_once("test", "after", solver())
        seconds = time.monotonic() - started
        return told_by_first(lambda: _close(config, run, before, after, seconds))


def _close(
    config: Config, run: RunDirectory, before: Evaluation, after: Evaluation, seconds: float
) -> dict[str, Any]:
    """Writes what the run came to, and draws it."""
    summary = summarise(config, run, before, after, seconds)
    write_json(run.summary_file, summary)
    plot_run(run)
    show_outcome(
        run, summary, num_steps=config.train.num_steps, text=summary_table(summary),
        images=run_images(run),
    )  # fmt: skip
    return summary


def _say(line: str) -> None:
    say(line, to=sys.stderr)


def main(argv: list[str]) -> None:
    """Trains, and prints the table of before and after."""
    arguments = parse_arguments(
        argv,
        description="Distils critiques of its own rollouts into a model.",
        example="python -m stepalign_jax.train --config tiny --train.num_steps=30",
        options=HOST_OPTIONS,
        sections=ALL_SECTIONS,
    )
    config = read_config(arguments)
    with joined(chosen_hosts(arguments), patience(config.hosts)):
        summary = train(config)
        if is_first():
            print(summary_table(summary))
            run = RunDirectory.of(config)
            print(f"files: {run.path}")
            print(f"report: {write_run_report(run)}")


if __name__ == "__main__":
    run_command(main)
