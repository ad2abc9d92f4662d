# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Before any training: how good is the base in each role, and does a context help it?

    python -m stepalign_jax.probe --config configs/tiny.py
    python -m stepalign_jax.probe --config configs/tiny.py:hard --to probe.json

`evaluation/probe.py` says what is measured.
"""

import dataclasses
from pathlib import Path
from typing import Any

from stepalign_jax.base.files import write_json
from stepalign_jax.base.processes import joined, told_by_first
from stepalign_jax.config.cli import parse_arguments, read_config, run_command
from stepalign_jax.config.hosts import EVALUATION_PATIENCE, HOST_OPTIONS, chosen_hosts
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.evaluate import evaluate, share_interval
from stepalign_jax.evaluation.probe import Asker, probe_critic, probe_teacher
from stepalign_jax.feedback.contexts import get_condition
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.problems.locked import count_opening
from stepalign_jax.problems.sources import SPLITS, load_problems
from stepalign_jax.report.tables import (
    critic_table,
    evaluation_table,
    teacher_heading,
    teacher_row,
)
from stepalign_jax.runs.setup import (
    check_problems,
    make_grader,
    open_run_critic,
    open_solver,
    select_problems,
)
from stepalign_jax.runs.shared import own_files
from stepalign_jax.sampling.kept import is_begun, kept_beside

COMPARED = ("stepalign", "refsol", "no_context", "other_problem")  # and the config's own


def probe(config: Config, split: str, to: Path | None) -> dict[str, Any]:
    """Measures the model that training starts from in each role, and prints what is found.

    Each table, and each row of the teacher's, is printed when it is there.

    Args:
      config: of a run.
      split: which problems.
      to: the JSON file that the result is also written to, or None. With a file, a probe that
        was stopped goes on where it was.

    Returns:
      The result.
    """
    conditions = list(map(get_condition, dict.fromkeys((*COMPARED, config.condition))))
    candidates, how = load_problems(config.problems, split), config.evaluation
    goes_on = is_begun(to)
    with make_grader(config) as grader, kept_beside(to) as kept:
        model, roles = open_solver(config)
        check_problems(config, model, roles, grader, {split: candidates}, teacher=True)
        critic = open_run_critic(
            config, model, grader, (model.weights,), label="probe: critiques", kept=kept
        )
        critic.load()
        model.load()
        with use_mesh(model.mesh):
            problems = select_problems(config, model, roles, grader, candidates, split)
            opened = count_opening(
                config.problems, split, command="probe", of=config.model.path, goes_on=goes_on
            )
            print(f"{len(problems)} of {len(candidates)} {split} problems\n{opened}")
            solver = evaluate(
                model.engine,
                model.variables(),
                roles,
                grader,
                problems,
                how,
                seed=config.seed,
                label="probe: solver",
                kept=kept,
            ).intervals(how, config.seed)
            _show(evaluation_table(solver, how.num_samples, title="solver"))
            asker = Asker(model, roles, config.seed, 0, kept)
            found = probe_critic(asker, critic, problems, config.sampling)
            exact = share_interval(found.exact, how, config.seed)
            exact_on_wrong = share_interval(found.exact[found.wrong], how, config.seed)
            _show(critic_table(found.as_json(), exact, exact_on_wrong))
            teacher: dict[str, float | None] = {}
            _show(teacher_heading(), end="")
            for name, right in probe_teacher(
                asker, grader, found.attempts, found.critiques, conditions, how
            ):
                interval = share_interval(right, how, config.seed)
                teacher[name] = None if interval is None else interval["mean"]
                _show(teacher_row(name, interval), end="")
        result = {
            "split": split,
            "candidates": len(candidates),
            "problems": len(problems),
            "problem_set": dataclasses.asdict(config.problems),
            "sampling": dataclasses.asdict(how),
            "solver": solver,
            "critic": found.as_json(),
            "teacher_accuracy": teacher,
        }
        if to is not None:
            write_json(to, result)
    return result


def _show(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def main(argv: list[str]) -> None:
    """Probes, and prints what was found."""
    arguments = parse_arguments(
        argv,
        description="Measures the base model in each of its roles, before any training.",
        example="python -m stepalign_jax.probe --config configs/tiny.py",
        options={
            "--split": {"default": "test", "choices": SPLITS, "help": "default: test"},
            "--to": {"metavar": "FILE", "help": "also write everything to this JSON file"},
            **HOST_OPTIONS,
        },
        sections=(
            *("seed", "runs_dir", "condition", "model", "trainable", "problems", "prompts"),
            *("sampling", "critic", "critiques", "evaluation", "parallel"),
        ),
    )
    with joined(chosen_hosts(arguments), EVALUATION_PATIENCE):
        config = told_by_first(lambda: read_config(arguments))
        result = Path(arguments.to) if arguments.to else None
        with own_files(config, result=result) as (own, _, to):
            probe(own, arguments.split, to)
        print("Shares in percent, [intervals] over problems.")
        if arguments.to:
            print(f"written: {arguments.to}")


if __name__ == "__main__":
    run_command(main)
