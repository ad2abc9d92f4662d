# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Spoils a share of a critic's critiques on purpose, to measure what bad critiques cost.

    rollout         Step 1: 3*8=24 | Step 2: 47+24=61 | Step 3: 61-12=49 | Answer: 49
    critique        Step 1: 3*8=24 | Step 2: 47+24=71 | Step 3: 71-12=59 | Answer: 59
    wrong_verdict   the rollout itself: nothing is wrong
    shifted_error   Step 1: 3*8=25 | Step 2: 47+24=71 | Step 3: 71-12=59 | Answer: 59
    paraphrase      Step 1: 24=3*8 | Step 2: 47+24=71 | Step 3: 71-12=59 | Answer: 59
    off_topic       Step 1: 8*1=30 | Step 2: 15+97=32 | Step 3: 40-61=88 | Answer: 27

Where the rollout has no error, or has it in the first reasoning step, the first two kinds spoil
another reasoning step: one that was right is called wrong. What is spoilt, and how, is drawn by
the rollout's address: the same critiques in every repetition.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from stepalign_jax.base.hashing import stable_hash32
from stepalign_jax.critics.protocol import Critic, CriticReply, Wrapper
from stepalign_jax.feedback.contexts import Attempt
from stepalign_jax.feedback.mathematics import reworded
from stepalign_jax.feedback.reasoning_steps import ReasoningStep, TraceFormat, with_body
from stepalign_jax.feedback.validate import first_changed
from stepalign_jax.sampling.request import Address

_NUMBER = re.compile(r"\d+")


class Noisy(Wrapper):
    """Spoils a share of the inner critic's critiques."""

    def __init__(self, inner: Critic, noise: str, share: float, trace: TraceFormat):
        super().__init__(inner)
        self._noise, self._share, self._trace = noise, share, trace

    def review(self, attempts: Sequence[Attempt], addresses: Sequence[Address]) -> CriticReply:
        """Returns the inner critic's reply, a share of its valid critiques spoilt."""
        reply = self.inner.review(attempts, addresses)
        critiques = [
            replace(
                critique, text=spoil(attempt, critique.text, address, self._noise, self._trace)
            )
            if critique.failure is None and is_spoilt(address, self._share)
            else critique
            for attempt, critique, address in zip(
                attempts, reply.critiques, addresses, strict=True
            )
        ]
        return reply._replace(critiques=critiques)


def is_spoilt(address: Address, share: float) -> bool:
    """Whether the critique at this address is one of the share; a larger one has it too."""
    return _draw(address, "spoilt") < share * 2**32


def spoil(
    attempt: Attempt, critique: str, address: Address, noise: str, trace: TraceFormat
) -> str:
    """Returns the critique with a fault of the kind `noise` (`schema.Noise`).

    As it is where there is nothing to spoil.
    """
    return _NOISES[noise](attempt, critique, address, trace)


def _draw(address: Address, what: str) -> int:
    # The purpose is left out: it says who asks, and the draw is about the rollout.
    return stable_hash32(f"noise {what} {tuple(address._replace(purpose=0))}")


def _wrong_verdict(
    attempt: Attempt, critique: str, address: Address, trace: TraceFormat
) -> str:
    if attempt.text.split() != critique.split():
        return attempt.text
    steps = trace.steps(critique)
    return _with_wrong_number(critique, steps[-1:], address)


def _shifted_error(
    attempt: Attempt, critique: str, address: Address, trace: TraceFormat
) -> str:
    steps = trace.steps(critique)
    first = first_changed(trace.steps(attempt.text), steps)
    place = len(steps) - 1 if first is None else first - 1 if first else 1
    return _with_wrong_number(critique, steps[place : place + 1], address)


def _paraphrase(attempt: Attempt, critique: str, _address: Address, trace: TraceFormat) -> str:
    steps = trace.steps(critique)
    first = first_changed(trace.steps(attempt.text), steps)
    for step in reversed(steps[:first]):
        body = reworded(step.text) or f"so {step.text}"
        critique = with_body(critique, step, body)
    return critique


def _off_topic(_attempt: Attempt, critique: str, address: Address, trace: TraceFormat) -> str:
    """Every number is another; words stand in another order."""
    for step in reversed(trace.steps(critique)):
        words = step.text.split()
        words.sort(key=lambda word: _draw(address, f"{step.index} {word}"))
        critique = with_body(critique, step, _other_numbers(" ".join(words), address))
    steps = trace.steps(critique)
    end = steps[-1].end if steps else 0
    return critique[:end] + _other_numbers(critique[end:], address)


def _other_numbers(text: str, address: Address) -> str:
    def other(match: re.Match[str]) -> str:
        highest = 10 ** len(match[0])
        number = _draw(address, f"{match.start()} {match[0]}") % highest
        return str(number if str(number) != match[0] else (number + 1) % highest)

    return _NUMBER.sub(other, text)


def _with_wrong_number(critique: str, steps: Sequence[ReasoningStep], address: Address) -> str:
    """The last number of the given reasoning step off by one to nine."""
    for step in steps:
        numbers = list(_NUMBER.finditer(step.text))
        if numbers:
            last = numbers[-1]
            # Digit by digit, as int() refuses what a runaway trace may hold.
            digit = (int(last[0][-1]) + 1 + _draw(address, "digit") % 9) % 10
            body = step.text[: last.end() - 1] + str(digit) + step.text[last.end() :]
            critique = with_body(critique, step, body)
    return critique


_NOISES: dict[str, Callable[[Attempt, str, Address, TraceFormat], str]] = {
    "wrong_verdict": _wrong_verdict,
    "shifted_error": _shifted_error,
    "paraphrase": _paraphrase,
    "off_topic": _off_topic,
}
