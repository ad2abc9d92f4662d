# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The device's part of sampling: the programs that prefill, copy, resize and decode.

A slot holds one request. The prefill computes keys and values of all but the last prompt
token, which is the first that decoding feeds; so a request of n completion tokens takes n
turns, and the prefill needs no logits. Prompts are right-padded, so cache slot == position:

    cache slot      0   1   2   3   4   5      a prompt of three tokens, prefill width 4
    prefill         a   b   -   -
    turn 0 feeds            c                  position 2; draws d
    turn 1 feeds                d              position 3; draws $, the stop token

A decoded token overwrites the padding that the prefill left in its cache slot before any
query can see it, for a query at position p attends to cache slots <= p only. What an
earlier request left behind is out of sight for the same reason.

Between programs the cache stays on the device, where it is updated in place; the rest of
a slot's state is a few numbers, which the host keeps.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jax import lax

from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import Cache, LayerCache, Qwen3, init_cache
from stepalign_jax.sampling.draw import Filter, make_row_keys, sample_token

_CACHE_AXES = ("batch", "kv_heads", None, None)


class Slots(NamedTuple):
    """Where decoding stands, one row per slot.

    Attributes:
      tokens: [B] int32, what the next turn feeds.
      positions: [B] int32, where it stands.
      emitted: [B] int32 completion tokens drawn so far.
      done: [B] bool; a slot without a request is done. Its row is computed like the
        others and changes nothing but its own part of the cache.
    """

    tokens: Any
    positions: Any
    emitted: Any
    done: Any


class Chunk(NamedTuple):
    """What some turns of decoding drew.

    Attributes:
      tokens: [C, B] int32. A slot draws in consecutive turns from turn 0 on, until it is
        done; how many they were, `slots.emitted` tells. What stands behind them means
        nothing.
      logprobs: [C, B] float32, see `Rollouts`.
      sampling_logprobs: [C, B] float32, see `Rollouts`.
      slots: where decoding stands now.
    """

    tokens: Any
    logprobs: Any
    sampling_logprobs: Any
    slots: Slots


@functools.partial(jax.jit, static_argnames=("config", "num_slots", "width", "dtype"))
def empty_cache(config: Qwen3Config, num_slots: int, width: int, dtype: Any) -> Cache:
    """A cache for `num_slots` slots, `width` cache slots each."""
    return _pinned(init_cache(config, num_slots, width, dtype))


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def prefill(
    model: Qwen3, variables: Any, tokens: jax.Array, prefix: Cache | None, *, dtype: Any
) -> Cache:
    """Keys and values of prompts, padding included, behind a prefix that they share.

    Args:
      model: unrolled (`scan_layers=False`).
      variables: the model's collections in the unrolled layout.
      tokens: [R, P] int32 prompts without what stands in the prefix, right-padded.
      prefix: cache of one row and W cache slots, or None (W = 0).
      dtype: of keys and values.

    Returns:
      A cache of R rows and W + P cache slots.
    """
    num_rows, length = tokens.shape
    first = 0 if prefix is None else prefix[0].num_slots
    cache = init_cache(model.config, num_rows, first + length, dtype)
    if prefix is not None:
        wide = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_rows, axis=0), prefix)
        cache = _copied(cache, wide, 0)
    positions = first + jnp.arange(length, dtype=jnp.int32)[None]
    return _pinned(model.apply(variables, tokens, positions=positions, cache=cache)[1])  # pyright: ignore[reportArgumentType]


@functools.partial(jax.jit, donate_argnames="cache")
def copy_rows(
    cache: Cache, prefilled: Cache, sources: jax.Array, targets: jax.Array, count: jax.Array
) -> Cache:
    """`cache` with rows of `prefilled` at the start of some of its rows.

    Args:
      cache: B rows of S cache slots; updated in place.
      prefilled: R rows of at most S cache slots.
      sources: [B] int32 rows of `prefilled`; several slots may take the same.
      targets: [B] int32 rows of `cache`.
      count: int32 scalar, how many of the two count.
    """

    def body(index: jax.Array, cache: Cache) -> Cache:
        row = jax.tree.map(
            lambda leaf: lax.dynamic_slice_in_dim(leaf, sources[index], 1), prefilled
        )
        return _copied(cache, row, targets[index])

    return _pinned(lax.fori_loop(0, count, body, cache))


def _copied(cache: Cache, rows: Cache, first_row: jax.Array | int) -> Cache:
    """`cache` with `rows` written from `first_row` and cache slot 0 on."""
    update = lambda leaf, new: lax.dynamic_update_slice(leaf, new, (first_row, 0, 0, 0))  # noqa: E731
    return jax.tree.map(update, cache, rows)


@functools.partial(jax.jit, static_argnames="width")
def resize(cache: Cache, *, width: int) -> Cache:
    """A copy of `cache` with `width` cache slots: padded at the end, or cut there."""

    def change(leaf: jax.Array, axis: int) -> jax.Array:
        if width <= leaf.shape[axis]:
            return lax.slice_in_dim(leaf, 0, width, axis=axis)
        room = [(0, 0)] * leaf.ndim
        room[axis] = (0, width - leaf.shape[axis])
        return jnp.pad(leaf, room)

    return _pinned(tuple(LayerCache(change(c.k, 3), change(c.v, 2)) for c in cache))


@functools.partial(
    jax.jit,
    static_argnames=("model", "num_turns", "max_new_tokens", "chosen_by", "stop_ids"),
    donate_argnames="cache",
)
def decode_chunk(
    model: Qwen3,
    variables: Any,
    cache: Cache,
    slots: Slots,
    addresses: jax.Array,
    seed: jax.Array,
    purpose: jax.Array,
    turns: jax.Array,
    idle_limit: jax.Array,
    *,
    num_turns: int,
    max_new_tokens: int,
    chosen_by: Filter,
    stop_ids: tuple[int, ...],
) -> tuple[Cache, Chunk]:
    """Draws one token per live slot and turn.

    It returns after `turns` turns, or as soon as `idle_limit` slots are done: enough to be
    worth a refill, or all.

    Args:
      model: unrolled (`scan_layers=False`).
      variables: its collections in the unrolled layout; with `lora` the adapter is on.
      cache: B rows of S cache slots; updated in place.
      slots: where decoding stands.
      addresses: [B, 4] uint32 of the requests, see `make_row_keys`.
      seed: see there.
      purpose: see there.
      turns: int32 scalar, at most `num_turns`. No position may reach S meanwhile.
      idle_limit: int32 scalar, in [1, B].
      num_turns: C, the rows of the result.
      max_new_tokens: a request is done when it has drawn so many tokens.
      chosen_by: how tokens are drawn.
      stop_ids: a request is done once it has drawn one of these; that token counts.
    """
    row_keys = make_row_keys(seed, purpose, addresses)
    blank = jnp.zeros((num_turns, addresses.shape[0]), jnp.float32)
    drawn = (blank.astype(jnp.int32), blank, blank)

    def unfinished(carry: Any) -> jax.Array:
        index, _, slots, _ = carry
        return (index < turns) & (jnp.sum(slots.done) < idle_limit)

    def turn(carry: Any) -> Any:
        index, cache, slots, drawn = carry
        logits, cache = _forward(model, variables, cache, slots)
        keys = jax.vmap(jax.random.fold_in)(row_keys, slots.emitted)
        new = sample_token(logits, keys, chosen_by)
        drawn = tuple(
            lax.dynamic_update_index_in_dim(rows, row, index, axis=0)
            for rows, row in zip(drawn, new, strict=True)
        )
        return index + 1, cache, _advance(slots, new[0], max_new_tokens, stop_ids), drawn

    start = (jnp.int32(0), cache, slots, drawn)
    _, cache, slots, drawn = lax.while_loop(unfinished, turn, start)
    chunk = Chunk(drawn[0], drawn[1], drawn[2], slots)
    return _pinned(cache), jax.tree.map(_replicated, chunk)


def _forward(
    model: Qwen3, variables: Any, cache: Cache, slots: Slots
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] of each slot's next token, and the cache with the token just fed."""
    fed: Any = model.apply(
        variables, slots.tokens[:, None], positions=slots.positions[:, None], cache=cache
    )
    hidden, cache = fed
    return model.apply(variables, hidden[:, 0], method=model.logits), cache  # pyright: ignore[reportReturnType]


def _advance(
    slots: Slots, token: jax.Array, max_new_tokens: int, stop_ids: tuple[int, ...]
) -> Slots:
    """Where decoding stands after each live slot drew its element of `token` [B]."""
    live = ~slots.done
    emitted = slots.emitted + live
    stopped = jnp.isin(token, jnp.array(stop_ids, jnp.int32))
    return Slots(
        tokens=jnp.where(live, token, slots.tokens),
        positions=slots.positions + live,
        emitted=emitted,
        done=slots.done | stopped | (emitted >= max_new_tokens),
    )


def _pinned(cache: Cache) -> Cache:
    """A cache that lies on the mesh as every program expects it.

    Left to the compiler, its layout could differ between programs and cost compilations.
    """
    return jax.tree.map(lambda leaf: with_logical_constraint(leaf, _CACHE_AXES), cache)


def _replicated(leaf: jax.Array) -> jax.Array:
    """An array that lies whole on every device, so that every host can read it."""
    return with_logical_constraint(leaf, (None,) * leaf.ndim)
