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
from jaxtyping import Array, Bool, Float, Float32, Int32, Key, Shaped, UInt32

# A filter looks among the first number of most probable tokens if no row's top-k asks for more,
# else among the second, and sorts the vocabulary where their mass falls short of top-p.
NUM_CANDIDATES = (64, 512)


@jax.jit
def make_row_keys(addresses: UInt32[Array, "B 6"]) -> Key[Array, " B"]:
    """Random keys of the requests at `addresses`, which are in the order of `Address`.

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
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    temperature: Float32[Array, " B"],
    top_k: Int32[Array, " B"],
    top_p: Float32[Array, " B"],
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
    """Draws one token per row as argmax of log-probability + Gumbel noise.

    The noise belongs to (key, token id), so it survives a change of rank between nearly
    equal tokens, and a token that wins without a filter wins under each filter keeping it.

    Rows are of three kinds. Each kind is computed for all rows if any row is of it, and
    skipped otherwise; what it computes for rows of another kind means nothing.

        temperature        0         1.1        1.1       0.6
        top_k, top_p       -        0, 1.0    20, 1.0   0, 0.95
        kind            greedy   unfiltered       filtered

    Args:
      logits: turned into float32 first.
      keys: a greedy row ignores its own.
      temperature: see `SamplingParams`.
      top_k: likewise.
      top_p: likewise.

    Returns:
      Tokens and their log-probabilities under softmax(logits).
    """
    logits = logits.astype(jnp.float32)
    is_greedy = temperature == 0
    is_filtered = ~is_greedy & ((top_k > 0) | (top_p < 1))
    # Written as XLA compiles a division by a constant: a product with the reciprocal. The same
    # address must draw the same tokens as when the temperature was a constant.
    factors = (1 / jnp.where(is_greedy, 1.0, temperature))[:, None]

    def unfiltered() -> Int32[Array, " B"]:
        return _argmax(logits * factors + _noise(keys, logits.shape[1]))

    def filtered() -> Int32[Array, " B"]:
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


def _if_any(
    rows: Bool[Array, " B"], draw: Callable[[], Int32[Array, " B"]]
) -> Int32[Array, " B"]:
    """`draw()` if any of `rows` is True; else zeros, at no cost."""
    return lax.cond(jnp.any(rows), draw, lambda: jnp.zeros(rows.shape, jnp.int32))


def _draw_filtered(
    scaled: Float32[Array, "B V"],
    keys: Key[Array, " B"],
    top_k: Int32[Array, " B"],
    top_p: Float32[Array, " B"],
    rows: Bool[Array, " B"],
) -> Int32[Array, " B"]:
    """Tokens of `rows`, which filter; the result is that of a full sort.

    Args:
      scaled: logits over temperature.
      keys: of the noise.
      top_k: see `SamplingParams`.
      top_p: likewise.
      rows: the others are ignored.
    """
    vocab_size = scaled.shape[-1]
    few, many = (min(number, vocab_size) for number in NUM_CANDIDATES)
    by_mass = top_k == 0  # top-p alone
    noise = lambda: _noise(keys, vocab_size)  # noqa: E731

    def among_all() -> Int32[Array, " B"]:
        values, ids = lax.top_k(scaled, vocab_size)
        total = jax.nn.logsumexp(scaled, axis=-1)
        return _draw_sorted(values, ids, noise, total, top_k, top_p)

    def among_few() -> Int32[Array, " B"]:
        values, ids = lax.top_k(scaled, few)
        return _draw_sorted(values, ids, noise, None, top_k, top_p)

    def among_many() -> Int32[Array, " B"]:
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
    values: Float32[Array, "B C"],
    ids: Int32[Array, "B C"],
    noise: Callable[[], Float32[Array, "B V"]],
    total: Float32[Array, " B"] | None,
    top_k: Int32[Array, " B"],
    top_p: Float32[Array, " B"],
) -> Int32[Array, " B"]:
    """Tokens drawn among candidates in falling order, as many as the filters need.

    Args:
      values: scaled logits of the C candidates.
      ids: their token ids.
      noise: gives the noise by token id.
      total: log of the whole vocabulary's mass, which top-p alone is a share of; None where
        every row has a top-k.
      top_k: see `SamplingParams`.
      top_p: likewise.
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


def _noise(keys: Key[Array, " B"], vocab_size: int) -> Float32[Array, "B V"]:
    """Gumbel noise."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,)))(keys)


def _argmax(values: Float32[Array, "B C"]) -> Int32[Array, " B"]:
    """Of equals the first."""
    return jnp.argmax(values, axis=-1).astype(jnp.int32)


def _pick(values: Shaped[Array, "B C"], index: Int32[Array, " B"]) -> Shaped[Array, " B"]:
    """values[b, index[b]] for each row b."""
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
