# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws one token per row from logits, each row with parameters and noise of its own.

Parameters are arrays, so one program serves every mixture of them. What they ask for decides
at run time what is computed: no noise where every row is greedy, nothing sorted where no row
filters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.spmd import logical_to_mesh_axes
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int32, Key, Shaped, UInt32

from stepalign_jax.parallel.mesh import active_mesh, num_pieces

# A top-k filter looks among the first of these numbers of most probable tokens that no row's k
# exceeds; last it sorts the vocabulary.
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

        temperature        0              1.1        0.6          1.1        0.6
        top_k, top_p       -           0, 1.0    0, 0.95      20, 1.0   20, 0.95
        drawn         greedily    from the vocabulary    among the most probable

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
    is_whole = ~is_greedy & (top_k == 0)
    is_top_k = ~is_greedy & (top_k > 0)
    # Written as XLA compiles a division by a constant: a product with the reciprocal. The same
    # address must draw the same tokens as when the temperature was a constant.
    factors = (1 / jnp.where(is_greedy, 1.0, temperature))[:, None]

    def whole() -> Int32[Array, " B"]:
        return _draw_whole(logits * factors, keys, jnp.where(is_whole, top_p, 1.0))

    def most_probable() -> Int32[Array, " B"]:
        return _draw_top_k(logits * factors, keys, jnp.where(is_top_k, top_k, 0), top_p)

    tokens = jnp.where(
        is_greedy,
        _if_any(is_greedy, lambda: _argmax(logits)),
        jnp.where(is_whole, _if_any(is_whole, whole), _if_any(is_top_k, most_probable)),
    )
    return tokens, _pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def _if_any(
    rows: Bool[Array, " B"], draw: Callable[[], Int32[Array, " B"]]
) -> Int32[Array, " B"]:
    """`draw()` if any of `rows` is True; else zeros, at no cost."""
    return lax.cond(jnp.any(rows), draw, lambda: jnp.zeros(rows.shape, jnp.int32))


def _draw_whole(
    scaled: Float32[Array, "B V"], keys: Key[Array, " B"], top_p: Float32[Array, " B"]
) -> Int32[Array, " B"]:
    """Tokens drawn from the vocabulary, or from its nucleus where top-p is below 1.

    The nucleus is the smallest set of most probable tokens whose mass reaches top-p, and with
    the last of them all that are as probable as it.
    """

    def nucleus() -> Float32[Array, "B V"]:
        probs = jax.nn.softmax(scaled, axis=-1)
        left_out = (probs < _least_kept(probs, top_p)[:, None]) & (top_p < 1)[:, None]
        return jnp.where(left_out, -jnp.inf, scaled)

    kept = lax.cond(jnp.any(top_p < 1), nucleus, lambda: scaled)
    return _argmax(kept + _noise(keys, jnp.arange(kept.shape[1], dtype=jnp.int32)[None]))


def _least_kept(
    probs: Float32[Array, "B V"], top_p: Float32[Array, " B"]
) -> Float32[Array, " B"]:
    """The largest t for which the probabilities of at least t sum up to `top_p`; 0 if none.

    Floats that are not negative are in the order of their bits, so t is found two bits at a
    time, the highest first: 15 reads of `probs`, where a sort takes many times as long.
    """

    def masses(own: jax.Array, least: jax.Array) -> jax.Array:  # [B, V], [B, 3] -> [B, 3]
        # One reduction of three sums: a CPU adds them side by side, where a sum alone waits
        # for itself at each number.
        bounds = jnp.split(least, least.shape[1], axis=1)
        sums = lax.reduce(
            tuple(jnp.where(own >= bound, own, 0.0) for bound in bounds),
            (jnp.float32(0),) * len(bounds),
            lambda sums, terms: tuple(map(jnp.add, sums, terms)),
            dimensions=(1,),
        )
        return jnp.stack(sums, axis=1)

    if active_mesh() is None:
        total = masses
    else:  # one exchange for the three, which the compiler would make three of
        rows, vocab = _row_and_vocab_axes()
        total = jax.shard_map(
            lambda own, least: lax.psum(masses(own, least), vocab or ()),
            in_specs=(PartitionSpec(rows, vocab), PartitionSpec(rows)),
            out_specs=PartitionSpec(rows),
            check_vma=False,
        )

    def next_bits(place: Int32[Array, ""], bits: Int32[Array, " B"]) -> Int32[Array, " B"]:
        shift = 28 - 2 * place
        tried = bits[:, None] | (jnp.arange(1, 4, dtype=jnp.int32)[None] << shift)
        reached = total(probs, lax.bitcast_convert_type(tried, jnp.float32)) >= top_p[:, None]
        # Sums fall from the first bound to the last, so those that reach it come first.
        return bits | (jnp.sum(reached, axis=1, dtype=jnp.int32) << shift)

    bits = lax.fori_loop(0, 15, next_bits, jnp.zeros(probs.shape[:1], jnp.int32))
    return lax.bitcast_convert_type(bits, jnp.float32)


def _draw_top_k(
    scaled: Float32[Array, "B V"],
    keys: Key[Array, " B"],
    top_k: Int32[Array, " B"],
    top_p: Float32[Array, " B"],
) -> Int32[Array, " B"]:
    """Tokens drawn among the k most probable; the result is that of a full sort.

    Args:
      scaled: logits over temperature.
      keys: of the noise.
      top_k: see `SamplingParams`; rows with 0 are ignored.
      top_p: a share of the mass of those k.
    """
    vocab_size = scaled.shape[-1]
    most = jnp.max(top_k)

    def among(number: int, *more: int) -> Int32[Array, " B"]:
        draw = lambda: _draw_sorted(*_most_probable(scaled, number), keys, top_k, top_p)  # noqa: E731
        return lax.cond(most <= number, draw, lambda: among(*more)) if more else draw()

    return among(*(number for number in NUM_CANDIDATES if number < vocab_size), vocab_size)


def _most_probable(
    scaled: Float32[Array, "B V"], number: int
) -> tuple[Float32[Array, "B C"], Int32[Array, "B C"]]:
    """`lax.top_k`: of equals the lower token id comes first.

    On a mesh each device chooses from its own rows and slice of the vocabulary, and sends no
    more than it chose. Left to the compiler, every device would get all logits.
    """
    if (mesh := active_mesh()) is None:
        best, ids = lax.top_k(scaled, number)
        return best, ids
    rows, vocab = _row_and_vocab_axes()

    def choose(own: jax.Array) -> tuple[jax.Array, jax.Array]:
        best, ids = lax.top_k(own, min(number, own.shape[1]))
        if num_pieces(mesh, vocab) == 1:
            return best, ids
        ids = ids + lax.axis_index(vocab) * own.shape[1]
        best, ids = (lax.all_gather(found, vocab, axis=1, tiled=True) for found in (best, ids))
        best, places = lax.top_k(best, number)
        return best, jnp.take_along_axis(ids, places, axis=1)

    # All devices of a row end with the same, which JAX does not know of gathered values.
    return jax.shard_map(
        choose,
        in_specs=PartitionSpec(rows, vocab),
        out_specs=PartitionSpec(rows),
        check_vma=False,
    )(scaled)


def _row_and_vocab_axes() -> tuple[Any, Any]:
    """The mesh axes that cut rows and the vocabulary under the rules of the flax context."""
    rows, vocab = logical_to_mesh_axes(("batch", "vocab")) or (None, None)
    return rows, vocab


def _draw_sorted(
    values: Float32[Array, "B C"],
    ids: Int32[Array, "B C"],
    keys: Key[Array, " B"],
    top_k: Int32[Array, " B"],
    top_p: Float32[Array, " B"],
) -> Int32[Array, " B"]:
    """Tokens drawn among candidates in falling order, as many as the filters leave.

    Args:
      values: scaled logits of the C candidates.
      ids: their token ids.
      keys: of the noise.
      top_k: see `SamplingParams`.
      top_p: likewise.
    """
    ranks = jnp.arange(values.shape[1])[None]
    values = jnp.where(ranks < top_k[:, None], values, -jnp.inf)
    probs = jnp.exp(values - jax.nn.logsumexp(values, axis=-1, keepdims=True))
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
