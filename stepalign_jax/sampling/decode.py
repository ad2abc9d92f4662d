# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The device's part of sampling: the programs that prefill, copy, resize and decode.

A slot holds one request. The prefill computes keys and values of all but the last prompt
token, which is the first that decoding feeds; so a request of n completion tokens takes n
decode steps, and the prefill needs no logits. Prompts are right-padded, so cache slot ==
position:

    cache slot       0   1   2   3   4   5      a prompt of three tokens, prefill width 4
    prefill          a   b   -   -
    step 0 feeds             c                  position 2; draws d
    step 1 feeds                 d              position 3; draws $, the stop token

A decoded token overwrites the padding that the prefill left in its cache slot before any
query can see it, for a query at position p attends to cache slots <= p only. What an
earlier request left behind is out of sight for the same reason: if the row above is given
to the prompt "x y", a step feeds y at position 1 and sees slots 0 and 1 alone.

    cache slot       0   1   2   3   4   5
    copy_rows        x   -   -   -              prefill width 4 again
    step 0 feeds         y                      position 1

Between programs the cache stays on the device, where it is updated in place; the rest of
a slot's state is a few numbers, which the host keeps. Nothing of a request is compiled in.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from stepalign_jax.model.cache import Cache, LayerCache, init_cache
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.parallel.mesh import whole_copy
from stepalign_jax.sampling.draw import make_row_keys, sample_token
from stepalign_jax.sampling.layout import batch_axes, batch_shards, sampling_rules_of
from stepalign_jax.sampling.request import Request

CACHE_AXES = ("batch", "kv_heads", None, None)


class Slots(NamedTuple):
    """Where decoding stands, one row per slot: NumPy on the host, JAX arrays in a program.

    Attributes:
      tokens: what the next step feeds.
      positions: where it stands.
      emitted: completion tokens drawn so far.
      done: a slot without a request is done. Its row is computed like the others and changes
        nothing but its own part of the cache.
    """

    tokens: Int32[Any, " B"]
    positions: Int32[Any, " B"]
    emitted: Int32[Any, " B"]
    done: Bool[Any, " B"]


class SlotRequests(NamedTuple):
    """What the request in each slot asks for; see `Address` and `SamplingParams`.

    Attributes:
      temperature: 0 in a slot without a request, which then costs no noise.
      stop_ids: the model's own among them; -1, which is no token, pads them.
    """

    addresses: UInt32[Any, "B 6"]
    temperature: Float32[Any, " B"]
    top_k: Int32[Any, " B"]
    top_p: Float32[Any, " B"]
    max_new_tokens: Int32[Any, " B"]
    stop_ids: Int32[Any, "B K"]


def slot_requests(
    requests: Sequence[Request], stop_ids: tuple[int, ...], num_stops: int
) -> SlotRequests:
    """NumPy rows of `requests`; with `stop_ids` each has at most K = `num_stops` of them."""
    stops = np.full((len(requests), num_stops), -1, np.int32)
    for row, request in zip(stops, requests, strict=True):
        own = (*stop_ids, *request.params.stop_ids)
        row[: len(own)] = own
    params = [request.params for request in requests]
    return SlotRequests(
        addresses=np.array([r.address for r in requests], np.uint32).reshape(-1, 6),
        temperature=np.array([p.temperature for p in params], np.float32),
        top_k=np.array([p.top_k for p in params], np.int32),
        top_p=np.array([p.top_p for p in params], np.float32),
        max_new_tokens=np.array([p.max_new_tokens for p in params], np.int32),
        stop_ids=stops,
    )


@functools.partial(jax.jit, static_argnames=("config", "num_slots", "width", "dtype"))
def empty_cache(config: Qwen3Config, num_slots: int, width: int, dtype: Any) -> Cache:
    """A cache for `num_slots` slots, `width` cache slots each."""
    return _pinned(config, init_cache(config, num_slots, width, dtype))


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def prefill(
    model: Qwen3,
    variables: Any,
    tokens: Int32[Array, "R P"],
    prefix: Cache | None,
    dtype: Any,
) -> Cache:
    """Keys and values of prompts, padding included, behind a prefix that they share.

    Args:
      model: unrolled (`scan_layers=False`).
      variables: the model's collections in the decode layout.
      tokens: prompts without what stands in the prefix, right-padded; on a mesh the shards
        of a batch divide R.
      prefix: cache of W cache slots, or None (W = 0): one row, and on a mesh the same in each
        shard.
      dtype: of keys and values.

    Returns:
      A cache of R rows and W + P cache slots.
    """
    num_rows, length = tokens.shape
    first = 0 if prefix is None else prefix[0].num_slots
    cache = init_cache(model.config, num_rows, first + length, dtype)
    if prefix is not None:
        per_copy = num_rows // prefix[0].k.shape[0]
        wide = jax.tree.map(lambda leaf: jnp.repeat(leaf, per_copy, axis=0), prefix)
        cache = jax.tree.map(
            lambda leaf, new: lax.dynamic_update_slice(leaf, new, (0, 0, 0, 0)), cache, wide
        )
    positions = first + jnp.arange(length, dtype=jnp.int32)[None]
    with sampling_rules_of(model.config):
        filled: Any = model.apply(variables, tokens, positions=positions, cache=cache)[1]
    return _pinned(model.config, filled)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def copy_rows(
    config: Qwen3Config,
    cache: Cache,
    prefilled: Cache,
    sources: Int32[Array, " B"],
    targets: Int32[Array, " B"],
    count: Int32[Array, ""],
) -> Cache:
    """`cache` with rows of `prefilled` at the start of some of its rows.

    Args:
      config: of the network, which says how both lie on a mesh.
      cache: B rows of S cache slots; updated in place.
      prefilled: R rows of at most S cache slots.
      sources: rows of `prefilled`; several slots may take the same.
      targets: rows of `cache`.
      count: how many of the two count.
    """

    copy = functools.partial(_copy_rows, ())
    if batch_shards(config) > 1:
        # Written out: the compiler would gather all of `prefilled` for each row.
        axes = batch_axes(config)
        by_row, whole = PartitionSpec(axes), PartitionSpec()
        copy = jax.shard_map(
            functools.partial(_copy_rows, axes),
            in_specs=(by_row, by_row, whole, whole, whole),
            out_specs=by_row,
            axis_names=set(axes),
        )
    return _pinned(config, copy(cache, prefilled, sources, targets, count))


def _copy_rows(
    axes: tuple[str, ...],
    cache: Cache,
    prefilled: Cache,
    sources: jax.Array,
    targets: jax.Array,
    count: jax.Array,
) -> Cache:
    """`copy_rows` of all rows, or inside a shard_map that cuts both caches by `axes`.

    There each row goes from the shard that has it to all of them, and one keeps it.
    """

    def take(leaf: jax.Array, row: jax.Array) -> jax.Array:
        if not axes:
            return lax.dynamic_slice_in_dim(leaf, row, 1)
        here, row = _on_shard(axes, row, leaf.shape[0])
        own = lax.dynamic_slice_in_dim(leaf, row, 1)
        return lax.psum(jnp.where(here, own, jnp.zeros((), own.dtype)), axes)

    def put(leaf: jax.Array, new: jax.Array, row: jax.Array) -> jax.Array:
        if axes:
            here, row = _on_shard(axes, row, leaf.shape[0])
            old = lax.dynamic_slice(leaf, (row, 0, 0, 0), new.shape)
            new = jnp.where(here, new, old)
        return lax.dynamic_update_slice(leaf, new, (row, 0, 0, 0))

    def body(index: jax.Array, cache: Cache) -> Cache:
        source, target = sources[index], targets[index]
        new = jax.tree.map(lambda leaf: take(leaf, source), prefilled)
        return jax.tree.map(lambda leaf, row: put(leaf, row, target), cache, new)

    return lax.fori_loop(0, count, body, cache)


def _on_shard(
    axes: tuple[str, ...], row: jax.Array, num_rows: int
) -> tuple[jax.Array, jax.Array]:
    """Whether a row is one of this shard's, and its number there; some number if it is not."""
    place = row - lax.axis_index(axes) * num_rows
    return (place >= 0) & (place < num_rows), jnp.clip(place, 0, num_rows - 1)


def resize(config: Qwen3Config, cache: Cache, width: int) -> Cache:
    """`cache` with `width` cache slots, which may not be used itself any more.

    A layer of the old cache goes before the next one is made: old and new one together would be
    the most that a device holds while it samples.
    """
    layers = []
    for layer in cache:
        # Waits: memory is taken when a program is called, and given back when it has run.
        layers.append(jax.block_until_ready(resize_layer(config, layer, width)))
        for leaf in layer:
            leaf.delete()
    return tuple(layers)


@functools.partial(jax.jit, static_argnames=("config", "width"))
def resize_layer(config: Qwen3Config, layer: LayerCache, width: int) -> LayerCache:
    """A copy of `layer` with `width` cache slots: padded at the end, or cut there."""

    def change(leaf: jax.Array, axis: int) -> jax.Array:
        if width <= leaf.shape[axis]:
            return lax.slice_in_dim(leaf, 0, width, axis=axis)
        room = [(0, 0)] * leaf.ndim
        room[axis] = (0, width - leaf.shape[axis])
        return jnp.pad(leaf, room)

    return _pinned(config, (LayerCache(change(layer.k, 3), change(layer.v, 2)),))[0]


@functools.partial(jax.jit, static_argnames=("model", "num_rows"), donate_argnames="cache")
def decode_chunk(
    model: Qwen3,
    variables: Any,
    cache: Cache,
    slots: Slots,
    requests: SlotRequests,
    num_steps: Int32[Array, ""],
    idle_limit: Int32[Array, ""],
    num_rows: int,
) -> tuple[Cache, Slots, Int32[Array, "C B"], Float32[Array, "C B"]]:
    """Draws one token per live slot and decode step.

    It returns after `num_steps` steps, or as soon as `idle_limit` slots are done: enough to
    be worth a refill, or all.

        step        0   1   2   3        num_steps 4, idle_limit 2
        slot 0      d   e   $            done after step 2
        slot 1      k   l   m            goes on in the next call
        slot 2      $   .   .            done after step 0; "." means nothing
                                         two slots are done: step 3 is not taken

    Args:
      model: unrolled (`scan_layers=False`).
      variables: its collections in the decode layout; with `lora` the adapter is on.
      cache: B rows of S cache slots; updated in place.
      slots: where decoding stands.
      requests: what is drawn, and until when.
      num_steps: at most `num_rows`. No position may reach S meanwhile.
      idle_limit: in [1, B].
      num_rows: C, the rows of the result.

    Returns:
      The cache; where decoding stands now; tokens and log-probabilities, see `Rollouts`. A
      slot draws in consecutive steps from step 0 on, until it is done; how many they were,
      `Slots.emitted` tells. What stands behind them means nothing.
    """
    row_keys = make_row_keys(requests.addresses)
    blank = jnp.zeros((num_rows, slots.tokens.shape[0]), jnp.float32)

    def unfinished(carry: Any) -> jax.Array:
        index, _, slots, _ = carry
        return (index < num_steps) & (jnp.sum(slots.done) < idle_limit)

    def step(carry: Any) -> Any:
        index, cache, slots, drawn = carry
        logits, cache = _forward(model, variables, cache, slots)
        # The key of a token depends on its place in the completion, not on the slot or step.
        keys = jax.vmap(jax.random.fold_in)(row_keys, slots.emitted)
        how = (requests.temperature, requests.top_k, requests.top_p)
        with sampling_rules_of(model.config):
            new = sample_token(logits, keys, *how)
        drawn = tuple(
            lax.dynamic_update_index_in_dim(rows, row, index, axis=0)
            for rows, row in zip(drawn, new, strict=True)
        )
        return index + 1, cache, _advance(slots, new[0], requests), drawn

    start = (jnp.int32(0), cache, slots, (blank.astype(jnp.int32), blank))
    _, cache, slots, drawn = lax.while_loop(unfinished, step, start)
    slots, (tokens, logprobs) = jax.tree.map(whole_copy, (slots, drawn))
    return _pinned(model.config, cache), slots, tokens, logprobs


def _forward(
    model: Qwen3, variables: Any, cache: Cache, slots: Slots
) -> tuple[Float32[Array, "B V"], Cache]:
    """Logits of each slot's next token, and the cache with the token just fed."""
    with sampling_rules_of(model.config):
        fed: Any = model.apply(
            variables, slots.tokens[:, None], positions=slots.positions[:, None], cache=cache
        )
        hidden, cache = fed
        logits: Any = model.apply(variables, hidden[:, 0], method=model.logits)
        return with_logical_constraint(logits, ("batch", "vocab")), cache


def _advance(slots: Slots, token: Int32[Array, " B"], requests: SlotRequests) -> Slots:
    """Where decoding stands after each live slot drew its element of `token`."""
    live = ~slots.done
    emitted = slots.emitted + live
    stopped = jnp.any(token[:, None] == requests.stop_ids, axis=1)
    return Slots(
        tokens=jnp.where(live, token, slots.tokens),
        positions=slots.positions + live,
        emitted=emitted,
        done=slots.done | stopped | (emitted >= requests.max_new_tokens),
    )


def _pinned(config: Qwen3Config, cache: Cache) -> Cache:
    """A cache that lies on the mesh as every program expects it.

    Left to the compiler, its layout could differ between programs and cost compilations; and
    rows that the shards do not divide would lie whole on every device.
    """
    num_rows, shards = cache[0].k.shape[0], batch_shards(config)
    assert num_rows % shards == 0, f"{num_rows} rows of a cache on {shards} shards"
    with sampling_rules_of(config):
        return jax.tree.map(lambda leaf: with_logical_constraint(leaf, CACHE_AXES), cache)
