# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the problems of a run come from: one function per kind of `problems` in the config."""

import functools
from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import ArithmeticProblems, JsonlProblems, ProblemsConfig
from stepalign_jax.problems.arithmetic import arithmetic_problems
from stepalign_jax.problems.jsonl import read_problems
from stepalign_jax.problems.locked import check_locked
from stepalign_jax.problems.problem import Problem

SPLITS = ("train", "validation", "test")


@functools.singledispatch
def draw_problems(config: ProblemsConfig, split: str, num_problems: int) -> list[Problem]:
    """Returns at most `num_problems` problems of one of SPLITS, always the same ones.

    A new source registers a function for a config class of its own (docs/extending.md).
    """
    raise TypeError(f"no source of problems is registered for {type(config).__name__}")


@draw_problems.register
def _(config: ArithmeticProblems, split: str, num_problems: int) -> list[Problem]:
    low, high = config.min_reasoning_steps, config.max_reasoning_steps
    # The generator's own name, which its draws depend on.
    name = "training" if split == "train" else split
    return arithmetic_problems(name, num_problems, low, high)


@draw_problems.register
def _(config: JsonlProblems, split: str, num_problems: int) -> list[Problem]:
    file = Path(config.path) / f"{split}.jsonl"
    if split == "test":
        check_locked(file)
    return read_problems(file)[:num_problems]


def load_problems(config: ProblemsConfig, split: str) -> list[Problem]:
    """Returns as many problems of `split` as the config asks for.

    Raises:
      UserError: there are none, or their file is missing or damaged.
    """
    num_problems = {
        "train": config.num_train,
        "validation": config.num_validation,
        "test": config.num_test,
    }[split]
    problems = draw_problems(config, split, num_problems) if num_problems else []
    if not problems:
        raise UserError(
            f"the {split} set has no problems; give problems.num_{split} a number above 0."
        )
    return problems
