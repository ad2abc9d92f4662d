# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What is asked of a sampler: a prompt, how to draw, and the address of the noise.

The noise of a token depends on the request's address and the token's place in the completion,
and on nothing else. So a request draws the same tokens in whatever slot, batch or padding it is
decoded, up to the rounding of the logits, which may differ in the last bits between compiled
shapes.
"""

import enum
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import SamplingConfig


class Purpose(enum.IntEnum):
    """What a completion is for; keeps noise apart where addresses are otherwise equal."""

    SOLVER = 0
    CRITIC = 1
    EVALUATION = 2
    CONTINUATION = 3


# Of what is drawn before training, in place of an optimizer step: none has this number.
PREFLIGHT_STEP = 2**32 - 1
# Of rollouts that are sampled to be analysed.
ANALYSIS_STEP = 2**32 - 2


class Address(NamedTuple):
    """Which noise a request draws with; every field lies in [0, 2**32).

    Attributes:
      seed: of the run.
      purpose: a `Purpose`.
      step: the optimizer step; 0 in evaluation, `PREFLIGHT_STEP` before training,
        `ANALYSIS_STEP` of what is only analysed.
      problem: a stable hash of the problem, `base.hashing.stable_hash32`.
      sample: index among the samples of one problem.
      retry: 0, or how often the same request was made before.
    """

    seed: int
    purpose: int
    step: int
    problem: int
    sample: int
    retry: int


class SamplingParams(NamedTuple):
    """How tokens are drawn: temperature, then top-k, then top-p.

    Top-p keeps the fewest most probable tokens whose mass reaches `top_p`, where mass is
    counted among what top-k left. Of equally probable tokens the lower id comes first.

    Attributes:
      temperature: 0 takes the most probable token, and then the two filters mean nothing.
      top_k: tokens to keep, 0 for all.
      top_p: in (0, 1], 1 for all.
      max_new_tokens: where a completion is cut, at least 1.
      stop_ids: token ids that end a completion, beside the model's own.
    """

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    stop_ids: tuple[int, ...]

    @classmethod
    def of(cls, config: SamplingConfig) -> "SamplingParams":
        """The parameters in a section of the config."""
        return cls(
            config.temperature, config.top_k, config.top_p, config.max_new_tokens, stop_ids=()
        )


class Request(NamedTuple):
    """One completion to sample.

    Attributes:
      prompt: token ids, at least one.
      address: of its noise.
      params: how its tokens are drawn.
    """

    prompt: Sequence[int]
    address: Address
    params: SamplingParams


def sample_addresses(
    problem_ids: Sequence[int], num_samples: int, *, seed: int, purpose: int, step: int
) -> list[Address]:
    """Addresses of `num_samples` samples of each problem, problem by problem.

    A problem that stands twice in the list (where two epochs meet) goes on counting:

        problem_ids [7, 9, 7], num_samples 2   ->   (problem, sample)
                                                    (7, 0) (7, 1) (9, 0) (9, 1) (7, 2) (7, 3)
    """
    seen: Counter[int] = Counter()
    addresses = []
    for problem in problem_ids:
        first = seen[problem] * num_samples
        seen[problem] += 1
        for sample in range(first, first + num_samples):
            addresses.append(Address(seed, int(purpose), step, problem, sample, retry=0))
    return addresses


def make_requests(
    prompts: Sequence[Sequence[int]], addresses: Sequence[Address], params: SamplingParams
) -> list[Request]:
    """One request per prompt, all drawn the same way.

    Raises:
      ValueError: there is not one address per prompt.
    """
    pairs = zip(prompts, addresses, strict=True)
    return [Request(prompt, address, params) for prompt, address in pairs]


def check_requests(requests: Sequence[Request], max_length: int) -> None:
    """Refuses a request without a prompt, or longer than `max_length` with its completion.

    Raises:
      UserError: naming the first one.
    """
    for index, request in enumerate(requests):
        length, room = len(request.prompt), request.params.max_new_tokens
        if not length:
            raise UserError(f"Prompt {index} is empty: a prompt needs at least one token.")
        if length + room > max_length:
            raise UserError(
                f"Prompt {index} has {length} tokens, which with max_new_tokens = {room} "
                f"exceeds the {max_length} positions there are: lower one."
            )
