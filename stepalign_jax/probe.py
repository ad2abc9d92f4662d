# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Before any training: how good is the base in each role, and does a context help it?

    python -m stepalign_jax.probe --config configs/tiny.py
    python -m stepalign_jax.probe --config configs/tiny.py:hard --to probe.json

The solver is evaluated; the critic is asked about the solver's own samples; the teacher
answers freely (temperature as in evaluation) under each context. A condition whose context
does not make the teacher more accurate than the solver has nothing to distil.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import write_json
from stepalign_jax.config.cli import parse_arguments, run_command
from stepalign_jax.config.load import load_config
from stepalign_jax.config.schema import Config, EngineCritic
from stepalign_jax.critics.engine_critic import ask_model, exact_share, oracle_critique
from stepalign_jax.evaluation.difficulty import select_problems
from stepalign_jax.evaluation.evaluate import evaluate_visibly
from stepalign_jax.feedback.conditions import CONDITIONS, build_contexts
from stepalign_jax.feedback.critique import Critique, count_failures
from stepalign_jax.feedback.roles import addresses
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import Grader
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.second_model import take_turn
from stepalign_jax.runs.setup import (
    SPLITS,
    Workbench,
    assemble_with_critic,
    make_grader,
    problem_set,
)
from stepalign_jax.sampling.engine import Purpose


def probe_critic(
    config: Config, bench: Workbench, grader: Grader, problems: list[Problem]
) -> tuple[list[Critique], dict[str, Any]]:
    """Returns the critiques of one sample per problem, and how good they are.

    Wrong attempts are those with a wrong reasoning step; None where problems cannot tell.
    """
    if not isinstance(config.critic, EngineCritic):
        raise UserError("critic.kind=oracle has no model to probe; use --critic=self")
    at = addresses(problems, 1, 0)
    rollouts = bench.engine.sample(
        bench.initial_solver(),
        [bench.roles.solver(problem) for problem in problems],
        at,
        seed=config.seed,
        purpose=Purpose.SOLVER,
        settings=config.sampling,
    )
    attempts = bench.roles.texts(rollouts)
    ask = functools.partial(
        ask_model,
        bench.critic,
        config.critic,
        problems,
        attempts,
        addresses=at,
        seed=config.seed,
        grade=grader.grade,
    )
    (critiques, lengths, _), _ = take_turn(bench.critic, bench.frozen, {}, ask)
    oracles = [oracle_critique(p, a) for p, a in zip(problems, attempts, strict=True)]
    exact = [
        critique.failure is None and critique.text == oracle
        for critique, oracle in zip(critiques, oracles, strict=True)
        if oracle is not None
    ]
    wrong = [o is not None and o != a for o, a in zip(oracles, attempts, strict=True)]
    return critiques, {
        "attempts": len(attempts),
        "wrong_attempts": sum(wrong),
        "exact_on_wrong": exact_share(problems, attempts, critiques),
        "exact": float(np.mean(exact)) if exact else None,
        "mean_tokens": float(lengths.mean()) if lengths.size else None,
        "failed": {name: n for name, n in count_failures(critiques).items() if n},
    }


def probe_teacher(
    config: Config,
    bench: Workbench,
    grader: Grader,
    problems: list[Problem],
    critiques: list[Critique],
) -> dict[str, float | None]:
    """Returns the accuracy of the teacher's own free answer under each condition's context."""
    found: dict[str, float | None] = {}
    for condition in CONDITIONS.values():
        if condition.objective != "divergence":
            continue
        contexts = build_contexts(condition, problems, critiques)
        pairs = [(p, c) for p, c in zip(problems, contexts, strict=True) if c.failure is None]
        if not pairs:
            found[condition.name] = None
            continue
        asked = [problem for problem, _ in pairs]
        rollouts = bench.engine.sample(
            bench.initial_solver(),
            [bench.roles.teacher(problem, context.text) for problem, context in pairs],
            addresses(asked, 1, 0),
            seed=config.seed,
            purpose=Purpose.EVALUATION,
            settings=config.evaluation,
        )
        pattern = config.prompts.answer_pattern
        answers = [extract_answer(text, pattern) for text in bench.roles.texts(rollouts)]
        grades = grader.grade(answers, [problem.answer for problem in asked])
        found[condition.name] = float(np.mean(grades))
    return found


def probe(config: Config, split: str) -> dict[str, Any]:
    """Returns the role metrics of the model that training starts from, on one split."""
    candidates = problem_set(config.problems, split)
    bench = assemble_with_critic(config)
    bench.roles.check_problems(candidates)
    with (
        use_mesh(bench.mesh),
        make_grader(config) as grader,
    ):
        problems = select_problems(config, bench, grader, candidates, split)
        solver = evaluate_visibly(
            bench,
            bench.initial_solver(),
            grader,
            problems,
            config.evaluation,
            seed=config.seed,
            description="probe the solver",
        )
        critiques, critic = probe_critic(config, bench, grader, problems)
        teacher = probe_teacher(config, bench, grader, problems, critiques)
    return {
        "split": split,
        "candidates": len(candidates),
        "problems": len(problems),
        "reasoning_steps": [
            getattr(config.problems, "min_reasoning_steps", None),
            getattr(config.problems, "max_reasoning_steps", None),
        ],
        "sampling": dataclasses.asdict(config.evaluation),
        "solver": solver.intervals(config.evaluation, config.seed),
        "critic": critic,
        "teacher_accuracy": teacher,
    }


def main(argv: list[str]) -> None:
    """Probes, and prints what was found."""
    arguments = parse_arguments(
        argv,
        description="Measures the base model in each of its roles, before any training.",
        example="python -m stepalign_jax.probe --config configs/tiny.py",
        sections=(
            *("runs_dir", "seed", "model", "trainable", "problems", "prompts", "sampling"),
            *("critic", "evaluation", "parallel"),
        ),
        options={
            "--split": {"default": "test", "choices": SPLITS, "help": "default: test"},
            "--to": {"metavar": "FILE", "help": "also write everything to this JSON file"},
        },
    )
    config = load_config(arguments.config, arguments.overrides)
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
