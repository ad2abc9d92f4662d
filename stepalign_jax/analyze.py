# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The advantage of every token of some rollouts, under several contexts on the same tokens.

    python -m stepalign_jax.analyze --run runs/tiny-stepalign
    python -m stepalign_jax.analyze --run runs/tiny-stepalign --step 20 --rollouts 0-9
    python -m stepalign_jax.analyze --config tiny --to analysis/tiny
    python -m stepalign_jax.analyze --model Qwen/Qwen3-0.6B --config small --to analysis/base
    python -m stepalign_jax.analyze --config tiny --to analysis/tiny --truth

Rollouts are sampled afresh by the checkpoint (--split), or are those that training stored
(--rollouts). docs/analysis.md says what each number means.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stepalign_jax.analysis.chosen import sample_rollouts, stored_rollouts
from stepalign_jax.analysis.continuations import Continuations, Sampler
from stepalign_jax.analysis.results import (
    RESULT_FILE,
    Analyst,
    Material,
    analysis_inputs,
    finished,
    gather,
    make_analysis,
)
from stepalign_jax.analysis.score import make_analysis_programs, scored_conditions
from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.analysis.truth import (
    CONTINUATIONS_FILE,
    TRUTH_FILE,
    Resampling,
    make_truth,
)
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import atomic_file, read_json_object
from stepalign_jax.base.names import nearest
from stepalign_jax.base.progress import say
from stepalign_jax.config.cli import MODEL_CONFIG, parse_arguments, read_config, run_command
from stepalign_jax.config.schema import Config
from stepalign_jax.exporting.trained import Trained, choose_step, load_teacher, load_trained
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.problems.locked import count_opening
from stepalign_jax.problems.problem import Problem
from stepalign_jax.problems.sources import SPLITS, load_problems
from stepalign_jax.report.analysis_figures import draw_analysis, draw_plates, examples
from stepalign_jax.report.localisation import localisation_markdown, localisation_tables
from stepalign_jax.report.truth import truth_markdown, truth_plate, truth_tables
from stepalign_jax.runs.directory import RunDirectory, differing_keys
from stepalign_jax.runs.setup import (
    check_problems,
    make_grader,
    open_run_critic,
    open_solver,
    select_problems,
)
from stepalign_jax.runs.stopwatch import Stopwatch
from stepalign_jax.sampling.kept import is_begun, kept_beside, weights_digest
from stepalign_jax.sampling.request import SamplingParams

SECTIONS = (
    *("seed", "runs_dir", "condition", "model", "trainable", "problems", "prompts"),
    *("sampling", "critic", "critiques", "objective", "teacher", "evaluation", "analysis"),
    "parallel",
)
DROP = 0.25  # two standard errors of a change at 32 continuations, see `analysis.truth`

_OPTIONS: dict[str, dict[str, Any]] = {
    "--run": {"metavar": "DIR", "help": "analyse a checkpoint of this run"},
    "--model": {
        "metavar": "PATH",
        "help": "analyse a Hugging Face directory or hub id, with the prompts of --config "
        f"(without one: {MODEL_CONFIG})",
    },
    "--step": {"type": int, "metavar": "N", "help": "which checkpoint; default: the newest"},
    "--split": {"choices": SPLITS, "help": "whose problems are answered; default: validation"},
    "--rollouts": {
        "metavar": "STEPS",
        "help": "instead: rollouts that these steps of training stored, such as 0,20-29",
    },
    "--draw": {
        "metavar": "IDS",
        "help": "rollouts to draw, such as validation/3/0,validation/4/0; default: one with an "
        "error and one without",
    },
    "--truth": {
        "type": int,
        "nargs": "?",
        "const": 32,
        "metavar": "N",
        "help": "also sample N continuations (default: 32) before and after each reasoning "
        "step, and compare the real change in the chance of success with the advantage",
    },
    "--drop": {
        "type": float,
        "metavar": "SHARE",
        "help": "with --truth: a reasoning step that lowers the chance by this much or more "
        f"counts as harmful (default: {DROP:g})",
    },
    "--label": {"metavar": "NAME", "help": "name of the directory in runs/NAME/analysis"},
    "--to": {"metavar": "DIR", "help": "write there instead of into the run"},
}


class Asked(NamedTuple):
    """What the arguments ask for.

    Attributes:
      run: whose checkpoint; None for a model by itself.
      step: of the checkpoint, optimizer steps done; 0 for a model by itself.
      split: whose problems are answered afresh; "train" for stored rollouts.
      stored: the steps of training whose rollouts are read; () for fresh ones.
      directory: where the analysis is written.
      truth: continuations of each prefix; None for no comparison with the real change.
      drop: see `analysis.truth`.
    """

    run: RunDirectory | None
    step: int
    split: str
    stored: tuple[int, ...]
    directory: Path
    truth: int | None
    drop: float

    @property
    def source(self) -> str:
        """Which rollouts, in words."""
        if self.stored:
            return f"rollouts of steps {_ranges(self.stored)} of training"
        return f"fresh rollouts of {self.split} problems"


def analyze(config: Config, asked: Asked) -> tuple[ScoredRollouts, dict[str, Any]]:
    """Returns scores and numbers, which are in `asked.directory` then.

    Raises:
      UserError: something is missing, or does not fit.
    """
    conditions = scored_conditions(config.analysis.contexts)
    candidates, result = (
        load_problems(config.problems, asked.split),
        asked.directory / RESULT_FILE,
    )
    model, roles = open_solver(config)
    with use_mesh(model.mesh), make_grader(config) as grader, kept_beside(result) as kept:
        check_problems(
            config, model, roles, grader, {asked.split: candidates},
            trained=(asked.split,), teacher=True,
        )  # fmt: skip
        critic = None
        if any(condition.needs_critiques for condition in conditions):
            critic = open_run_critic(
                config, model, grader, (model.weights,), label="analyze: critiques", kept=kept,
                run=RunDirectory(asked.directory),  # the store of what a server is paid for
            )  # fmt: skip
            critic.load()
        model.load()
        problems = candidates
        if not asked.stored:
            problems = select_problems(config, model, roles, grader, candidates, asked.split)
        solver, teacher = model.variables(), model.variables()
        if asked.run is not None:
            trained = Trained(asked.run, config, model, asked.step)
            solver = solver | load_trained(trained)
            teacher = load_teacher(trained, solver)
        programs = make_analysis_programs(model, token_tile=config.objective.token_tile)
        analyst = Analyst(config, model, roles, grader, critic, conditions, programs)
        weights = [weights_digest(solver), weights_digest(teacher)]
        inputs = analysis_inputs(config, problems, asked.source, weights)
        if not finished(asked.directory, inputs) and not asked.stored:
            _count_opening(config, asked, result)

        def choose(watch: Stopwatch) -> Material:
            if asked.run is not None and asked.stored:
                chosen = stored_rollouts(config, asked.run, problems, asked.stored)
                return gather(analyst, chosen, watch)
            with watch.phase("sample"):
                chosen = sample_rollouts(
                    config, model, solver, roles, grader, problems, asked.split, kept=kept
                )
            return gather(analyst, chosen, watch)

        of = config.model.path if asked.run is None else f"{asked.run.path}, step {asked.step}"
        facts = {"of": of, "step": asked.step, "source": asked.source, "inputs": inputs}
        made = make_analysis(asked.directory, analyst, solver, teacher, choose, facts)
        if asked.truth is not None:
            _measure_truth(analyst, asked, solver, made[0], problems)
        return made


def _measure_truth(
    analyst: Analyst,
    asked: Asked,
    solver: dict[str, Any],
    scored: ScoredRollouts,
    problems: Sequence[Problem],
) -> None:
    """Writes truth.json, and what was sampled for it."""
    config, how = analyst.config, analyst.config.evaluation
    sampler = Sampler(
        model=analyst.model,
        variables=solver,
        roles=analyst.roles,
        grader=analyst.grader,
        params=SamplingParams.of(config.sampling),
        num=asked.truth or 0,
        seed=config.seed,
        batch_size=how.batch_size,
    )
    resampling = Resampling(how.num_resamples, how.confidence, config.seed)
    make_truth(asked.directory, sampler, scored, problems, drop=asked.drop, how=resampling)


def _count_opening(config: Config, asked: Asked, result: Path) -> None:
    of = config.model.path if asked.run is None else str(asked.run.path)
    goes_on = is_begun(result)
    if words := count_opening(
        config.problems, asked.split, command="analyze", of=of, goes_on=goes_on
    ):
        say(words, to=sys.stderr)


def _ask(arguments: argparse.Namespace, config: Config) -> Asked:
    """What the arguments ask for, checked."""
    if arguments.run and arguments.model:
        raise UserError("--run and --model: a run has its own model, so leave one of them out")
    if not arguments.run and (arguments.rollouts or arguments.step is not None):
        raise UserError("--rollouts and --step are of a run: name it with --run")
    if arguments.rollouts and arguments.split:
        raise UserError("--split is of fresh rollouts: leave it out with --rollouts")
    if not arguments.run and not arguments.to:
        raise UserError("--to is missing: name the directory that the analysis is written to")
    if arguments.label and arguments.to:
        raise UserError("--label names a directory in the run: leave it out with --to")
    run, step, stored = None, 0, ()
    if arguments.run:
        run = RunDirectory(Path(arguments.run))
        step = choose_step(run, arguments.step, None)
        stored = _steps(arguments.rollouts) if arguments.rollouts else ()
        if changed := differing_keys(run, config, set(SECTIONS) - {"analysis"}):
            say(f"warning: not as in the run: {', '.join(changed)}", to=sys.stderr)
    split = "train" if stored else arguments.split or "validation"
    first = f"rollouts_{_ranges(stored)}" if stored else split
    label = arguments.label or f"{first}_step_{step:05d}"
    if run is not None and re.fullmatch(r"[\w.,-]*\w[\w.,-]*", label) is None:
        raise UserError(f"--label is {label!r}, but it must be the name of one directory")
    directory = Path(arguments.to) if arguments.to or run is None else run.analysis / label
    if arguments.drop is not None and arguments.truth is None:
        raise UserError("--drop goes with --truth")
    drop = DROP if arguments.drop is None else arguments.drop
    if not 0 < drop <= 1:
        raise UserError(f"--drop is {drop:g}, but it is a share above 0 and at most 1")
    if arguments.truth is not None and arguments.truth < 2:
        raise UserError(f"--truth is {arguments.truth}, but a chance takes 2 or more")
    return Asked(run, step, split, stored, directory, arguments.truth, drop)


def _steps(text: str) -> tuple[int, ...]:
    """0,20-22 -> (0, 20, 21, 22)"""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--rollouts is {text!r}, but it takes steps such as 0,20-29")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(dict.fromkeys(found))


def _ranges(steps: tuple[int, ...]) -> str:
    """(0, 20, 21, 22) -> 0,20-22"""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][-1] + 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)


def main(argv: list[str]) -> None:
    """Analyses, and prints where the advantage falls."""
    arguments = parse_arguments(
        argv,
        description="Scores rollouts token by token under several contexts.",
        example="python -m stepalign_jax.analyze --run runs/tiny-stepalign --step 20",
        options=_OPTIONS,
        sections=SECTIONS,
        config="optional",
    )
    config = read_config(arguments)
    asked = _ask(arguments, config)
    scored, found = analyze(config, asked)
    print(localisation_tables(found))
    with atomic_file(asked.directory / "tables.md") as file:
        file.write(localisation_markdown(found).encode())
    drawn = _rollouts_to_draw(arguments.draw, scored)
    for path in draw_analysis(asked.directory, scored, found, drawn):
        print(f"written: {path}")
    if asked.truth is not None:
        _show_truth(asked.directory, scored)
    print(f"written: {asked.directory}")


def _show_truth(directory: Path, scored: ScoredRollouts) -> None:
    truth = read_json_object(directory / TRUTH_FILE)
    continuations = Continuations.load(directory / CONTINUATIONS_FILE)
    print(truth_tables(truth))
    with atomic_file(directory / "truth.md") as file:
        file.write(truth_markdown(truth).encode())
    for path in draw_plates(directory, [truth_plate(scored, continuations, truth)]):
        print(f"written: {path}")


def _rollouts_to_draw(ids: str | None, scored: ScoredRollouts) -> list[int]:
    """The places of the rollouts that are named, or of examples."""
    if ids is None:
        return examples(scored)
    places = {row["id"]: place for place, row in enumerate(scored.rows)}
    for name in (names := [name.strip() for name in ids.split(",")]):
        if name not in places:
            raise UserError(
                f"--draw names {name!r}, which is no rollout of this analysis; the nearest is "
                f"{nearest(name, places)!r}"
            )
    return [places[name] for name in names]


if __name__ == "__main__":
    run_command(main)
