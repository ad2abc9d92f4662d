# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What solver and teacher say of every token of chosen rollouts, under each context.

Rollouts have different lengths, so tokens of all of them stand end to end, N in all; those of
rollout r are `offsets[r]:offsets[r + 1]`. Two rollouts of 3 and 2 tokens under C = 2 contexts:

    offsets         0 3 5
    tokens          a b c | d e          [N]
    solver_logprobs . . . | . .          [N]
    teacher_logprobs  under context 0    [C, N]
                      under context 1

On disk they are a directory: tokens.npz (every array, bit for bit) and rollouts.jsonl (texts).
"""

import dataclasses
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import atomic_file, read_jsonl, write_jsonl

TOP = 5  # entries of each side that are kept beside the sampled token
NO_ERROR, UNKNOWN = -1, -2  # of `first_error`
# What NumPy raises for a file that is cut, changed, or no .npz.
UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataclasses.dataclass(frozen=True)
class ScoredRollouts:
    """Scores of R rollouts, N tokens, under C contexts. Log-probabilities are at temperature 1.

    Attributes:
      contexts: [C] names of conditions, such as `stepalign`.
      rows: [R] {"id": str, "problem": str, "answer": str, "rollout": str, "step": int or None
        (of training), "reference": str or None, "contexts": [C] str, "failures": [C] str or
        None, "steps": [[start, end], ...] reasoning steps in characters of the rollout}.
      offsets: [R + 1].
      tokens: what was sampled.
      ends: one past the last character of its rollout's text that each token writes.
      reasoning_step: index of the reasoning step that a token stands in; -1 outside of any.
      markup: see `feedback.markup`.
      correct: [R] whether the final answer is right.
      first_error: [R] index of the first wrong reasoning step; -1: there is none; -2: unknown.
      usable: [C, R] whether the context did not fail; scores of others are 0 and do not count.
      solver_logprobs: of the sampled tokens.
      teacher_logprobs: of the sampled tokens.
      kl: KL(teacher||solver) over the vocabulary, in nats.
      solver_entropy: in nats.
      teacher_entropy: in nats.
      solver_top_ids: the likeliest tokens, likeliest first.
      solver_top_logprobs: theirs.
      teacher_top_ids: the teacher's likeliest.
      teacher_top_logprobs: theirs.
    """

    contexts: list[str]
    rows: list[dict[str, Any]]
    offsets: Int64[np.ndarray, " R1"]
    tokens: Int32[np.ndarray, " N"]
    ends: Int32[np.ndarray, " N"]
    reasoning_step: Int32[np.ndarray, " N"]
    markup: Bool[np.ndarray, " N"]
    correct: Bool[np.ndarray, " R"]
    first_error: Int32[np.ndarray, " R"]
    usable: Bool[np.ndarray, "C R"]
    solver_logprobs: Float32[np.ndarray, " N"]
    teacher_logprobs: Float32[np.ndarray, "C N"]
    kl: Float32[np.ndarray, "C N"]
    solver_entropy: Float32[np.ndarray, " N"]
    teacher_entropy: Float32[np.ndarray, "C N"]
    solver_top_ids: Int32[np.ndarray, "N K"]
    solver_top_logprobs: Float32[np.ndarray, "N K"]
    teacher_top_ids: Int32[np.ndarray, "C N K"]
    teacher_top_logprobs: Float32[np.ndarray, "C N K"]

    @property
    def advantage(self) -> Float32[np.ndarray, "C N"]:
        """log pi_teacher(y) - log pi_solver(y)."""
        return self.teacher_logprobs - self.solver_logprobs

    def of(self, rollout: int) -> slice:
        """The tokens of a rollout."""
        return slice(int(self.offsets[rollout]), int(self.offsets[rollout + 1]))

    def rollout_of_token(self) -> Int64[np.ndarray, " N"]:
        """[N] the rollout that each token belongs to."""
        return np.repeat(np.arange(len(self.rows)), np.diff(self.offsets))

    def save(self, directory: pathlib.Path) -> None:
        """Writes tokens.npz and rollouts.jsonl; the texts come last and prove the arrays."""
        directory.mkdir(parents=True, exist_ok=True)
        names = [field.name for field in dataclasses.fields(self)][2:]
        arrays = {name: getattr(self, name) for name in names}
        with atomic_file(directory / "tokens.npz") as file:
            np.savez(file, contexts=np.array(self.contexts), **arrays)
        write_jsonl(directory / "rollouts.jsonl", self.rows)

    @classmethod
    def load(cls, directory: pathlib.Path) -> "ScoredRollouts":
        """Reads what `save` wrote, to the same bits.

        Raises:
          UserError: a file is missing or is not of this form.
        """
        path = directory / "tokens.npz"
        try:
            # NumPy leaves a file open that it cannot read.
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            contexts = arrays.pop("contexts").tolist()
            rows = read_jsonl(directory / "rollouts.jsonl")
            return cls(contexts=contexts, rows=rows, **arrays)
        except UNREADABLE as error:
            raise UserError(
                f"cannot read the scores in {directory} ({error}): make them again with "
                "`python -m stepalign_jax.analyze`."
            ) from error
