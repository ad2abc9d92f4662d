# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Avg@k, Pass@k and Maj@k of the solver at the start, or at a run's newest checkpoint.

The start is the base model, with the adapter of `trainable.adapter` if there is one.

    python -m stepalign_jax.evaluate --config tiny
    python -m stepalign_jax.evaluate --run runs/tiny-stepalign

A run's own config.json is read; what overrides or --config change of it is named. With --run or
--to a command that was stopped goes on where it was.
"""

import argparse
import json
import sys
from pathlib import Path

from stepalign_jax.base.files import write_json
from stepalign_jax.config.cli import parse_arguments, read_config, run_command
from stepalign_jax.evaluation.evaluate import evaluate
from stepalign_jax.exporting.trained import Trained, choose_step, load_trained
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.problems.sources import SPLITS, load_problems
from stepalign_jax.report.tables import evaluation_table
from stepalign_jax.runs.directory import RunDirectory, differing_keys
from stepalign_jax.runs.inputs import warn_of_other_problems
from stepalign_jax.runs.setup import (
    check_problems,
    make_grader,
    open_solver,
    select_problems,
)
from stepalign_jax.sampling.kept import kept_beside

SECTIONS = (
    *("seed", "runs_dir", "model", "trainable", "problems", "prompts", "critic"),
    *("evaluation", "parallel"),
)


def main(argv: list[str]) -> None:
    """Evaluates, and prints a table with intervals."""
    arguments = parse_arguments(
        argv,
        description="Evaluates what training starts from, or a run's newest checkpoint.",
        example="python -m stepalign_jax.evaluate --run runs/tiny-stepalign --split validation",
        options={
            "--run": {"metavar": "DIR", "help": "evaluate this run's newest checkpoint"},
            "--split": {"default": "test", "choices": SPLITS, "help": "default: test"},
            "--to": {
                "metavar": "FILE",
                "help": "write intervals and per-problem values (JSON)",
            },
        },
        sections=SECTIONS,
        config="optional",
    )
    config, run = read_config(arguments), None
    if arguments.run:
        run = RunDirectory(Path(arguments.run))
        step = choose_step(run, step=None, metric=None)
        if changed := differing_keys(run, config, SECTIONS):
            print(f"warning: not as in the run: {', '.join(changed)}", file=sys.stderr)
    candidates = load_problems(config.problems, arguments.split)
    if run is not None:
        warn_of_other_problems(run, arguments.split, candidates)
    model, roles = open_solver(config)
    with use_mesh(model.mesh), make_grader(config) as grader:
        by_split = {arguments.split: candidates}
        check_problems(config, model, roles, grader, by_split, teacher=False)
        model.load()
        variables = model.variables()
        source = " with ".join(
            filter(None, [config.model.path, getattr(config.trainable, "adapter", "")])
        )
        if run is not None:
            variables |= load_trained(Trained(run, config, model, step))
            source = f"{run.path}, step {step}"
        problems = select_problems(config, model, roles, grader, candidates, arguments.split)
        with kept_beside(_result_file(arguments)) as kept:
            found = evaluate(
                model.engine,
                variables,
                roles,
                grader,
                problems,
                config.evaluation,
                seed=config.seed,
                label="evaluate",
                kept=kept,
            )
            intervals = found.intervals(config.evaluation, config.seed)
            if arguments.to:
                per_problem = {"problems": [p.text for p in problems], **found.as_lists()}
                content = {"intervals": intervals, "per_problem": per_problem}
                write_json(Path(arguments.to), content)
    print(f"{source}: {len(problems)} {arguments.split} problems")
    print(evaluation_table(intervals, config.evaluation.num_samples))
    if arguments.to:
        print(f"written: {arguments.to}")
    else:
        print(json.dumps({name: round(i["mean"], 4) for name, i in intervals.items()}))


def _result_file(arguments: argparse.Namespace) -> Path | None:
    """What a stopped command goes on beside: the file to write, or else one in the run."""
    if arguments.to:
        return Path(arguments.to)
    if arguments.run:
        return RunDirectory(Path(arguments.run)).evaluation_file(f"evaluate_{arguments.split}")
    return None


if __name__ == "__main__":
    run_command(main)
