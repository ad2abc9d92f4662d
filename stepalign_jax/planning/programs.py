# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The programs of a run at their largest shapes, and what lies beside each on a chip.

    phase      programs                what lies beside them
    sample     prefill, decode         the stacked layers (decoding has a copy), the state
    critique   prefill, decode         the same; of a second model also the base
    score      teacher_hidden          -
    update     whole, or accumulate    the teacher's hidden states of the other parts
    evaluate   prefill, decode         as sample

The programs are the run's own (`sampling.programs`, `training.programs`), with shapes for data.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from stepalign_jax.config.schema import CheckpointCritic, Config, InTurns, LoraTrainable
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.kernels import choose_kernel
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.parallel.mesh import num_shards, use_mesh
from stepalign_jax.planning.fits import bytes_per_device
from stepalign_jax.planning.workload import Sampling, Workload, planned_sizes
from stepalign_jax.sampling.decode import decode_chunk, prefill
from stepalign_jax.sampling.layout import batch_shards, whole_batch
from stepalign_jax.sampling.programs import (
    abstract_cache,
    decode_arguments,
    decode_model,
    prefill_arguments,
)
from stepalign_jax.sampling.scheduler import cache_widths, prefill_batches
from stepalign_jax.training.optimizer import make_optimizer
from stepalign_jax.training.packing import padded, padded_width
from stepalign_jax.training.programs import (
    abstract_base,
    abstract_hidden,
    abstract_sequences,
    abstract_targets,
    make_programs,
)
from stepalign_jax.training.state import abstract_state, make_state, state_shardings
from stepalign_jax.training.step import Method


class Program(NamedTuple):
    """One program of a phase, not yet compiled.

    Attributes:
      phase: see above.
      name: of the program, with its largest shape.
      key: all that its compiled form depends on, beside the code and the compiler.
      function: jitted.
      arguments: makes its arguments, shapes with shardings.
      mesh: where it runs.
      beside: bytes per chip that lie there while it runs and are no argument of it.
      results: bytes per chip that it returns in memory of their own, about.
      temporaries: bytes per chip that it needs in between, about. Both stand in for the
        compiler's numbers where there is no compiler.
    """

    phase: str
    name: str
    key: str
    function: Any
    arguments: Callable[[], tuple[Any, ...]]
    mesh: Any
    beside: int
    results: int
    temporaries: int

    def lower(self) -> Any:
        """Traces it; the mesh needs devices for it, though none that exist."""
        with use_mesh(self.mesh):
            return self.function.lower(*self.arguments())


class RunPrograms:
    """Makes the programs of a run on the chips of a mesh."""

    def __init__(self, config: Config, sizes: Qwen3Config, mesh: Any):
        """Makes the programs of a run.

        Args:
          config: of the run.
          sizes: of its model.
          mesh: where it runs; an AbstractMesh of chips that nothing is compiled for.

        Raises:
          UserError: the chips lack the attention that `model.attention` names.
        """
        self._config, self._sizes, self._mesh = config, sizes, mesh
        self._dtype = jnp.dtype(config.model.compute_dtype)
        trained = config.trainable
        self._lora = LoraSpec.of(trained) if isinstance(trained, LoraTrainable) else None

    def all(self, work: Workload) -> Iterator[Program]:
        """Yields the programs in the order of a step, those of evaluation last."""
        yield from self.sampling("sample", work.sample)
        if work.critique is not None:
            yield from self.critique(work.critique)
        if work.teacher_row:
            yield self.score(work)
        yield self.update(work)
        yield from self.sampling("evaluate", work.evaluate)

    def sampling(self, phase: str, how: Sampling) -> Iterator[Program]:
        """Prefill and decode of the solver: the base with its adapter."""
        kernel = self._kernel(self._sizes, self._dtype)
        model = decode_model(self._sizes, self._dtype, self._lora, kernel=kernel)
        yield from self._sampling(phase, how, model, self._stacked(self._sizes) + self._state)

    def critique(self, how: Sampling) -> Iterator[Program]:
        """Prefill and decode of a critic on these chips."""
        critic, beside = self._config.critic, self._stacked(self._sizes) + self._state
        sizes, dtype = self._sizes, self._dtype
        if isinstance(critic, CheckpointCritic):
            sizes, dtype = planned_sizes(critic.path, "critic.path"), critic.compute_dtype
            base = 0 if isinstance(critic.placement, InTurns) else self._base_bytes(self._sizes)
            beside = base + self._state * bool(base) + self._stacked(sizes)
        kernel = self._kernel(sizes, dtype)
        model = decode_model(sizes, dtype, None, kernel=kernel)
        yield from self._sampling("critique", how, model, beside)

    def _sampling(
        self, phase: str, how: Sampling, model: Qwen3, beside: int
    ) -> Iterator[Program]:
        mesh, shards = self._mesh, batch_shards(model.config, self._mesh)
        made_of = (model.config, model.dtype, model.lora, model.kernel)
        slots = whole_batch(how.slots, shards)
        width = cache_widths(how.prompt, how.new)[-1]
        cache = bytes_per_device(abstract_cache(model, mesh, slots, width))
        [batch] = prefill_batches({0: (0,) * how.prompt}, [0], 0, slots, num_shards=shards)
        yield self._program(
            phase,
            f"prefill {batch.num_rows} x {batch.width}",
            made_of,
            prefill,
            lambda: prefill_arguments(model, mesh, num_rows=batch.num_rows, width=batch.width),
            beside=beside + cache,
            results=bytes_per_device(abstract_cache(model, mesh, batch.num_rows, batch.width)),
            temporaries=_layer_bytes(model, batch.num_rows // shards * batch.width),
        )
        yield self._program(
            phase,
            f"decode {slots} x {width}",
            made_of,
            decode_chunk,
            lambda: decode_arguments(model, mesh, num_slots=slots, width=width),
            beside=beside,
            results=0,
            temporaries=2 * 4 * slots // shards * model.config.vocab_size,
        )

    def score(self, work: Workload) -> Program:
        """The teacher's reading of one micro-batch."""
        rows, width, tokens = self._part(work, work.teacher_row)
        here = rows * width // num_shards(self._mesh)
        return self._program(
            "score",
            f"score {rows} x {width}",
            (*self._method_made_of, tokens),
            self._step_programs.teacher_hidden,
            lambda: (
                self._abstract_state,
                abstract_base(self._mesh, self._sizes, self._dtype),
                abstract_sequences(self._mesh, rows=rows, width=width, num_tokens=tokens),
            ),
            beside=self._hidden_bytes(work, tokens),
            results=self._hidden_bytes(work, tokens, parts=1),
            temporaries=_layer_bytes(self._method.model, here),
        )

    def update(self, work: Workload) -> Program:
        """The gradient of one micro-batch, and where there is only one the whole update."""
        rows, width, tokens = self._part(work, work.solver_row)
        mesh, whole, model = self._mesh, work.parts == 1, self._method.model
        here = rows * width // num_shards(mesh)
        saved = here * self._sizes.hidden_size * self._dtype.itemsize * self._sizes.num_layers
        if model.remat != "full":  # about: products too, and of the MLP
            saved *= 2 + 3 * self._sizes.intermediate_size // self._sizes.hidden_size
        tile = getattr(self._config.objective, "token_tile", 256)

        def arguments() -> tuple[Any, ...]:
            state, hidden = self._abstract_state, None
            if work.teacher_row:
                hidden = abstract_hidden(mesh, self._sizes, self._dtype, num_tokens=tokens)
            rest = (
                state,
                abstract_base(mesh, self._sizes, self._dtype),
                abstract_sequences(mesh, rows=rows, width=width, num_tokens=tokens),
                abstract_targets(mesh, num_tokens=tokens),
                hidden,
            )
            return rest if whole else (self._abstract_sums(), *rest)

        return self._program(
            "update",
            f"{'update' if whole else 'gradient'} {rows} x {width}",
            (*self._method_made_of, tokens, whole),
            self._step_programs.whole if whole else self._step_programs.accumulate,
            arguments,
            beside=self._hidden_bytes(work, tokens),
            results=0,
            temporaries=saved + _layer_bytes(model, here) + _tile_bytes(model, tile),
        )

    def _part(self, work: Workload, row: int) -> tuple[int, int, int]:
        """Rows, their width and the packed tokens of a micro-batch, all at their largest."""
        rows, shards = work.rows // work.parts, num_shards(self._mesh)
        return rows, padded_width(row), shards * padded(rows // shards * work.completion)

    def _hidden_bytes(self, work: Workload, tokens: int, parts: int | None = None) -> int:
        """Of the teacher's states of so many parts; by default those that wait."""
        if not work.teacher_row:
            return 0
        one = abstract_hidden(self._mesh, self._sizes, self._dtype, num_tokens=tokens)
        return bytes_per_device(one) * (work.parts - 1 if parts is None else parts)

    def _program(
        self,
        phase: str,
        name: str,
        made_of: tuple[Any, ...],
        function: Any,
        arguments: Callable[[], tuple[Any, ...]],
        *,
        beside: int,
        results: int,
        temporaries: int,
    ) -> Program:
        key = repr((name, made_of, self._mesh.shape))
        return Program(
            phase, name, key, function, arguments, self._mesh, beside, results, temporaries
        )

    @property
    def _method_made_of(self) -> tuple[Any, ...]:
        """What a step's programs are made of, in words that do not change between processes."""
        config, model = self._config, self._method.model
        return (
            *(model.config, model.dtype, model.lora, model.kernel, model.remat),
            *(config.optimizer, config.train.num_steps, config.objective, config.teacher),
        )

    def _abstract_sums(self) -> Any:
        """The gradient and its companions, which lie as what is trained."""
        state = self._abstract_state
        sums = jax.eval_shape(self._step_programs.zeros, state)
        return sums._replace(
            gradient=jax.tree.map(
                lambda leaf, like: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=like.sharding
                ),
                sums.gradient,
                state.trainable,
            )
        )

    def _kernel(self, sizes: Qwen3Config, dtype: Any) -> str:
        """The attention that the run would take there; that of XLA for an estimate."""
        if isinstance(self._mesh, AbstractMesh):
            return "xla"
        devices, setting = list(self._mesh.devices.flat), self._config.model.attention
        return choose_kernel(setting, devices, dtype=dtype, head_dim=sizes.head_dim)

    @cached_property
    def _method(self) -> Method:
        config, kernel = self._config, self._kernel(self._sizes, self._dtype)
        return Method(
            Qwen3(
                self._sizes,
                self._dtype,
                lora=self._lora,
                remat=config.model.remat,
                kernel=kernel,
            ),
            make_optimizer(config.optimizer, config.train.num_steps),
            config.objective,
            config.teacher,
        )

    @cached_property
    def _step_programs(self) -> Any:
        return make_programs(self._method, shardings=state_shardings(self._abstract_state))

    @cached_property
    def _abstract_state(self) -> Any:
        make = partial(
            make_state,
            optimizer=self._method.optimizer,
            teacher=self._config.teacher,
            starts_from_adapter=bool(getattr(self._config.trainable, "adapter", "")),
        )
        return abstract_state(self._mesh, self._sizes, self._lora, make)

    @cached_property
    def _state(self) -> int:
        return bytes_per_device(self._abstract_state)

    def _base_bytes(self, sizes: Qwen3Config) -> int:
        return bytes_per_device(abstract_base(self._mesh, sizes, self._dtype))

    def _stacked(self, sizes: Qwen3Config) -> int:
        """Of the base's layers as training has them: decoding reads a copy, an argument."""
        return bytes_per_device(abstract_base(self._mesh, sizes, self._dtype)["layers"])


def _layer_bytes(model: Qwen3, tokens: int) -> int:
    """What one layer's activations of so many tokens take, about: q, k, v, scores left out."""
    sizes = model.config
    wide = 4 * sizes.hidden_size + 3 * sizes.intermediate_size
    heads = 4 * sizes.num_heads * sizes.head_dim
    return tokens * (wide + heads) * jnp.dtype(model.dtype).itemsize


def _tile_bytes(model: Qwen3, tokens: int) -> int:
    """What the loss takes of a tile of tokens: four arrays of logits in float32."""
    return 4 * 4 * tokens * model.config.vocab_size
