# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Sessions on a toy Qwen3, and on a model whose next token is known."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from support.models import CONFIG, map_leaves

from stepalign_jax.base.types import Rollouts
from stepalign_jax.model.qwen3 import Qwen3, init_params, unstack_layers
from stepalign_jax.sampling.request import Address, Request, SamplingParams
from stepalign_jax.sampling.scheduler import prompt_layout
from stepalign_jax.sampling.session import DecodeChunk, Session

PAD, BUDGET = 0, 12
# Of every session that needs no other number, in a cache of 128 slots: each pair of them is a
# program that has to be compiled.
SLOTS, LENGTH = 5, 129
WIDER = 209  # a session's that starts with a cache of 128 slots, and may need 208
# Large weights, so that the distributions are far from uniform and differ by position.
PARAMS = map_leaves(init_params(CONFIG, jax.random.key(0)), lambda leaf: leaf * 8)
VARIABLES = {"params": unstack_layers(PARAMS, CONFIG.num_layers)}
# With these every token is equally likely, so that the noise alone decides.
UNIFORM = map_leaves(VARIABLES, np.zeros_like)
MODEL = Qwen3(CONFIG, jnp.float32, scan_layers=False)

PLAIN = SamplingParams(1.0, 0, 1.0, BUDGET, ())
GREEDY = PLAIN._replace(temperature=0.0)
ADDRESS = Address(seed=0, purpose=0, step=3, problem=77, sample=0, retry=0)


def addresses_for(number: int, **fields: int) -> list[Address]:
    """Addresses of `number` samples of one problem; fields shift them."""
    return [ADDRESS._replace(**{"sample": sample, **fields}) for sample in range(number)]


def requests_for(
    prompts: Sequence[Sequence[int]],
    params: SamplingParams = PLAIN,
    addresses: Sequence[Address] | None = None,
) -> list[Request]:
    """One request per prompt."""
    addresses = addresses_for(len(prompts)) if addresses is None else addresses
    return [Request(p, a, params) for p, a in zip(prompts, addresses, strict=True)]


def session_for(requests: Sequence[Request], **changes: Any) -> Session:
    """A session on the toy model that is wide enough for `requests`."""
    layout = prompt_layout([tuple(request.prompt) for request in requests])
    budget = max(request.params.max_new_tokens for request in requests)
    options: dict[str, Any] = dict(
        model=MODEL,
        variables=VARIABLES,
        num_slots=SLOTS,
        max_length=max(LENGTH, layout.max_length(budget)),
        stop_ids=(),
        dtype=jnp.float32,
    )
    return Session(**{**options, **changes})


def chunks(
    requests: Sequence[Request], num_steps: int = 64, **changes: Any
) -> list[DecodeChunk]:
    """What a session that gets all requests at once decodes."""
    session, found = session_for(requests, **changes), []
    session.submit(requests)
    while not session.over:
        found.append(session.step(num_steps))
    return found


def put_together(found: Sequence[DecodeChunk], number: int, budget: int) -> Rollouts:
    """Rollouts from chunks, request by request."""
    tokens, lengths = np.full((number, budget), PAD, np.int32), np.zeros(number, np.int32)
    logprobs = np.zeros((number, budget), np.float32)
    for chunk in found:
        for slot, request in enumerate(chunk.requests):
            first, count = chunk.first[slot], chunk.count[slot]
            assert count == 0 or (request >= 0 and lengths[request] == first)
            columns = slice(first, first + count)
            tokens[request, columns] = chunk.tokens[:count, slot]
            logprobs[request, columns] = chunk.logprobs[:count, slot]
            lengths[request] += count
    return Rollouts(tokens, logprobs, lengths, lengths < budget)


def run(
    prompts: Sequence[Sequence[int]],
    params: SamplingParams = PLAIN,
    addresses: Sequence[Address] | None = None,
    **changes: Any,
) -> Rollouts:
    """The rollouts of one request per prompt, all submitted at once."""
    found = chunks(requests_for(prompts, params, addresses), **changes)
    return put_together(found, len(prompts), params.max_new_tokens)


PROMPTS = [[5, 6, 7], [9, 2, 3, 4, 8, 1, 20, 11], [13], [5, 6, 7, 8, 9]]

CALLS: list[tuple[int, ...]] = []


class Successor(Qwen3):
    """A stand-in that has no weights and predicts token + 1 with certainty.

    Each forward pass, not each trace, puts the shape of its tokens into CALLS.
    """

    def setup(self) -> None:
        pass

    def __call__(self, tokens: jax.Array, *, positions: jax.Array, cache: Any) -> Any:
        shape = tokens.shape
        jax.debug.callback(lambda: CALLS.append(shape))
        return jax.nn.one_hot(tokens + 1, self.config.vocab_size), cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        # Sure, but not to the last bit: another token comes once in 7,000 draws.
        return hidden * 12


SUCCESSOR = Successor(CONFIG, jnp.float32)
