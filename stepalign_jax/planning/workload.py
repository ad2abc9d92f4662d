# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How long a run's prompts and rows get at most, and how many there are: plain numbers.

Lengths are the most that the config admits. A template's tokens are counted by the model's
tokenizer where its files are at hand, else taken as a third of its characters.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stepalign_jax.config.schema import Config, EngineCritic
from stepalign_jax.feedback.contexts import get_condition
from stepalign_jax.feedback.prompts import critic_prompt, solver_prompt, teacher_prompt
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.tokenizer import load_tokenizer
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.planning.sizes import published_config, published_names
from stepalign_jax.problems.problem import Problem
from stepalign_jax.training.packing import padded, padded_width

_CHARACTERS_PER_TOKEN = 3  # of English with formulas: Qwen's tokenizer takes more of them
_CHAT_TOKENS = 16  # what a chat template puts around a text


class Sampling(NamedTuple):
    """Requests that are sampled together.

    Attributes:
      slots: decoded at a time.
      prompt: tokens of the longest prompt.
      new: tokens that each draws at most.
      requests: in all, of an optimizer step or of one evaluation.
    """

    slots: int
    prompt: int
    new: int
    requests: int

    def with_slots(self, slots: int) -> "Sampling":
        """The same requests, served by another number of slots."""
        return self._replace(slots=slots)


class Workload(NamedTuple):
    """What a run asks of the devices.

    Attributes:
      sample: the rollouts of a step.
      evaluate: of the test problems, once.
      critique: of a step; None where no model on these devices is asked.
      rows: of a step.
      parts: micro-batches.
      solver_row: tokens of the longest row that the solver reads.
      teacher_row: of the teacher; 0 where none is asked.
      completion: tokens of a row that count, at most.
      steps: optimizer steps.
      notes: what is estimated and not known.
    """

    sample: Sampling
    evaluate: Sampling
    critique: Sampling | None
    rows: int
    parts: int
    solver_row: int
    teacher_row: int
    completion: int
    steps: int
    notes: tuple[str, ...]


def planned_sizes(path: str, key: str) -> Qwen3Config:
    """Sizes of a checkpoint: of a published one by its name, else from its files.

    Raises:
      UserError: it is not a known one, and its files cannot be had.
    """
    if name := _published(path):
        return published_config(name)
    return read_sizes(resolve_checkpoint(path, key), key)


def _published(path: str) -> str | None:
    """The name of a known checkpoint, whose files are not here and need not be fetched."""
    name = path.rpartition("/")[2]
    return name if name in published_names() and not Path(path).exists() else None


def workload(config: Config) -> Workload:
    """Returns what a run of this config asks for, at most."""
    count, notes = _token_counter(config)
    condition, prompts = get_condition(config.condition), config.prompts
    nothing, new = Problem("", "", "", ""), config.sampling.max_new_tokens
    problem = prompts.max_problem_tokens
    solver = count(solver_prompt(prompts, nothing)) + problem
    teacher = count(teacher_prompt(prompts, nothing, "")) + problem + prompts.max_context_tokens
    rows, filled = config.train.rollouts_per_step, config.train.filled_slots
    critique = None
    if condition.needs_critiques and isinstance(config.critic, EngineCritic):
        critic = config.critic
        template = count(critic_prompt(prompts, nothing, "", critic.sees) or "")
        shown = prompts.max_context_tokens if critic.sees == "reference" else 0
        longest = template + problem + new + shown
        critique = Sampling(filled(critic.batch_size), longest, critic.max_new_tokens, rows)
    how = config.evaluation
    tested = config.problems.num_test * how.num_samples
    return Workload(
        sample=Sampling(filled(config.sampling.batch_size), solver, new, rows),
        evaluate=Sampling(how.batch_size, solver, how.max_new_tokens, tested),
        critique=critique,
        rows=rows,
        parts=config.train.micro_batches,
        solver_row=solver + new,
        teacher_row=teacher + new if condition.asks_teacher else 0,
        completion=new,
        steps=config.train.num_steps,
        notes=notes,
    )


def part_shapes(work: Workload, row: int, shards: int) -> int:
    """In how many shapes a run may meet its micro-batches, about: widths by packed tokens.

    Lengths are drawn as those of answers often are: lognormal, in the median half of the most.
    Prompts come at any length between a quarter and all of the longest.

    Args:
      work: of the run.
      row: tokens of its longest row.
      shards: of the batch.
    """
    draw, shapes = np.random.default_rng(0), set[tuple[int, int]]()
    for _ in range(work.steps):
        lengths = draw.lognormal(math.log(work.completion / 2), 0.5, work.rows)
        lengths = np.ceil(np.minimum(lengths, work.completion)).astype(int)
        ends = lengths + (draw.uniform(0.25, 1, work.rows) * (row - work.completion)).astype(
            int
        )
        for part in np.split(np.argsort(-ends), work.parts):
            tokens = lengths[part].reshape(shards, -1).sum(axis=1)
            shapes.add((padded_width(int(ends[part].max())), padded(int(tokens.max()))))
    return len(shapes)


def _token_counter(config: Config) -> tuple[Callable[[str], int], tuple[str, ...]]:
    """Counts the tokens of a template; and a note where that is a guess."""
    path = config.model.path
    guess = lambda text: -(-len(text) // _CHARACTERS_PER_TOKEN) + _CHAT_TOKENS  # noqa: E731
    note = f"templates are taken as {_CHARACTERS_PER_TOKEN} characters per token"
    if _published(path):
        return guess, (note,)
    tokenizer = load_tokenizer(resolve_checkpoint(path, "model.path"))
    return lambda text: len(tokenizer.encode(text)) + _CHAT_TOKENS, ()
