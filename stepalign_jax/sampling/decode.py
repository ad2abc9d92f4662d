# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws completions: one prefill, then a loop that emits one token per row and turn.

Prompts are right-padded, so that cache slot == position. With P = 4 and a prompt of two
tokens whose completion ends with the stop token `$`:

    slot         0   1   2   3   4   5          prompt_lengths = 2
    prompt       a   b   -   -                  the prefill writes slots 0..3
    completion           c   d   $   -          token t lies at slot 2 + t; lengths = 3

A completion token overwrites the padding that the prefill left in its slot before any
query can see it, for a query at position p attends to slots <= p only.

Randomness is addressed: the noise of one token depends on (run seed, purpose, optimizer
step, problem hash, sample index, retry, position in the completion) and nothing else. So
a request draws the same tokens in whatever batch, row or padding it is decoded, up to
the rounding of the logits, which may differ in the last bits between compiled shapes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from stepalign_jax.base.types import Rollouts
from stepalign_jax.model.qwen3 import Cache, Qwen3, init_cache

ADDRESS_FIELDS = ("optimizer_step", "problem_hash", "sample_index", "retry")


@jax.jit
def make_row_keys(seed: jax.Array, purpose: jax.Array, addresses: jax.Array) -> jax.Array:
    """Random keys [B] of the requests at `addresses`.

    Args:
      seed: uint32 scalar, the run's seed.
      purpose: uint32 scalar that keeps the uses of one address apart.
      addresses: [B, 4] uint32, columns as in `ADDRESS_FIELDS`.
    """
    # The generator is named, because its bits are part of what a run repeats.
    root = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), purpose)

    def fold(address: jax.Array) -> jax.Array:
        key = root
        for field in range(len(ADDRESS_FIELDS)):
            key = jax.random.fold_in(key, address[field])
        return key

    return jax.vmap(fold)(addresses)


def sampling_distribution(
    logits: jax.Array, *, temperature: float, top_k: int, top_p: float
) -> tuple[jax.Array, jax.Array | None]:
    """The distribution that tokens are drawn from: temperature, then top-k, then top-p.

    Top-p keeps the fewest most probable tokens whose mass reaches `top_p`, where mass is
    counted among what top-k left. Of equally probable tokens the lower id comes first.

    Args:
      logits: [B, V] float32.
      temperature: above 0.
      top_k: tokens to keep, 0 for all.
      top_p: in (0, 1], 1 for all.

    Returns:
      Log-probabilities [B, C] of C candidates, -inf for those excluded, and the token ids
      [B, C] of the candidates. Ids are None where the candidates are the vocabulary in
      order; only then is nothing sorted. Top-k alone selects, top-p alone sorts all of V.
    """
    vocab_size = logits.shape[-1]
    scaled = logits / temperature
    if top_k == 0 and top_p >= 1:
        return jax.nn.log_softmax(scaled), None
    scaled, ids = lax.top_k(scaled, min(top_k, vocab_size) if top_k else vocab_size)
    if top_p < 1:
        probs = jax.nn.softmax(scaled)
        mass_before = jnp.cumsum(probs, axis=-1) - probs
        scaled = jnp.where(mass_before < top_p, scaled, -jnp.inf)
    return jax.nn.log_softmax(scaled), ids


def sample_token(
    logits: jax.Array, keys: jax.Array, *, temperature: float, top_k: int, top_p: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws one token per row as argmax of log-probability + Gumbel noise.

    The noise belongs to (key, token id), so it survives a change of rank between nearly
    equal tokens, and a token that wins without a filter wins under each filter keeping it.

    Args:
      logits: [B, V]; turned into float32 first.
      keys: [B] keys, one per row; ignored at temperature 0.
      temperature: 0 takes the most probable token, the lowest id among equals.
      top_k: see `sampling_distribution`, as for `top_p`; both ignored at temperature 0.
      top_p: see there.

    Returns:
      Tokens [B] int32, their log-probabilities [B] under softmax(logits), and [B] under
      the distribution they were drawn from (0 at temperature 0).
    """
    logits = logits.astype(jnp.float32)
    if temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return tokens, _pick(jax.nn.log_softmax(logits), tokens), jnp.zeros(tokens.shape)
    candidates, ids = sampling_distribution(
        logits, temperature=temperature, top_k=top_k, top_p=top_p
    )
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
    if ids is not None:
        noise = jnp.take_along_axis(noise, ids, axis=-1)
    choice = jnp.argmax(candidates + noise, axis=-1).astype(jnp.int32)
    tokens = choice if ids is None else _pick(ids, choice)
    return tokens, _pick(jax.nn.log_softmax(logits), tokens), _pick(candidates, choice)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """values[b, index[b]] for each row b: [B, N], [B] -> [B]."""
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]


class _State(NamedTuple):
    """What the decode loop carries; `emitted` counts the columns of `rollouts` in use."""

    emitted: jax.Array
    cache: Cache
    rollouts: Rollouts


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "stop_ids",
        "pad_id",
        "cache_dtype",
    ),
)
def generate(
    model: Qwen3,
    variables: Any,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    row_keys: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    stop_ids: tuple[int, ...],
    pad_id: int,
    cache_dtype: Any,
) -> Rollouts:
    """Completes each prompt; compiles once per (shapes, settings).

    The loop ends when every row is done, so a batch costs as many turns as its longest
    completion has tokens. The prefill computes logits for the last prompt token only.

    Args:
      model: unrolled (`scan_layers=False`).
      variables: the model's collections in the unrolled layout; with `lora` among them the
        adapter is on.
      prompts: [B, P] int32, right-padded.
      prompt_lengths: [B] int32. A row of length 0 is a dummy: it draws nothing and comes
        back with length 0 and finished True, so it never holds up the loop.
      row_keys: [B] keys from `make_row_keys`.
      max_new_tokens: T, the token budget; the cache has P + T slots.
      temperature: see `sample_token`, as for `top_k` and `top_p`.
      top_k: see there.
      top_p: see there.
      stop_ids: a row is done once it has drawn one of these; that token counts.
      pad_id: fills `tokens` from `lengths` on, where both log-probabilities are 0.
      cache_dtype: of keys and values in the cache.

    Returns:
      Rollouts with [B, T] arrays.
    """
    batch, prompt_width = prompts.shape

    def forward(tokens: jax.Array, positions: jax.Array, cache: Cache) -> Any:
        return model.apply(variables, tokens, positions=positions, cache=cache)

    def logits_of(hidden: jax.Array) -> Any:  # [B, D] -> [B, V]
        return model.apply(variables, hidden, method=model.logits)

    def emit(emitted: jax.Array, logits: jax.Array, rollouts: Rollouts) -> Rollouts:
        token_keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, emitted)
        token, logprob, sampling_logprob = sample_token(
            logits, token_keys, temperature=temperature, top_k=top_k, top_p=top_p
        )
        return _append(rollouts, emitted, token, logprob, sampling_logprob, stop_ids)

    def turn(state: _State) -> _State:
        last = state.emitted - 1
        tokens = lax.dynamic_index_in_dim(state.rollouts.tokens, last, axis=1)
        hidden, cache = forward(tokens, prompt_lengths[:, None] + last, state.cache)
        rollouts = emit(state.emitted, logits_of(hidden[:, 0]), state.rollouts)
        return _State(state.emitted + 1, cache, rollouts)

    def unfinished(state: _State) -> jax.Array:
        return (state.emitted < max_new_tokens) & ~jnp.all(state.rollouts.finished)

    # The prefill sees a cache of P slots: attention scores are [P, P], not [P, P + T].
    slots = jnp.broadcast_to(jnp.arange(prompt_width), prompts.shape)
    empty = init_cache(model.config, batch, prompt_width, cache_dtype)
    hidden, cache = forward(prompts, slots, empty)
    z, room = (0, 0), (0, max_new_tokens)
    cache = tuple(type(c)(jnp.pad(c.k, (z, z, z, room)), jnp.pad(c.v, (z, z, room, z))) for c in cache)
    last_of_prompt = jnp.maximum(prompt_lengths - 1, 0)[:, None, None]
    logits = logits_of(jnp.take_along_axis(hidden, last_of_prompt, axis=1)[:, 0])
    rollouts = emit(jnp.int32(0), logits, _blank(prompt_lengths, max_new_tokens, pad_id))
    return lax.while_loop(unfinished, turn, _State(jnp.int32(1), cache, rollouts)).rollouts


def _blank(prompt_lengths: jax.Array, max_new_tokens: int, pad_id: int) -> Rollouts:
    """Rollouts without a token; dummy rows, those with an empty prompt, are finished."""
    shape = (prompt_lengths.shape[0], max_new_tokens)
    return Rollouts(
        tokens=jnp.full(shape, pad_id, jnp.int32),
        logprobs=jnp.zeros(shape, jnp.float32),
        sampling_logprobs=jnp.zeros(shape, jnp.float32),
        lengths=jnp.zeros_like(prompt_lengths),
        finished=prompt_lengths == 0,
    )


def _append(
    rollouts: Rollouts,
    column: jax.Array,
    token: jax.Array,
    logprob: jax.Array,
    sampling_logprob: jax.Array,
    stop_ids: tuple[int, ...],
) -> Rollouts:
    """Writes one token [B] into `column` of the rows that are not finished yet."""
    live = ~jnp.asarray(rollouts.finished)

    def put(buffer: Any, value: jax.Array) -> jax.Array:
        # Columns ahead still hold the filler, so a finished row keeps what is there.
        old = lax.dynamic_index_in_dim(buffer, column, axis=1, keepdims=False)
        new = jnp.where(live, value, old)
        return lax.dynamic_update_index_in_dim(buffer, new, column, axis=1)

    return Rollouts(
        tokens=put(rollouts.tokens, token),
        logprobs=put(rollouts.logprobs, logprob),
        sampling_logprobs=put(rollouts.sampling_logprobs, sampling_logprob),
        lengths=rollouts.lengths + live,
        finished=rollouts.finished | jnp.isin(token, jnp.array(stop_ids, jnp.int32)),
    )
