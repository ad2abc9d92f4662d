# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What is asked of a sampler: a prompt, where its noise comes from, and how to draw."""

import enum
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple


class Purpose(enum.IntEnum):
    """What a completion is for; keeps noise apart where addresses are equal otherwise."""

    SOLVER = 0
    CRITIC = 1
    EVALUATION = 2


class Address(NamedTuple):
    """Where the noise of one completion comes from; all numbers are below 2**32."""

    seed: int
    purpose: int
    step: int
    problem: int
    sample: int
    retry: int


class SamplingParams(NamedTuple):
    """How one completion is drawn."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    stop_ids: tuple[int, ...]

    @classmethod
    def of(cls, config: Any) -> "SamplingParams":
        """From a config's section."""
        return cls(config.temperature, config.top_k, config.top_p, config.max_new_tokens, ())


class Request(NamedTuple):
    """One completion to sample."""

    prompt: Sequence[int]
    address: Address
    params: SamplingParams


def sample_addresses(
    problem_ids: Sequence[int], num_samples: int, *, seed: int, purpose: int, step: int
) -> list[Address]:
    seen: Counter[int] = Counter()
    rows = []
    for problem in problem_ids:
        first = seen[problem] * num_samples
        seen[problem] += 1
        rows += [
            Address(seed, int(purpose), step, problem, first + g, 0) for g in range(num_samples)
        ]
    return rows


def make_requests(
    prompts: Sequence[Sequence[int]], addresses: Sequence[Address], params: SamplingParams
) -> list[Request]:
    return [Request(p, a, params) for p, a in zip(prompts, addresses, strict=True)]
