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
# else among the second, then the third where their mass falls short of top-p, and so on; last
# it sorts the vocabulary.
NUM_CANDIDATES = (64, 512, 8_192)


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
        ids = jnp.arange(logits.shape[1], dtype=jnp.int32)[None]
        return _argmax(logits * factors + _noise(keys, ids))

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
    few, *more = (min(number, vocab_size) for number in NUM_CANDIDATES)
    by_mass = top_k == 0  # top-p alone

    def among_few() -> Int32[Array, " B"]:
        values, ids = lax.top_k(scaled, few)
        return _draw_sorted(values, ids, keys, None, top_k, top_p)

    def among(total: Float32[Array, " B"], number: int, *more: int) -> Int32[Array, " B"]:
        values, ids = lax.top_k(scaled, number)
        draw = lambda: _draw_sorted(values, ids, keys, total, top_k, top_p)  # noqa: E731
        if not more:
            return draw()
        mass = jnp.sum(jnp.exp(values - total[:, None]), axis=-1)
        enough = jnp.where(by_mass, mass >= top_p, top_k <= number)
        return lax.cond(jnp.all(enough | ~rows), draw, lambda: among(total, *more))

    def among_many() -> Int32[Array, " B"]:
        wider = [number for number in more if few < number < vocab_size]
        return among(jax.nn.logsumexp(scaled, axis=-1), *wider, vocab_size)

    if vocab_size == few:
        return among_many()
    return lax.cond(jnp.all((~by_mass & (top_k <= few)) | ~rows), among_few, among_many)


def _draw_sorted(
    values: Float32[Array, "B C"],
    ids: Int32[Array, "B C"],
    keys: Key[Array, " B"],
    total: Float32[Array, " B"] | None,
    top_k: Int32[Array, " B"],
    top_p: Float32[Array, " B"],
) -> Int32[Array, " B"]:
    """Tokens drawn among candidates in falling order, as many as the filters need.

    Args:
      values: scaled logits of the C candidates.
      ids: their token ids.
      keys: of the noise.
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
    scores = jnp.where(nucleus, values, -jnp.inf) + _noise(keys, ids)
    return _pick(ids, _argmax(scores))


def _noise(keys: Key[Array, " B"], ids: Int32[Array, "#B C"]) -> Float32[Array, "B C"]:
    """Gumbel noise of the tokens `ids`: the bits of `jax.random.gumbel` at these places.

    JAX would make the noise of the whole vocabulary for a few tokens of it, and on a CPU it
    loops over the rounds of threefry, each a pass over memory.
    """
    high, low = _threefry(jax.random.key_data(keys)[:, :, None], ids.astype(jnp.uint32))
    mantissa = ((high ^ low) >> 9) | jnp.uint32(0x3F800000)
    uniform = lax.bitcast_convert_type(mantissa, jnp.float32) - 1
    least = jnp.finfo(jnp.float32).tiny
    uniform = jnp.maximum(least, uniform * (1 - least) + least)
    return -jnp.log(-jnp.log(uniform))


def _threefry(
    keys: UInt32[Array, "B 2 1"], counts: UInt32[Array, "#B C"]
) -> tuple[UInt32[Array, "B C"], UInt32[Array, "B C"]]:
    """Threefry-2x32 with 20 rounds of the counters (0, count): Salmon et al., "Parallel random
    numbers: as easy as 1, 2, 3", 2011."""
    first, second = keys[:, 0], keys[:, 1]
    schedule = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
    x, y = first, counts + second
    for group in range(5):
        for shift in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ ((y << shift) | (y >> (32 - shift)))
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def _argmax(values: Float32[Array, "B C"]) -> Int32[Array, " B"]:
    """Of equals the first; NaN counts as the greatest.

    XLA's CPU compiler computes `jnp.argmax` number by number, and fuses into it what makes the
    numbers; it vectorises a maximum. The barrier keeps it from making them twice.
    """
    values = lax.optimization_barrier(values)
    largest = jnp.max(values, axis=-1, keepdims=True)
    ranks = jnp.arange(values.shape[-1], dtype=jnp.int32)[None]
    found = (values == largest) | jnp.isnan(values)
    return jnp.min(jnp.where(found, ranks, values.shape[-1]), axis=-1)


def _pick(values: Shaped[Array, "B C"], index: Int32[Array, " B"]) -> Shaped[Array, " B"]:
    """values[b, index[b]] for each row b."""
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
