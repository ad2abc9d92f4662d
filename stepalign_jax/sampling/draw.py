# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws one token per row from logits, with noise that belongs to an address.

The noise of one token depends on (run seed, purpose, optimizer step, problem hash, sample
index, retry, position in the completion) and nothing else. So a request draws the same
tokens in whatever slot, batch or padding it is decoded, up to the rounding of the logits,
which may differ in the last bits between compiled shapes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

ADDRESS_FIELDS = ("optimizer_step", "problem_hash", "sample_index", "retry")

# Top-p looks among this many tokens before it sorts the vocabulary.
NUM_CANDIDATES = 512


class Filter(NamedTuple):
    """What tokens are drawn from: temperature, then top-k, then top-p.

    Top-p keeps the fewest most probable tokens whose mass reaches `top_p`, where mass is
    counted among what top-k left. Of equally probable tokens the lower id comes first.

    Attributes:
      temperature: 0 takes the most probable token, and then the others mean nothing.
      top_k: tokens to keep, 0 for all.
      top_p: in (0, 1], 1 for all.
    """

    temperature: float
    top_k: int
    top_p: float


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
    keys = jnp.broadcast_to(root, addresses.shape[:1])
    return lax.fori_loop(
        0,
        len(ADDRESS_FIELDS),
        lambda field, keys: jax.vmap(jax.random.fold_in)(keys, addresses[:, field]),
        keys,
    )


def sample_token(
    logits: jax.Array, keys: jax.Array, chosen_by: Filter
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws one token per row as argmax of log-probability + Gumbel noise.

    The noise belongs to (key, token id), so it survives a change of rank between nearly
    equal tokens, and a token that wins without a filter wins under each filter keeping it.
    Nothing is sorted without a filter. Top-k selects k tokens; top-p alone selects
    NUM_CANDIDATES, and sorts the vocabulary only in a turn where their mass falls short
    of `top_p` in some row. The result is that of the full sort either way.

    Args:
      logits: [B, V]; turned into float32 first.
      keys: [B] keys, one per row; ignored at temperature 0.
      chosen_by: how.

    Returns:
      Tokens [B] int32, their log-probabilities [B] under softmax(logits), and [B] under
      the distribution they were drawn from (0 at temperature 0).
    """
    logits = logits.astype(jnp.float32)
    if chosen_by.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        sampling_logprobs = jnp.zeros(tokens.shape)
    else:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
        tokens, sampling_logprobs = _choose(logits / chosen_by.temperature, noise, chosen_by)
    return tokens, _logprob(logits, tokens), sampling_logprobs


def _choose(
    scaled: jax.Array, noise: jax.Array, chosen_by: Filter
) -> tuple[jax.Array, jax.Array]:
    """Tokens [B] and their log-probabilities [B] under the filtered distribution."""
    vocab_size, top_p = scaled.shape[-1], chosen_by.top_p
    if chosen_by.top_k:
        values, ids = lax.top_k(scaled, min(chosen_by.top_k, vocab_size))
        return _from_sorted(values, ids, noise, jax.nn.logsumexp(values, axis=-1), top_p)
    if top_p >= 1:
        tokens = jnp.argmax(scaled + noise, axis=-1).astype(jnp.int32)
        return tokens, _logprob(scaled, tokens)
    total = jax.nn.logsumexp(scaled, axis=-1)
    values, ids = lax.top_k(scaled, min(NUM_CANDIDATES, vocab_size))
    mass = jnp.sum(jnp.exp(values - total[:, None]), axis=-1)
    return lax.cond(
        jnp.all(mass >= top_p),
        lambda: _from_sorted(values, ids, noise, total, top_p),
        lambda: _from_sorted(*lax.top_k(scaled, vocab_size), noise, total, top_p),
    )


def _from_sorted(
    values: jax.Array, ids: jax.Array, noise: jax.Array, total: jax.Array, top_p: float
) -> tuple[jax.Array, jax.Array]:
    """Draws among candidates in falling order.

    Args:
      values: [B, C] scaled logits of the candidates.
      ids: [B, C] their token ids.
      noise: [B, V] Gumbel noise, by token id.
      total: [B] log of the mass that `top_p` is a share of.
      top_p: as in `Filter`.

    Returns:
      Tokens [B] int32 and their log-probabilities [B] among those kept.
    """
    if top_p < 1:
        probs = jnp.exp(values - total[:, None])
        mass_before = jnp.cumsum(probs, axis=-1) - probs
        values = jnp.where(mass_before < top_p, values, -jnp.inf)
    choice = jnp.argmax(values + jnp.take_along_axis(noise, ids, axis=-1), axis=-1)
    return _pick(ids, choice).astype(jnp.int32), _logprob(values, choice)


def _logprob(logits: jax.Array, index: jax.Array) -> jax.Array:
    """log softmax(logits)[b, index[b]] for each row b, without the [B, N] softmax."""
    return _pick(logits, index) - jax.nn.logsumexp(logits, axis=-1)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """values[b, index[b]] for each row b: [B, N], [B] -> [B]."""
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
