# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How often the solver succeeds from before and from after each reasoning step, by sampling.

A prefix of a rollout is what stands before a reasoning step, or after the last one. K reasoning
steps have K + 1 of them, since what is after one is before the next:

    rollout    Step 1: 3*8=24\\n | Step 2: 47+24=61\\n | Answer: 61
    prefixes   0                 1                    2
    change     of Step 1: success(1) - success(0);   of Step 2: success(2) - success(1)

Equal prefixes of one problem are sampled once: all its rollouts share the empty one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from stepalign_jax.analysis.scored import UNREADABLE, ScoredRollouts
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import atomic_file
from stepalign_jax.base.hashing import digest, stable_hash32
from stepalign_jax.base.progress import counting
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import Grader
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.huggingface.tokenizer import decode
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.kept import Kept, kept_beside, weights_digest
from stepalign_jax.sampling.request import Address, Purpose, Request, SamplingParams


class Prefix(NamedTuple):
    """The first `length` tokens of a rollout, the first of those that begin with them."""

    rollout: int
    length: int


@dataclasses.dataclass(frozen=True)
class Continuations:
    """What came of n continuations from each of P prefixes, for M reasoning steps.

    Attributes:
      key: of all that decides the outcomes; see `continuations_key`.
      rollout: [M] the rollout of each reasoning step.
      reasoning_step: [M] its index in the rollout.
      before: [M] the prefix that ends where the reasoning step begins.
      after: [M] the prefix behind it.
      prefix_rollout: [P] see `Prefix`.
      prefix_length: [P] see `Prefix`.
      right: [P, n] whether the final answer of each continuation is right.
    """

    key: str
    rollout: Int[np.ndarray, " M"]
    reasoning_step: Int[np.ndarray, " M"]
    before: Int[np.ndarray, " M"]
    after: Int[np.ndarray, " M"]
    prefix_rollout: Int[np.ndarray, " P"]
    prefix_length: Int[np.ndarray, " P"]
    right: Bool[np.ndarray, "P n"]

    def save(self, path: Path) -> None:
        """Writes one .npz file, whole or not at all."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        with atomic_file(path) as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Continuations":
        """Reads what `save` wrote, to the same bits.

        Raises:
          UserError: the file is missing, damaged, or holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return cls(key=str(arrays.pop("key")), **arrays)
        except UNREADABLE as error:
            raise UserError(
                f"cannot read the continuations in {path} ({error}): delete the file, and they "
                "are sampled again."
            ) from error


def find_prefixes(
    scored: ScoredRollouts,
) -> tuple[list[Prefix], np.ndarray, np.ndarray, np.ndarray]:
    """Returns the prefixes to sample from, and for each reasoning step where it lies.

    A reasoning step without a token of its own is left out.

    Returns:
      Prefixes [P]; steps [M, 2] (rollout, index); prefixes before [M] and after [M].
    """
    numbers: dict[tuple[str, bytes], int] = {}
    prefixes: list[Prefix] = []
    steps, before, after = [], [], []

    def number(rollout: int, length: int) -> int:
        start = int(scored.offsets[rollout])
        written = scored.tokens[start : start + length].tobytes()
        key = (scored.rows[rollout]["problem"], written)
        if key not in numbers:
            numbers[key] = len(prefixes)
            prefixes.append(Prefix(rollout, length))
        return numbers[key]

    for rollout in range(len(scored.rows)):
        inside = scored.reasoning_step[scored.of(rollout)]
        found, starts = np.unique(inside, return_index=True)
        found, starts = found[found >= 0], starts[found >= 0]
        if not found.size:
            continue
        # Openings, and one past the last token of the last reasoning step.
        cuts = [*starts.tolist(), int(np.flatnonzero(inside == found[-1])[-1]) + 1]
        places = [number(rollout, cut) for cut in cuts]
        steps += [(rollout, int(index)) for index in found]
        before += places[:-1]
        after += places[1:]
    return (
        prefixes,
        np.array(steps, int).reshape(-1, 2),
        np.array(before, int),
        np.array(after, int),
    )


class Sampler(NamedTuple):
    """The solver, and how its continuations are drawn and judged.

    Attributes:
      model: its engine samples.
      variables: the solver's weights.
      roles: prompts and tokenizer.
      grader: judges answers.
      params: how rollouts are drawn; prefix and continuation together have `max_new_tokens`.
      num: continuations of each prefix.
      seed: of their noise.
      batch_size: decoded together.
    """

    model: LanguageModel
    variables: dict[str, Any]
    roles: Roles
    grader: Grader
    params: SamplingParams
    num: int
    seed: int
    batch_size: int


def sample_continuations(
    sampler: Sampler, scored: ScoredRollouts, problems: Sequence[Problem], path: Path
) -> Continuations:
    """Samples from every prefix, grades, and writes the outcomes to `path`.

    Outcomes that are there already are read, if they are of the same weights, rollouts and
    settings; a call that was stopped goes on where it was.

    Args:
      sampler: the solver.
      scored: the rollouts.
      problems: [R] of each rollout.
      path: the .npz file.
    """
    key = continuations_key(sampler, scored)
    if path.exists() and (known := Continuations.load(path)).key == key:
        return known
    prefixes, steps, before, after = find_prefixes(scored)
    heads = [scored.tokens[scored.of(r)][:length].tolist() for r, length in prefixes]
    asked = [problems[prefix.rollout] for prefix in prefixes]
    with kept_beside(path) as kept:
        written = _sample(sampler, asked, heads, kept)
        right = _grade(sampler, asked, written)
        where = np.array(prefixes, int).reshape(-1, 2)
        found = Continuations(
            key=key,
            rollout=steps[:, 0],
            reasoning_step=steps[:, 1],
            before=before,
            after=after,
            prefix_rollout=where[:, 0],
            prefix_length=where[:, 1],
            right=right,
        )
        found.save(path)
    return found


def continuations_key(sampler: Sampler, scored: ScoredRollouts) -> str:
    """Returns a digest: equal keys mean equal continuations of the same reasoning steps."""
    arrays = (scored.offsets, scored.tokens, scored.reasoning_step)
    hashed = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    problems = [row["problem"] for row in scored.rows]
    weights = weights_digest(sampler.variables)
    prompts = dataclasses.asdict(sampler.roles.prompts)
    return digest(weights, prompts, sampler.params, sampler.num, sampler.seed, problems, hashed)


def _sample(
    sampler: Sampler,
    problems: Sequence[Problem],
    heads: Sequence[list[int]],
    kept: Kept | None,
) -> list[list[list[int]]]:
    """Returns [P][n] whole completions, each a prefix and what follows it.

    Nothing follows a prefix that fills `max_new_tokens` or ends in a stop token.
    """
    requests = {
        place: _requests(sampler, problem, head)
        for place, (problem, head) in enumerate(zip(problems, heads, strict=True))
        if len(head) < sampler.params.max_new_tokens
        and (not head or head[-1] not in sampler.model.stop_ids)
    }
    flat = [request for each in requests.values() for request in each]
    with counting(len(flat), "truth: continuations") as count:
        rollouts = sampler.model.engine.sample(
            sampler.variables,
            flat,
            batch_size=sampler.batch_size,
            progress=count,
            kept=kept,
        )
    tails = [
        np.asarray(row[:length]).tolist()
        for row, length in zip(rollouts.tokens, rollouts.lengths, strict=True)
    ]
    first = dict(zip(requests, range(0, len(flat), sampler.num), strict=True))
    return [
        [head + tail for tail in tails[first[place] : first[place] + sampler.num]]
        if place in first
        else [head] * sampler.num
        for place, head in enumerate(heads)
    ]


def _requests(sampler: Sampler, problem: Problem, head: list[int]) -> list[Request]:
    """The requests of one prefix.

    Their noise has an address of its own for each prefix, so that what comes before a
    reasoning step and what comes after it are independent.
    """
    place = stable_hash32(json.dumps([problem.text, head]))
    prompt = sampler.roles.solver(problem) + head
    room = sampler.params.max_new_tokens - len(head)
    return [
        Request(
            prompt,
            Address(sampler.seed, Purpose.CONTINUATION, 0, place, sample, retry=0),
            sampler.params._replace(max_new_tokens=room),
        )
        for sample in range(sampler.num)
    ]


def _grade(
    sampler: Sampler, problems: Sequence[Problem], written: Sequence[Sequence[list[int]]]
) -> np.ndarray:
    """[P, n] bool: whether the final answer of each completion is right."""
    roles = sampler.roles
    answers = [
        extract_answer(decode(roles.tokenizer, tokens), roles.prompts.answer_pattern)
        for each in written
        for tokens in each
    ]
    golds = [problem.expected for problem in problems for _ in range(sampler.num)]
    return np.array(sampler.grader.grade(answers, golds), bool).reshape(-1, sampler.num)
