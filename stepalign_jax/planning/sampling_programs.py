# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The programs of a sampling phase at their largest shapes, and what lies beside each.

    layout     stacked weights -> a copy that decoding reads    the state
    prefill    prompts -> their keys and values                 stacked weights, state, cache
    copy       these into rows of the cache                     both forms of the weights, state
    decode     draws tokens; the cache in place                 stacked weights, state, a batch
    resize     a layer of the cache -> a wider one              both forms, state, a batch, and
                                                                the other layers, widened

where a batch is the last one that was prefilled. Each program meets narrower prompts and caches
too: `Program.shapes` counts them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from stepalign_jax.model.cache import Cache
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.parallel.mesh import num_pieces
from stepalign_jax.planning.program import Bytes, Program, held
from stepalign_jax.planning.workload import Sampling
from stepalign_jax.sampling.decode import copy_rows, decode_chunk, prefill, resize_layer
from stepalign_jax.sampling.layout import batch_shards, preparation, rules_of, whole_batch
from stepalign_jax.sampling.programs import (
    abstract_cache,
    abstract_variables,
    copy_arguments,
    decode_arguments,
    prefill_arguments,
    resize_arguments,
)
from stepalign_jax.sampling.scheduler import (
    PrefillBatch,
    cache_widths,
    prefill_batches,
    prompt_bucket,
)


class SamplingPrograms:
    """Makes the programs with which one model samples on the chips of a mesh."""

    def __init__(self, model: Qwen3, mesh: Any, stacked: Any, beside: Bytes):
        """Makes the programs of a model.

        Args:
          model: unrolled.
          mesh: where it runs.
          stacked: shapes with shardings of its variables before they are laid out for decoding.
          beside: bytes per chip of all else that lies there meanwhile.
        """
        self._model, self._mesh, self._stacked = model, mesh, stacked
        self._before, self._throughout = held(stacked), beside
        self._weights = held(abstract_variables(model, mesh))
        self._shards = batch_shards(model.config, mesh)

    def phase(self, phase: str, how: Sampling) -> Iterator[Program]:
        """Yields them in the order of their first calls, decoding with narrower caches last."""
        model, mesh, weights = self._model, self._mesh, self._weights
        slots, widths = whole_batch(how.slots, self._shards), cache_widths(how.prompt, how.new)
        prompts = sorted({prompt_bucket(length) for length in range(1, how.prompt)})
        # The widest cache of a call depends on its longest prompt, mostly a long one.
        longer = [prompt for prompt in prompts if 2 * prompt >= prompts[-1]]
        caches = {width for prompt in longer for width in cache_widths(prompt + 1, how.new)}
        [batch] = prefill_batches(
            {0: (0,) * how.prompt}, [0], 0, slots, num_shards=self._shards
        )
        rows, prompt, widest = batch.num_rows, batch.width, widths[-1]
        prefilled, cache = held(self._prefilled(batch)), self._cache(slots, widest)
        beside = self._throughout + self._before
        program = partial(self._program, phase)
        yield self._layout(phase)
        yield program(
            f"prefill {rows} x {prompt}",
            prefill,
            lambda: prefill_arguments(model, mesh, num_rows=rows, width=prompt),
            given=weights,
            beside=beside + cache,
            returns="cache",
            results=prefilled.total(),
            temporaries=layer_bytes(model, rows // self._shards * prompt),
            shapes=len(prompts),
        )
        yield program(
            f"copy {rows} x {prompt}",
            copy_rows,
            lambda: self._copy_arguments(batch, slots, widest),
            also=(slots, widest),
            given=cache + prefilled,
            beside=beside + weights,
            shapes=sum(filled <= width for filled in prompts for width in caches),
        )
        decoding = beside + prefilled
        yield self._decode(phase, slots, widest, decoding)._replace(shapes=len(caches))
        if len(widths) > 1:
            narrower = widths[-2]
            layers = model.config.num_layers
            others = Counter({kind: n - n // layers for kind, n in cache.items()})
            yield program(
                f"resize to {slots} x {widest}",
                resize_layer,
                lambda: resize_arguments(
                    model, mesh, num_slots=slots, width=narrower, to=widest
                ),
                also=(narrower,),
                given=held(abstract_cache(model, mesh, slots, narrower)[:1]),
                beside=decoding + weights + others,
                returns="cache",
                results=cache.total() // layers,
                shapes=sum(_may_follow(old, new) for old in caches for new in caches),
            )
        for width in reversed(widths[:-1]):
            yield self._decode(phase, slots, width, decoding)._replace(decides=False)

    def _layout(self, phase: str) -> Program:
        mesh = self._mesh if self._mesh.size > 1 else None
        unroll = jax.jit(preparation(self._model, mesh, tuple(self._stacked), 0))  # pyright: ignore[reportArgumentType]
        return self._program(
            phase,
            "layout",
            unroll,
            lambda: (self._stacked,),
            given=self._before,
            beside=self._throughout,
            returns="weights",
            results=self._weights.total(),
        )

    def _decode(self, phase: str, slots: int, width: int, beside: Bytes) -> Program:
        model, mesh = self._model, self._mesh
        return self._program(
            phase,
            f"decode {slots} x {width}",
            decode_chunk,
            lambda: decode_arguments(model, mesh, num_slots=slots, width=width),
            given=self._weights + self._cache(slots, width),
            beside=beside,
            temporaries=_draw_bytes(model, slots // self._shards) + self._reordered(),
        )

    def _program(
        self,
        phase: str,
        name: str,
        function: Any,
        arguments: Callable[[], tuple[Any, ...]],
        *,
        given: Bytes,
        beside: Bytes,
        also: tuple[int, ...] = (),
        returns: str = "rows",
        results: int = 0,
        temporaries: int = 0,
        shapes: int = 1,
    ) -> Program:
        model = self._model
        made_of = (*also, model.config, model.dtype, model.lora, model.kernel)
        return Program(
            phase=phase,
            name=name,
            made_of=made_of,
            function=function,
            arguments=arguments,
            mesh=self._mesh,
            given=given,
            beside=beside,
            returns=returns,
            results=results,
            temporaries=temporaries,
            shapes=shapes,
        )

    def _reordered(self) -> int:
        """Of kernels of q, k and v in the compiler's own order, which decoding makes, about."""
        sizes, itemsize = self._model.config, jnp.dtype(self._model.dtype).itemsize
        heads = (sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_dim
        kernels = sizes.num_layers * sizes.hidden_size * heads * itemsize
        return kernels // num_pieces(self._mesh, dict(rules_of(sizes, self._mesh))["heads"])

    def _cache(self, slots: int, width: int) -> Bytes:
        return held(abstract_cache(self._model, self._mesh, slots, width))

    def _copy_arguments(self, batch: PrefillBatch, slots: int, width: int) -> tuple[Any, ...]:
        return copy_arguments(
            self._model,
            self._mesh,
            num_slots=slots,
            width=width,
            num_rows=batch.num_rows,
            filled=batch.width,
        )

    def _prefilled(self, batch: PrefillBatch) -> Cache:
        """Keys and values of a batch."""
        return abstract_cache(self._model, self._mesh, batch.num_rows, batch.width)


def layer_bytes(model: Qwen3, tokens: int) -> int:
    """What a layer's activations of so many tokens take in a forward pass, about."""
    sizes = model.config
    wide = 2 * sizes.hidden_size + 2 * sizes.intermediate_size
    return tokens * wide * jnp.dtype(model.dtype).itemsize


def _draw_bytes(model: Qwen3, rows: int) -> int:
    """What drawing takes, about: eight arrays of logits in float32."""
    return 8 * 4 * rows * model.config.vocab_size


def _may_follow(old: int, new: int) -> bool:
    """Whether a cache of one width may be resized to another, see `scheduler.resized`."""
    return new > old or 2 * new <= old
