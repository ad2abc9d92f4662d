# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The least time of a run's phases: their products and bytes over what the chip does.

Lengths are the most that the config admits, so real runs, whose answers end earlier, take less
of it; no program reaches the roofline, so they also take more. Counted are products with
weights and of attention, weights, the cache, and the logits of the loss. Programs have few
shapes: prompts and rows are padded to theirs, and decoding reads the cache at its whole width.
What that comes to stands beside.

    P weights of layers    D width    V vocabulary    L layers    H heads of size Dh
    products of T tokens   2 P T          of a causal row of W tokens   2 L H Dh W^2
    the head               2 D V T        of one query over C slots     4 L H Dh C
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh

from stepalign_jax.config.schema import Config, LoraTrainable
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import abstract_params
from stepalign_jax.parallel.mesh import num_pieces, unboxed
from stepalign_jax.planning.chips import Chip
from stepalign_jax.planning.workload import Sampling, Workload
from stepalign_jax.sampling.layout import batch_shards, rules_of, whole_batch
from stepalign_jax.sampling.scheduler import cache_bucket, cache_widths, prompt_bucket
from stepalign_jax.training.packing import padded_width

_TILE_BYTES = 16  # per logit of the loss: both sides', their probabilities, float32


class Bound(NamedTuple):
    """The least time of one phase of one step.

    Attributes:
      flops: of all chips together.
      bytes: that each chip reads or writes.
      seconds: the longer of the two.
      by: "products" or "memory", whichever that is.
      shaped: the seconds of the programs' own shapes.
    """

    flops: float
    bytes: float
    seconds: float
    by: str
    shaped: float


class Roofline:
    """Bounds of the phases of a run on `number` chips of one kind."""

    def __init__(
        self, sizes: Qwen3Config, chip: Chip, mesh: Mapping[str, int], dtype_bytes: int
    ):
        """Args: the model's sizes, the chip, sizes of the mesh's axes, bytes of a weight."""
        self._sizes, self._chip, self._mesh, self._bytes = sizes, chip, mesh, dtype_bytes
        self._number = math.prod(mesh.values())
        self._abstract_mesh = AbstractMesh(tuple(mesh.values()), tuple(mesh))
        params = unboxed(abstract_params(sizes))
        self._layers = _size(params["layers"])
        self._head = sizes.hidden_size * sizes.vocab_size

    def sampling(self, how: Sampling, prompts: int) -> Bound:
        """`how.requests` completions behind that many prompts, all to their full length."""
        limit = cache_widths(how.prompt, how.new)[-1]
        reached = range(how.prompt, how.prompt + how.new)
        width = sum(cache_bucket(needed, limit) for needed in reached) / how.new
        rows = whole_batch(prompts, batch_shards(self._sizes, self._abstract_mesh))
        shaped = self._sampling(how, rows, prompt_bucket(how.prompt - 1), width)
        least = self._sampling(how, prompts, how.prompt, how.prompt + how.new / 2)
        return least._replace(shaped=shaped.seconds)

    def _sampling(self, how: Sampling, prompts: int, prompt: int, context: float) -> Bound:
        turns = math.ceil(how.requests / how.slots) * how.new
        per_turn = 2 * (self._layers + self._head) + self._query(context)
        # However the axes are shared between rows and heads, the cache is cut by all of them.
        cache = how.slots * context * self._cache_bytes() / self._number
        weights = self._weight_bytes() * self._mesh["tensor"] / self._sampling_pieces()
        decode = self._bound(turns * how.slots * per_turn, turns * (weights + cache))
        return _sum(decode, self._bound(self._forward(prompts, prompt), weights))

    def _sampling_pieces(self) -> int:
        """Into how many pieces weights are cut while the run samples."""
        mesh = self._abstract_mesh
        return num_pieces(mesh, dict(rules_of(self._sizes, mesh))["heads"])

    def score(self, work: Workload) -> Bound:
        """The teacher's reading of a step's rows; its head is counted in the update."""
        weights = work.parts * self._weight_bytes()
        least, shaped = (
            self._bound(self._forward(work.rows, width), weights)
            for width in (work.teacher_row, padded_width(work.teacher_row))
        )
        return least._replace(shaped=shaped.seconds)

    def update(self, work: Workload, config: Config) -> Bound:
        """The solver's forward and backward pass over a step's rows, and the loss."""
        least, shaped = (
            self._update(work, config, width)
            for width in (work.solver_row, padded_width(work.solver_row))
        )
        return least._replace(shaped=shaped.seconds)

    def _update(self, work: Workload, config: Config, width: int) -> Bound:
        full = not isinstance(config.trainable, LoraTrainable)
        # Forward, again under remat, back to the activations, and to the weights if they train.
        passes = 2 + (config.model.remat == "full") + full
        head_products = (3 if work.teacher_row else 2) + full
        tokens = work.rows * work.completion
        flops = passes * self._forward(work.rows, width)
        flops += head_products * 2 * self._head * tokens
        logits = _TILE_BYTES * self._sizes.vocab_size * tokens / self._number
        return self._bound(flops, logits + passes * work.parts * self._weight_bytes())

    def _forward(self, rows: int, width: float) -> float:
        sizes = self._sizes
        attention = 2 * sizes.num_layers * sizes.num_heads * sizes.head_dim * width
        return rows * width * (2 * self._layers + attention)

    def _query(self, context: float) -> float:
        sizes = self._sizes
        return 4 * sizes.num_layers * sizes.num_heads * sizes.head_dim * context

    def _cache_bytes(self) -> float:
        """Of one token."""
        sizes = self._sizes
        heads = sizes.num_layers * sizes.num_kv_heads * sizes.head_dim
        return 2 * heads * self._bytes

    def _weight_bytes(self) -> float:
        """That a chip reads once; what fsdp cuts is gathered from the others."""
        return (self._layers + self._head) * self._bytes / self._mesh["tensor"]

    def _bound(self, flops: float, read: float) -> Bound:
        by_products = flops / self._number / self._chip.flops
        by_memory = read / self._chip.bandwidth
        by = "products" if by_products >= by_memory else "memory"
        seconds = max(by_products, by_memory)
        return Bound(flops, read, seconds, by, seconds)


def _sum(first: Bound, second: Bound) -> Bound:
    longer = max(first, second, key=lambda bound: bound.seconds)
    return Bound(
        first.flops + second.flops,
        first.bytes + second.bytes,
        first.seconds + second.seconds,
        longer.by,
        first.shaped + second.shaped,
    )


def _size(tree: object) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
