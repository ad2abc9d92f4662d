# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws one token per row from logits, each row with parameters and noise of its own.

Parameters are arrays, so one program serves every mixture of them. What they ask for decides
at run time what is computed: no noise where every row is greedy, nothing sorted where no row
filters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

# A filter looks among the first number of most probable tokens if no row's top-k asks for more,
# else among the second, and sorts the vocabulary where their mass falls short of top-p.
NUM_CANDIDATES = (64, 512)


@jax.jit
def make_row_keys(addresses: jax.Array) -> jax.Array:
    """Random keys [B] of the requests at `addresses`, [B, 6] uint32 in the order of `Address`.

    The seed makes a key, and every further field is folded into it.
    """
    # The generator is named, because its bits are part of what a run repeats.
    make_key = lambda seed: jax.random.key(seed, impl="threefry2x32")  # noqa: E731
    return lax.fori_loop(
        1,
        addresses.shape[1],
        lambda field, keys: jax.vmap(jax.random.fold_in)(keys, addresses[:, field]),
        jax.vmap(make_key)(addresses[:, 0]),
    )


def sample_token(
    logits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row as argmax of log-probability + Gumbel noise.

    The noise belongs to (key, token id), so it survives a change of rank between nearly
    equal tokens, and a token that wins without a filter wins under each filter keeping it.

    Rows are of three kinds. Each kind is computed for all rows if any row is of it, and
    skipped otherwise; what it computes for rows of another kind means nothing.

        temperature        0         1.1        1.1       0.6
        top_k, top_p       -        0, 1.0    20, 1.0   0, 0.95
        kind            greedy   unfiltered       filtered

    Args:
      logits: [B, V]; turned into float32 first.
      keys: [B] keys; a greedy row ignores its own.
      temperature: [B] float32, see `SamplingParams`.
      top_k: [B] int32.
      top_p: [B] float32.

    Returns:
      Tokens [B] int32 and their log-probabilities [B] under softmax(logits).
    """
    logits = logits.astype(jnp.float32)
    is_greedy = temperature == 0
    is_filtered = ~is_greedy & ((top_k > 0) | (top_p < 1))
    # Written as XLA compiles a division by a constant: a product with the reciprocal. The same
    # address must draw the same tokens as when the temperature was a constant.
    factors = (1 / jnp.where(is_greedy, 1.0, temperature))[:, None]

    def unfiltered() -> jax.Array:
        return _argmax(logits * factors + _noise(keys, logits.shape[1]))

    def filtered() -> jax.Array:
        return _draw_filtered(logits * factors, keys, top_k, top_p, is_filtered)

    tokens = jnp.where(
        is_greedy,
        _if_any(is_greedy, lambda: _argmax(logits)),
        jnp.where(
            is_filtered,
            _if_any(is_filtered, filtered),
            _if_any(~is_greedy & ~is_filtered, unfiltered),
        ),
    )
    return tokens, _pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def _if_any(rows: jax.Array, draw: Callable[[], jax.Array]) -> jax.Array:
    """`draw()`, [B] int32, if any of `rows`, [B] bool, is True; else zeros, at no cost."""
    return lax.cond(jnp.any(rows), draw, lambda: jnp.zeros(rows.shape, jnp.int32))


def _draw_filtered(
    scaled: jax.Array, keys: jax.Array, top_k: jax.Array, top_p: jax.Array, rows: jax.Array
) -> jax.Array:
    """Tokens [B] of `rows`, which filter; the result is that of a full sort.

    Args:
      scaled: [B, V] logits over temperature.
      keys: [B] keys of the noise.
      top_k: [B], see `SamplingParams`.
      top_p: [B].
      rows: [B] bool; the others are ignored.
    """
    vocab_size = scaled.shape[-1]
    few, many = (min(number, vocab_size) for number in NUM_CANDIDATES)
    by_mass = top_k == 0  # top-p alone
    noise = lambda: _noise(keys, vocab_size)  # noqa: E731

    def among_all() -> jax.Array:
        values, ids = lax.top_k(scaled, vocab_size)
        total = jax.nn.logsumexp(scaled, axis=-1)
        return _draw_sorted(values, ids, noise, total, top_k, top_p)

    def among_few() -> jax.Array:
        values, ids = lax.top_k(scaled, few)
        return _draw_sorted(values, ids, noise, None, top_k, top_p)

    def among_many() -> jax.Array:
        total = jax.nn.logsumexp(scaled, axis=-1)
        values, ids = lax.top_k(scaled, many)
        mass = jnp.sum(jnp.exp(values - total[:, None]), axis=-1)
        enough = jnp.where(by_mass, mass >= top_p, top_k <= many)
        return lax.cond(
            jnp.all(enough | ~rows),
            lambda: _draw_sorted(values, ids, noise, total, top_k, top_p),
            among_all,
        )

    if vocab_size == few:
        return among_all()
    return lax.cond(jnp.all((~by_mass & (top_k <= few)) | ~rows), among_few, among_many)


def _draw_sorted(
    values: jax.Array,
    ids: jax.Array,
    noise: Callable[[], jax.Array],
    total: jax.Array | None,
    top_k: jax.Array,
    top_p: jax.Array,
) -> jax.Array:
    """Tokens [B] drawn among candidates in falling order, as many as the filters need.

    Args:
      values: [B, C] scaled logits of the candidates.
      ids: [B, C] their token ids.
      noise: gives the noise [B, V], by token id.
      total: [B] log of the whole vocabulary's mass, which top-p alone is a share of; None
        where every row has a top-k.
      top_k: [B], see `SamplingParams`.
      top_p: [B].
    """
    by_mass, ranks = (top_k == 0)[:, None], jnp.arange(values.shape[1])[None]
    values = jnp.where(by_mass | (ranks < top_k[:, None]), values, -jnp.inf)
    kept = jax.nn.logsumexp(values, axis=-1)
    total = kept if total is None else jnp.where(by_mass[:, 0], total, kept)
    probs = jnp.exp(values - total[:, None])
    mass_before = jnp.cumsum(probs, axis=-1) - probs
    # At top_p = 1 rounding must not end the sum before the last candidate.
    nucleus = (mass_before < top_p[:, None]) | (top_p[:, None] >= 1)
    # Noise is made where it is looked up, so XLA computes no more of it than that.
    own = jnp.take_along_axis(noise(), ids, axis=-1)
    return _pick(ids, _argmax(jnp.where(nucleus, values, -jnp.inf) + own))


def _noise(keys: jax.Array, vocab_size: int) -> jax.Array:
    """Gumbel noise [B, V] of keys [B]."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,)))(keys)


def _argmax(values: jax.Array) -> jax.Array:
    """[B, N] -> [B] int32; of equals the first."""
    return jnp.argmax(values, axis=-1).astype(jnp.int32)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """values[b, index[b]] for each row b: [B, N], [B] -> [B]."""
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
