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
from stepalign_jax.config.cli import parse_arguments, read_config, run_command
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.evaluate import evaluate
from stepalign_jax.evaluation.probe import Asker, probe_critic, probe_teacher
from stepalign_jax.feedback.contexts import get_condition
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.problems.sources import SPLITS, load_problems
from stepalign_jax.runs.setup import (
    check_lengths,
    make_grader,
    name_missing_problems,
    name_unparsable_golds,
    open_run_critic,
    open_solver,
    select_problems,
)

COMPARED = ("stepalign", "refsol", "no_context", "other_problem")  # and the config's own


def probe(config: Config, split: str) -> dict[str, Any]:
    """Returns the role metrics of the model that training starts from, on one split."""
    conditions = list(map(get_condition, dict.fromkeys((*COMPARED, config.condition))))
    candidates = load_problems(config.problems, split)
    with make_grader(config) as grader:
        model, roles = open_solver(config)
        name_missing_problems(config, {split: candidates})
        check_lengths(config, model, roles, {split: candidates}, teacher=True)
        name_unparsable_golds(grader, candidates)
        critic = open_run_critic(config, model, grader, (model.weights,))
        critic.load()
        model.load()
        with use_mesh(model.mesh):
            problems = select_problems(config, model, roles, grader, candidates, split)
            solver = evaluate(
                model.engine,
                model.variables(),
                roles,
                grader,
                problems,
                config.evaluation,
                seed=config.seed,
                label="probe the solver",
            )
            asker = Asker(model, roles, config.seed)
            attempts, critiques, found = probe_critic(asker, critic, problems, config.sampling)
            teacher = probe_teacher(
                asker, grader, attempts, critiques, conditions, config.evaluation
            )
    return {
        "split": split,
        "candidates": len(candidates),
        "problems": len(problems),
        "problem_set": dataclasses.asdict(config.problems),
        "sampling": dataclasses.asdict(config.evaluation),
        "solver": solver.intervals(config.evaluation, config.seed),
        "critic": found,
        "teacher_accuracy": teacher,
    }


def main(argv: list[str]) -> None:
    """Probes, and prints what was found."""
    arguments = parse_arguments(
        argv,
        description="Measures the base model in each of its roles, before any training.",
        example="python -m stepalign_jax.probe --config configs/tiny.py",
        options={
            "--split": {"default": "test", "choices": SPLITS, "help": "default: test"},
            "--to": {"metavar": "FILE", "help": "also write everything to this JSON file"},
        },
        sections=(
            *("seed", "runs_dir", "condition", "model", "trainable", "problems", "prompts"),
            *("sampling", "critic", "evaluation", "parallel"),
        ),
    )
    config = read_config(arguments)
    found = probe(config, arguments.split)
    print(f"{found['problems']} of {found['candidates']} {found['split']} problems")
    for name in ("avg_at_k", "pass_at_k", "maj_at_k", "greedy", "unparsed"):
        interval = found["solver"][name]
        print(
            f"  solver {name:<10} {interval['mean']:.3f} "
            f"[{interval['low']:.3f}, {interval['high']:.3f}]"
        )
    for name, value in found["critic"].items():
        print(f"  critic {name:<15} {value}")
    for name, value in found["teacher_accuracy"].items():
        print(f"  teacher, context of {name:<14} {value}")
    if arguments.to:
        write_json(Path(arguments.to), found)
        print(f"written: {arguments.to}")


if __name__ == "__main__":
    run_command(main)
