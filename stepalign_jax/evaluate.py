# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Avg@k, Pass@k and Maj@k of the solver: the base, and beside it what was trained from it.

    python -m stepalign_jax.evaluate --config tiny
    python -m stepalign_jax.evaluate --run runs/tiny-stepalign
    python -m stepalign_jax.evaluate --run runs/stepalign --on aime2024,math500
    python -m stepalign_jax.evaluate --model Qwen/Qwen3-0.6B --on gsm8k=DIR

The base is the model that training starts from, with the adapter of `trainable.adapter` if
there is one. A run's own config.json is read; what overrides or --config change of it is named.
Its base is evaluated once, and kept in the run. docs/evaluation.md has the benchmarks. With
--run or --to a command that was stopped goes on where it was.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import write_json
from stepalign_jax.base.processes import joined, told_by_first
from stepalign_jax.base.progress import say
from stepalign_jax.config.cli import MODEL_CONFIG, parse_arguments, read_config, run_command
from stepalign_jax.config.hosts import EVALUATION_PATIENCE, HOST_OPTIONS, chosen_hosts
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.evaluate import Evaluation, evaluate, gains
from stepalign_jax.evaluation.identity import evaluation_inputs
from stepalign_jax.exporting.trained import Trained, choose_step, load_trained
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.grader import Grader
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.problems.benchmarks import load_benchmark, parse_on
from stepalign_jax.problems.locked import count_opening
from stepalign_jax.problems.problem import Problem
from stepalign_jax.problems.sources import SPLITS, load_problems
from stepalign_jax.report.tables import evaluation_table, gain_table
from stepalign_jax.runs.directory import RunDirectory, differing_keys
from stepalign_jax.runs.inputs import warn_of_other_problems
from stepalign_jax.runs.setup import check_problems, make_grader, open_solver, select_problems
from stepalign_jax.runs.shared import check_seen_checkpoint, own_files
from stepalign_jax.runs.start import evaluate_start
from stepalign_jax.sampling.kept import Kept, is_begun, kept_beside, weights_digest

SECTIONS = (
    *("seed", "runs_dir", "model", "trainable", "problems", "prompts", "critic"),
    *("evaluation", "parallel"),
)
_OPTIONS: dict[str, dict[str, Any]] = {
    "--run": {"metavar": "DIR", "help": "evaluate this run's newest checkpoint"},
    "--model": {
        "metavar": "PATH",
        "help": "evaluate a Hugging Face directory or hub id, with the prompts and sampling of "
        f"--config (without one: {MODEL_CONFIG})",
    },
    "--adapter": {"metavar": "DIR", "help": "beside --model: an adapter in PEFT's layout"},
    "--on": {
        "metavar": "NAMES",
        "help": "instead of the config's problems: aime2024, aime2025, math500, amc23, gsm8k, "
        "separated by commas; NAME=PATH reads a file or directory, NAME alone the Hub",
    },
    "--split": {"choices": SPLITS, "help": "of the config's problems; default: test"},
    "--to": {"metavar": "FILE", "help": "write intervals and per-problem values (JSON)"},
}


class Row(NamedTuple):
    """Weights that are evaluated.

    Attributes:
      name: base, or trained.
      source: the same in words.
      model: its engine samples.
      variables: the weights, which are loaded.
    """

    name: str
    source: str
    model: LanguageModel
    variables: dict[str, Any]


def main(argv: list[str]) -> None:
    """Evaluates, and prints a table with intervals for each set of problems."""
    arguments = parse_arguments(
        argv,
        description="Evaluates a base model, or a run's newest checkpoint beside its base.",
        example="python -m stepalign_jax.evaluate --run runs/tiny-stepalign --split validation",
        options=_OPTIONS | HOST_OPTIONS,
        sections=SECTIONS,
        config="optional",
    )
    _check_options(arguments)
    with joined(chosen_hosts(arguments), EVALUATION_PATIENCE):
        config = told_by_first(lambda: read_config(arguments))
        run = RunDirectory(Path(arguments.run)) if arguments.run else None
        with own_files(config, run, _result_file(arguments)) as (own, copy, result):
            _evaluate(arguments, own, copy, result)


def _evaluate(
    arguments: argparse.Namespace,
    config: Config,
    run: RunDirectory | None,
    result_file: Path | None,
) -> None:
    step = 0
    if run is not None:
        step = choose_step(run, step=None, metric=None)
        check_seen_checkpoint(run, step)
        if changed := differing_keys(run, config, SECTIONS):
            say(f"warning: not as in the run: {', '.join(changed)}", to=sys.stderr)
    elif arguments.config is None:
        what = "prompts, sampling and evaluation"
        say(f"note: {what} are those of --config {MODEL_CONFIG}", to=sys.stderr)
    problems = _load_problems(arguments, config, run)
    model, roles = open_solver(config)
    adapted = model.with_saved_adapter(Path(arguments.adapter)) if arguments.adapter else None
    with use_mesh(model.mesh), make_grader(config) as grader:
        check_problems(config, model, roles, grader, problems, teacher=False)
        model.load()
        if not arguments.on:
            for split, candidates in problems.items():
                chosen = select_problems(config, model, roles, grader, candidates, split)
                problems[split] = chosen
        base = Row("base", _base_source(config), model, model.variables())
        trained = None
        if run is not None:
            weights = model.variables() | load_trained(Trained(run, config, model, step))
            trained = Row("trained", f"{run.path}, step {step}", model, weights)
        elif adapted is not None:
            source = f"{config.model.path} with {arguments.adapter}"
            trained = Row("trained", source, adapted, adapted.variables())
        rows = [base] if trained is None else [base, trained]
        contents = {}
        opened = count_opening(
            config.problems,
            "" if arguments.on else next(iter(problems)),
            command="evaluate",
            of=rows[-1].source,
            goes_on=is_begun(result_file),
        )
        with kept_beside(result_file) as kept:
            for on, asked in problems.items():
                found = _evaluate_rows(config, roles, grader, run, rows, on, asked, kept)
                contents[on] = _content(config, rows, asked, found)
                _show(config, rows, on, contents[on], as_json=not arguments.to)
            if arguments.to and result_file is not None:
                write_json(result_file, contents)
    if opened:
        print(opened)
    if arguments.to:
        print(f"written: {arguments.to}")


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.run and arguments.model:
        raise UserError("--run and --model: a run has its own model, so leave one of them out")
    if arguments.adapter and not arguments.model:
        raise UserError(
            "--adapter goes with --model: a run and a config have their own weights"
        )
    if arguments.on is not None and arguments.split:
        raise UserError("--split is of the config's problems: leave it out with --on")


def _load_problems(
    arguments: argparse.Namespace, config: Config, run: RunDirectory | None
) -> dict[str, list[Problem]]:
    """The problems by name: a split, or the benchmarks that are asked for."""
    if arguments.on is not None:
        named = parse_on(arguments.on)
        return {name: load_benchmark(name, path) for name, path in named.items()}
    split = _split(arguments)
    candidates = load_problems(config.problems, split)
    if run is not None:
        warn_of_other_problems(run, split, candidates)
    return {split: candidates}


def _split(arguments: argparse.Namespace) -> str:
    return arguments.split or "test"


def _base_source(config: Config) -> str:
    adapter = getattr(config.trainable, "adapter", "")
    return " with ".join(filter(None, [config.model.path, adapter]))


def _result_file(arguments: argparse.Namespace) -> Path | None:
    """What a stopped command goes on beside: the file to write, or else one in the run."""
    if arguments.to:
        return Path(arguments.to)
    if arguments.run:
        names = parse_on(arguments.on) if arguments.on is not None else [_split(arguments)]
        label = f"evaluate_{'_'.join(names)}"
        return RunDirectory(Path(arguments.run)).evaluation_file(label)
    return None


def _evaluate_rows(
    config: Config,
    roles: Roles,
    grader: Grader,
    run: RunDirectory | None,
    rows: Sequence[Row],
    on: str,
    problems: Sequence[Problem],
    kept: Kept | None,
) -> list[Evaluation]:
    def measure(row: Row) -> Callable[[], Evaluation]:
        return lambda: evaluate(
            row.model.engine, row.variables, roles, grader, problems, config.evaluation,
            seed=config.seed, label=f"evaluate {on}, {row.name}", kept=kept,
        )  # fmt: skip

    base, *others = map(measure, rows)
    if run is None:
        found = base()
    else:
        found = evaluate_start(run, config, rows[0].model.directory, on, problems, base)
    return [found, *(other() for other in others)]


def _content(
    config: Config, rows: Sequence[Row], problems: Sequence[Problem], found: list[Evaluation]
) -> dict[str, Any]:
    """The JSON of one set of problems: what was evaluated and how, and each row's values."""
    how, seed, checkpoint = config.evaluation, config.seed, rows[0].model.fingerprint
    content: dict[str, Any] = {
        "inputs": evaluation_inputs(config, how, checkpoint, problems, seed=seed),
        "problems": [problem.text for problem in problems],
        "rows": {
            row.name: {
                "source": row.source,
                "weights": weights_digest(row.variables),
                "intervals": each.intervals(how, seed),
                "per_problem": each.as_lists(),
            }
            for row, each in zip(rows, found, strict=True)
        },
    }
    if len(found) == 2:
        before, after = found
        content["gain"] = gains(before, after, how, seed)
    return content


def _show(
    config: Config, rows: Sequence[Row], on: str, content: dict[str, Any], *, as_json: bool
) -> None:
    k = config.evaluation.num_samples
    intervals = [content["rows"][row.name]["intervals"] for row in rows]
    sources = " and ".join(row.source for row in rows)
    print(f"{sources}: {len(content['problems'])} {on} problems")
    if len(rows) == 2:
        base, trained = intervals
        print(gain_table(base, trained, content["gain"], k, title=on))
    else:
        print(evaluation_table(intervals[0], k))
    if as_json:
        means = {name: round(each["mean"], 4) for name, each in intervals[-1].items()}
        print(json.dumps(means))
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
