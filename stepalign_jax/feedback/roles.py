# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The three roles' prompts as token ids: where text ends and arrays begin."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import PromptsConfig
from stepalign_jax.feedback.markup import markup_tokens
from stepalign_jax.feedback.prompts import (
    check_problem_budget,
    check_room,
    critic_prompt,
    solver_prompt,
    teacher_prompt,
)
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.huggingface.tokenizer import (
    decode,
    encode_plain,
    opens_thinking,
    render_prompt,
    thought_opening,
    token_spans,
)
from stepalign_jax.problems.problem import Problem

_SEAM_TOKENS = 16


class Room(NamedTuple):
    """What prompts of a run have room for.

    Attributes:
      positions: the model's.
      solver: what follows the solver's prompt at most: tokens by the config's key.
      teacher: what comes to the teacher's prompt without a context: tokens by key; {} where
        no teacher is asked.
    """

    positions: int
    solver: dict[str, int]
    teacher: dict[str, int]


@dataclass(frozen=True)
class Roles:
    """A tokenizer and the prompts of one run.

    Attributes:
      tokenizer: the checkpoint's, from `model.tokenizer.load_tokenizer`.
      prompts: the config's section.
    """

    tokenizer: Any
    prompts: PromptsConfig

    @property
    def trace(self) -> TraceFormat:
        """How the run's traces are read."""
        return TraceFormat(self.prompts.reasoning_step_pattern, self.prompts.answer_pattern)

    def solver(self, problem: Problem) -> list[int]:
        """Ids of the solver's prompt."""
        return self._render(solver_prompt(self.prompts, problem), self.prompts.solver_thinking)

    def teacher(self, problem: Problem, context: str) -> list[int]:
        r"""Ids of the teacher's prompt, up to where it reads the rollout.

        With Qwen3's template, whose solver does not think:

            solver                    assistant\n <think>\n\n</think>\n\n | rollout
            teacher      off          assistant\n <think>\n\n</think>\n\n | rollout
                         on           assistant\n | rollout
                         on+open_tag  assistant\n <think>\n | rollout

        With `on` the teacher expects `<think>` where the rollout has its first token. With
        `on+open_tag` it reads the rollout as its thought.

        Raises:
          UserError: `on+open_tag`, and the chat template knows no thoughts.
        """
        how = self.prompts.teacher_thinking
        prompt = self._render(teacher_prompt(self.prompts, problem, context), how != "off")
        return prompt + thought_opening(self.tokenizer) if how == "on+open_tag" else prompt

    def critic(self, problem: Problem, attempt: str, sees: str) -> list[int] | None:
        """Ids of the critic's prompt; None without the reference it should see."""
        text = critic_prompt(self.prompts, problem, attempt, sees)
        return None if text is None else self._render(text, self.prompts.critic_thinking)

    def critic_opens_thinking(self) -> bool:
        """Whether the critic's prompt ends inside a thought, so that it does not open one."""
        return opens_thinking(self.tokenizer, thinking=self.prompts.critic_thinking)

    def _render(self, text: str, thinking: bool) -> list[int]:
        return render_prompt(self.tokenizer, text, thinking=thinking)

    def plain(self, text: str) -> list[int]:
        """Ids of a text outside of any prompt, such as a completion without what ends it."""
        return encode_plain(self.tokenizer, text)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a section of a prompt."""
        return len(self.plain(text))

    def num_copied(self, completion: Sequence[int], text: str) -> int:
        """How many tokens at the head of a completion stand at the head of `text` too.

        A tokenizer that joins characters may break the last token that is alike otherwise.
        """
        pairs = zip(completion, self.plain(text), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def markup(self, completion: Sequence[int]) -> list[bool]:
        """Whether each token of a completion is markup, see `feedback.markup`."""
        return markup_tokens(*token_spans(self.tokenizer, completion), self.trace)

    def ends(self, completion: Sequence[int], text: str) -> list[int]:
        """One past the last character of its text that each token of a completion writes.

        A token that writes nothing ends where the one before it does. See
        `huggingface.tokenizer.token_spans`.
        """
        written, spans = token_spans(self.tokenizer, completion)
        # Some tokenizers leave a space at the beginning out of the text.
        lead = len(written) - len(text) if written.endswith(text) else 0
        return [min(max(end - lead, 0), len(text)) for _, end in spans]

    def check_problems(self, problems: Iterable[Problem], split: str, room: Room) -> None:
        """Refuses, before anything expensive, a problem that is too long for a prompt.

        Args:
          problems: all of a split.
          split: its name, for the refusal.
          room: what the prompts and what follows them may take.

        Raises:
          UserError: naming the first one that is over its own token budget, or whose prompt
            leaves too few of the model's positions.
        """
        budget = self.prompts.max_problem_tokens
        empty = Problem("", "", None, "")
        templates = {"solver": len(self.solver(empty)), "teacher": len(self.teacher(empty, ""))}
        for number, problem in enumerate(problems, start=1):
            where = f"problem {number} of {split}"
            num_tokens = self.count_tokens(problem.text)
            check_problem_budget(problem, where, num_tokens, budget)
            for role, rest in (("solver", room.solver), ("teacher", room.teacher)):
                # Where words meet a template, a tokenizer may cut them otherwise.
                near = templates[role] + num_tokens + sum(rest.values()) + _SEAM_TOKENS
                if not rest or near <= room.positions:
                    continue
                taken = len(
                    self.solver(problem) if role == "solver" else self.teacher(problem, "")
                )
                check_room(where, problem, role, taken, rest, room.positions)

    def texts(self, rollouts: Rollouts) -> list[str]:
        """The completions as text, without special tokens."""
        return [
            decode(self.tokenizer, tokens[:length])
            for tokens, length in zip(rollouts.tokens, rollouts.lengths, strict=True)
        ]
