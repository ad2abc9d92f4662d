# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A critic behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, or a paid one.

It is sent the critic's template as one user message. Thinking is the server's affair
(prompts.critic_thinking is not read): what stands before `</think>` is stripped. Every answer
is stored as it comes, and nothing that a store holds is asked again.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Sequence

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.hashing import digest, stable_hash32
from stepalign_jax.base.progress import counting
from stepalign_jax.config.critics import EndpointCritic
from stepalign_jax.config.schema import PromptsConfig
from stepalign_jax.critics.client import Answer, Client, Question
from stepalign_jax.critics.judging import reply_of
from stepalign_jax.critics.protocol import CriticReply, Surroundings, open_critic
from stepalign_jax.critics.store import ANSWERED, CritiqueStore, StoredCritique
from stepalign_jax.feedback.contexts import Attempt, in_words
from stepalign_jax.feedback.critique import Grade
from stepalign_jax.feedback.prompts import critic_prompt
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.request import Address, Purpose

NUM_SELF_TESTS = 4
_TEST_PROBLEM = Problem("What is 17+26-8?", "35", "17+26=43 and 43-8=35", "self-test")
_TEST_ROLLOUT = "17+26=33, and 33-8=25"


class Endpoint:
    """A `Critic` that asks a server."""

    def __init__(
        self,
        config: EndpointCritic,
        prompts: PromptsConfig,
        grade: Grade,
        store: CritiqueStore,
        label: str,
    ):
        """Nothing is sent; see `Surroundings` for all but `config`.

        Raises:
          UserError: the package `openai`, or the key, is missing.
        """
        self._label = label
        self._config, self._prompts, self._grade = config, prompts, grade
        self._client, self._store = Client(config), store
        settings = (config.url, config.sees, config.temperature, config.max_new_tokens)
        self.name = f"{config.model}#{digest(*settings, prompts.critic)[:8]}"

    def load(self) -> None:
        """Asks one question several times at once, before anything expensive starts.

        Says in one line if a greedy server's answers differ.

        Raises:
          UserError: it answers none of them.
        """
        prompt = critic_prompt(self._prompts, _TEST_PROBLEM, _TEST_ROLLOUT, self._config.sees)
        question = Question(prompt or "", None if self._config.temperature == 0 else 0)
        answers = self._client.ask([question] * NUM_SELF_TESTS, lambda *_: None)
        given = [answer for answer in answers if answer.outcome in ANSWERED]
        if not given:
            words = in_words(Counter(answer.outcome for answer in answers))
            raise UserError(
                f"the server at critic.url={self._config.url} answered none of "
                f"{len(answers)} test questions for critic.model={self._config.model}: {words}."
            )
        different = len({answer.text for answer in given})
        if self._config.temperature == 0 and different > 1:
            print(
                f"note: the critic's server gave {different} different answers to one question "
                f"that it was asked {len(given)} times at temperature 0; a run that asks again "
                "will not be the same (the stored critiques replay exactly)",
                file=sys.stderr,
                flush=True,
            )

    def review(self, attempts: Sequence[Attempt], addresses: Sequence[Address]) -> CriticReply:
        """Returns the server's critique of each attempt, asked for or from the store."""
        sees, sent = self._config.sees, self._client.sent
        prompts = [critic_prompt(self._prompts, a.problem, a.text, sees) for a in attempts]
        rows: list[StoredCritique | None] = [
            None if prompt is None else self._row(attempt, address, prompt)
            for attempt, address, prompt in zip(attempts, addresses, prompts, strict=True)
        ]
        # Equal questions are asked once.
        first = {row.key: i for i, row in reversed(list(enumerate(rows))) if row}
        found = {key: stored for key in first if (stored := self._store.find(key))}
        asked = [
            i for key, i in sorted(first.items(), key=lambda item: item[1]) if key not in found
        ]
        questions = [Question(prompts[i] or "", self._seed(addresses[i])) for i in asked]

        num_heard = itertools.count(1)

        def heard(place: int, answer: Answer) -> None:
            count(next(num_heard))
            row = rows[asked[place]]
            assert row is not None
            found[row.key] = row._replace(**answer._asdict(), cost=self._cost(answer))
            self._store.add(found[row.key])

        from_store = sum(row is not None and row.key in found for row in rows)
        with counting(len(questions), self._label) as count:
            self._client.ask(questions, heard)
        rows = [row and found[row.key] for row in rows]
        return reply_of(
            rows,
            attempts,
            self._prompts,
            self._grade,
            accepts=self._config.accepts,
            absent="no_reference",
            num_asked=self._client.sent - sent,
            from_store=from_store,
        )

    def example_prompt(self, problem: Problem) -> str:
        """The user message; "" where the reference that it shows is missing."""
        return critic_prompt(self._prompts, problem, "(the rollout)", self._config.sees) or ""

    def _row(self, attempt: Attempt, address: Address, prompt: str) -> StoredCritique:
        """The row of a question, still without an answer."""
        decoding = [self._config.temperature, self._config.max_new_tokens]
        decoding += [self._seed(address), address.retry]
        texts = (attempt.problem.text, attempt.text)
        return StoredCritique(
            key=digest(*texts, self._config.url, self._config.model, prompt, decoding),
            question=digest(*texts),
            critic=self.name,
            step=address.step,
            sample=address.sample,
            retry=address.retry,
            text="",
            outcome="",
            judged=False,
            sees_answer=self._config.sees != "question",
            prompt_tokens=0,
            tokens=0,
            seconds=0.0,
            cost=0.0,
            shared=False,
        )

    def _seed(self, address: Address) -> int | None:
        """31 bits by which the server draws; None where it decodes greedily."""
        if self._config.temperature == 0:
            return None
        return stable_hash32(str(tuple(address._replace(purpose=Purpose.CRITIC)))) >> 1

    def _cost(self, answer: Answer) -> float:
        prices = self._config.price_input, self._config.price_output
        return (answer.prompt_tokens * prices[0] + answer.tokens * prices[1]) / 1e6


@open_critic.register
def _(config: EndpointCritic, surroundings: Surroundings) -> Endpoint:
    own = surroundings
    return Endpoint(config, own.prompts, own.grade, own.store, own.label)
