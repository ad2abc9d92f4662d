# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The phases of one optimizer step, which `train.py` calls in turn.

    sample    problems                  -> Samples: rollouts as tokens and text
    grade     Samples                   -> which final answers are right
    critique  Samples                   -> Critiques: the teacher's context of each rollout
    pack      all of these              -> Batch: arrays on the devices
    score     Batch                     -> the teacher's hidden states
    update    Batch, hidden states      -> the next state

Text ends at `pack`, arrays begin there. No phase changes what an earlier one returned.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import SamplingConfig
from stepalign_jax.critics.oracle import exact_share
from stepalign_jax.critics.protocol import Critic, CriticReply
from stepalign_jax.feedback.contexts import Attempt, Condition, Context, fit_budget
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import Grader
from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.objectives.policy_gradient import group_advantages
from stepalign_jax.objectives.token_weights import WeightInputs, token_weights
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.engine import Engine
from stepalign_jax.sampling.request import (
    Address,
    Purpose,
    SamplingParams,
    make_requests,
    sample_addresses,
)
from stepalign_jax.training import packing, programs
from stepalign_jax.training.packing import MicroBatch, Sequences, pack_prompts
from stepalign_jax.training.programs import Programs, score_teacher
from stepalign_jax.training.state import TrainState


class Samples(NamedTuple):
    """One step's rollouts: B rows, the G of one problem side by side.

    Attributes:
      attempts: [B] problem and completion as text.
      prompts: [B] token ids of the solver's prompt.
      addresses: [B] where the noise of each rollout comes from.
      rollouts: B rows.
    """

    attempts: list[Attempt]
    prompts: list[list[int]]
    addresses: list[Address]
    rollouts: Rollouts


class Critiques(NamedTuple):
    """What the teacher is shown.

    Attributes:
      contexts: [B], each a text or a named failure.
      reply: what the critic said; None where none was asked.
      exact_share: see `critics.oracle.exact_share`; None without a critic.
    """

    contexts: list[Context]
    reply: CriticReply | None
    exact_share: float | None


class Batch(NamedTuple):
    """A step's rollouts on the devices, cut into micro-batches.

    Attributes:
      micro_batches: what the solver reads, longest rows first.
      teacher: what the teacher reads, one per micro-batch; None where no teacher is asked.
      markup: [B, T] which tokens of `layout.index` are markup, see `feedback.markup`; all
        False where neither a token weight nor a teacher is asked.
      targets: [B] the texts that are trained on in place of the rollouts, each a text or a
        named failure; None where the rollouts are.
      solver_tokens: tokens that the solver reads, padding left out.
      teacher_tokens: tokens that the teacher reads.
    """

    micro_batches: list[MicroBatch]
    teacher: list[Sequences] | None
    markup: np.ndarray
    targets: list[Context] | None
    solver_tokens: int
    teacher_tokens: int


def sample(
    engine: Engine,
    solver: dict[str, Any],
    roles: Roles,
    problems: Sequence[Problem],
    config: SamplingConfig,
    *,
    num_samples: int,
    seed: int,
    step: int,
) -> Samples:
    """Samples G = `num_samples` rollouts of each problem with the solver's weights."""
    repeated = [problem for problem in problems for _ in range(num_samples)]
    rendered = [roles.solver(problem) for problem in problems]
    prompts = [prompt for prompt in rendered for _ in range(num_samples)]
    addresses = sample_addresses(
        [problem.id for problem in problems],
        num_samples,
        seed=seed,
        purpose=Purpose.SOLVER,
        step=step,
    )
    requests = make_requests(prompts, addresses, SamplingParams.of(config))
    rollouts = engine.sample(solver, requests, batch_size=config.batch_size)
    attempts = list(map(Attempt, repeated, roles.texts(rollouts)))
    return Samples(attempts, prompts, addresses, rollouts)


def grade(grader: Grader, attempts: Sequence[Attempt], answer_pattern: str) -> np.ndarray:
    """Returns [B] bool: which final answers are right."""
    answers = [extract_answer(attempt.text, answer_pattern) for attempt in attempts]
    return np.array(grader.grade(answers, [a.problem.expected for a in attempts]), bool)


def critique(
    condition: Condition, critic: Critic | None, samples: Samples, roles: Roles
) -> Critiques:
    """Returns the teacher's context of each rollout; asks the critic if the condition does."""
    reply, exact, critiques = None, None, []
    if critic is not None:
        reply = critic.review(samples.attempts, samples.addresses)
        critiques, exact = reply.critiques, exact_share(samples.attempts, reply.critiques)
    if condition.contexts is None:
        return Critiques([Context("", None)] * len(samples.attempts), reply, exact)
    contexts = condition.contexts(samples.attempts, critiques, roles.trace)
    budget = roles.prompts.max_context_tokens
    return Critiques(fit_budget(contexts, roles.count_tokens, budget), reply, exact)


def pack(
    condition: Condition,
    samples: Samples,
    correct: np.ndarray,
    critiques: Critiques,
    roles: Roles,
    *,
    num_samples: int,
    weight_names: Sequence[str],
    num_parts: int,
    stop_id: int,
    mesh: jax.sharding.Mesh,
) -> Batch:
    """Puts rollouts behind the prompts of solver and teacher; failed contexts do not count.

    Where the condition has targets, they stand in the rollouts' place, each with `stop_id`
    behind it, and no teacher reads them.
    """
    rollouts, contexts, targets = samples.rollouts, critiques.contexts, None
    if condition.targets is not None:
        targets = condition.targets(samples.attempts, contexts, correct.tolist())
        rollouts, contexts = _as_completions(targets, samples, roles, stop_id), targets
    lengths = np.asarray(rollouts.lengths)
    usable = np.array([context.failure is None for context in contexts])
    # Encoding every critique again, and reading the text of every token, is worth it only where
    # somebody may look: a weight, or what is logged of a teacher's divergence.
    copied = np.zeros(len(lengths), np.int32)
    markup = np.zeros(rollouts.tokens.shape, bool)
    if weight_names:
        copied = _copied(samples.rollouts, critiques, roles)
    if weight_names or condition.asks_teacher:
        markup = _markup(rollouts, roles)
    inputs = WeightInputs(
        tokens=np.asarray(rollouts.tokens),
        lengths=lengths,
        finished=np.asarray(rollouts.finished),
        correct=correct,
        usable=usable,
        copied=copied,
        markup=markup,
    )
    advantages = group_advantages(jnp.asarray(correct.reshape(-1, num_samples)))
    micro_batches = packing.pack(
        samples.prompts,
        rollouts,
        usable,
        token_weights(weight_names, inputs),
        np.asarray(advantages).reshape(-1),
        num_parts=num_parts,
        mesh=mesh,
    )
    solver_tokens = _num_tokens(samples.prompts, lengths)
    if not condition.asks_teacher:
        return Batch(micro_batches, None, markup, targets, solver_tokens, 0)
    # A context that failed may be longer than any prompt may be, and no token of it counts.
    prompts = [
        roles.teacher(attempt.problem, "" if context.failure else context.text)
        for attempt, context in zip(samples.attempts, contexts, strict=True)
    ]
    teacher = [
        pack_prompts(micro_batch.layout, prompts, rollouts, mesh=mesh)
        for micro_batch in micro_batches
    ]
    teacher_tokens = _num_tokens(prompts, lengths)
    return Batch(micro_batches, teacher, markup, None, solver_tokens, teacher_tokens)


def _markup(rollouts: Rollouts, roles: Roles) -> np.ndarray:
    """[B, T] bool: which tokens are markup; False at padding."""
    found = np.zeros(rollouts.tokens.shape, bool)
    for line, tokens, length in zip(found, rollouts.tokens, rollouts.lengths, strict=True):
        line[:length] = roles.markup(np.asarray(tokens[:length]).tolist())
    return found


def _as_completions(
    targets: Sequence[Context], samples: Samples, roles: Roles, stop_id: int
) -> Rollouts:
    """The targets as if they had been sampled; a failed one is empty.

    A target that is the rollout's own text keeps the rollout's own tokens, its thoughts too.
    """
    sampled = samples.rollouts
    rows, own = [], np.zeros(len(targets), bool)
    for i, (target, attempt) in enumerate(zip(targets, samples.attempts, strict=True)):
        own[i] = not target.failure and target.text == attempt.text
        if own[i]:
            rows.append(np.asarray(sampled.tokens[i, : sampled.lengths[i]]).tolist())
        else:
            rows.append([] if target.failure else [*roles.plain(target.text), stop_id])
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), max(1, lengths.max())), stop_id, np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    finished = np.where(own, np.asarray(sampled.finished), lengths > 0)
    return Rollouts(tokens, np.full(tokens.shape, np.nan, np.float32), lengths, finished)


def _copied(rollouts: Rollouts, critiques: Critiques, roles: Roles) -> np.ndarray:
    """[B] int32: how many of a rollout's first tokens its critique, or its context, repeats."""
    reply = critiques.reply
    texts = [c.text for c in (critiques.contexts if reply is None else reply.critiques)]
    rows = zip(rollouts.tokens, rollouts.lengths, texts, strict=True)
    return np.array(
        [roles.num_copied(row[:n].tolist(), text) for row, n, text in rows], np.int32
    )


def _num_tokens(prompts: Sequence[Sequence[int]], lengths: np.ndarray) -> int:
    return sum(map(len, prompts)) + int(lengths.sum())


def score(
    run: Programs, state: TrainState, base: dict[str, Any], batch: Batch
) -> list[jax.Array] | None:
    """Returns the teacher's hidden states of each micro-batch; None where none is asked."""
    return None if batch.teacher is None else score_teacher(run, state, base, batch.teacher)


def update(
    run: Programs,
    state: TrainState,
    base: dict[str, Any],
    batch: Batch,
    hidden: list[jax.Array] | None,
) -> tuple[TrainState, dict[str, jax.Array], list[LossScores]]:
    """Returns the next state, metrics, and scores by micro-batch. `state` is donated."""
    return programs.update(run, state, base, batch.micro_batches, hidden)
