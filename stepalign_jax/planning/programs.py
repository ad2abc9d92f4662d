# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The programs of a run at their largest shapes, and what lies beside each on a chip.

    phase      programs                 beside them
    sample     `sampling_programs.py`   the state; the base too, if all weights train
    critique   the same                 the state, or by `critic.placement` of a second model
    score      teacher_hidden           the teacher's states of the other parts
    update     whole, or accumulate     the same
               and finish               the base, the teacher's states
    evaluate   as sample

A second model that shares the devices (`critic.placement=shared`) lies beside every phase. The
programs are the run's own (`sampling.programs`, `training.programs`), with shapes for data.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from stepalign_jax.config.schema import CheckpointCritic, Config, LoraTrainable, SharedDevices
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.kernels import choose_kernel
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.parallel.mesh import num_shards
from stepalign_jax.planning.fits import bytes_per_device
from stepalign_jax.planning.meshes import Meshes
from stepalign_jax.planning.program import Bytes, Program, held
from stepalign_jax.planning.sampling_programs import SamplingPrograms, layer_bytes
from stepalign_jax.planning.workload import Workload, part_shapes, planned_sizes
from stepalign_jax.sampling.programs import decode_model
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

PHASES = ("sample", "critique", "score", "update", "evaluate")


class RunPrograms:
    """Makes the programs of a run on the chips of a mesh."""

    def __init__(self, config: Config, sizes: Qwen3Config, meshes: Meshes):
        """Makes the programs of a run.

        Args:
          config: of the run.
          sizes: of its model.
          meshes: where it runs; AbstractMeshes of chips that nothing is compiled for.

        Raises:
          UserError: the chips lack the attention that `model.attention` names.
        """
        self._config, self._sizes, self._meshes = config, sizes, meshes
        self._mesh = meshes.trained
        self._dtype = jnp.dtype(config.model.compute_dtype)
        trained = config.trainable
        self._lora = LoraSpec.of(trained) if isinstance(trained, LoraTrainable) else None

    def with_remat(self, remat: str) -> "RunPrograms":
        """The same run under another `model.remat`."""
        model = replace(self._config.model, remat=remat)  # pyright: ignore[reportArgumentType]
        return RunPrograms(replace(self._config, model=model), self._sizes, self._meshes)

    def all(self, work: Workload) -> Iterator[Program]:
        """Yields the programs in the order of a step, those of evaluation last."""
        for phase in PHASES:
            if phase != "critique" or work.critique is not None:
                yield from self.phase(phase, work)

    def phase(self, phase: str, work: Workload) -> Iterator[Program]:
        """Yields the programs of one phase."""
        match phase:
            case "sample" | "evaluate":
                yield from self._solver.phase(phase, getattr(work, phase))
            case "critique":
                assert work.critique is not None
                yield from self._critic.phase(phase, work.critique)
            case "score":
                if work.teacher_row:
                    yield self._score(work)
            case "update":
                yield self._update(work)
                if work.parts > 1:
                    yield self._finish(work)

    @cached_property
    def _solver(self) -> SamplingPrograms:
        """Of the solver: the base with its adapter, or the weights that train."""
        state, base = self._abstract_state, self._base
        beside = held(state.replace(trainable={})) + self._guest
        variables = {"params": base} | state.trainable
        if self._lora is None:
            beside += held(base)
        model = self._decode_model(self._sizes, self._dtype, self._lora)
        return SamplingPrograms(model, self._mesh, variables, beside)

    @cached_property
    def _critic(self) -> SamplingPrograms:
        """Of a critic that is a model on chips of this run."""
        critic, here = self._config.critic, held(self._abstract_state)
        if not isinstance(critic, CheckpointCritic):
            model = self._decode_model(self._sizes, self._dtype, None)
            variables = {"params": self._base}
            return SamplingPrograms(model, self._mesh, variables, here)
        mesh, dtype = self._meshes.critic, jnp.dtype(critic.compute_dtype)
        sizes = planned_sizes(critic.path, "critic.path")
        variables = {"params": abstract_base(mesh, sizes, dtype)}
        # What trains waits in host memory, or has chips of its own.
        shared = isinstance(critic.placement, SharedDevices)
        beside = here + held(self._base) if shared else Counter()
        model = self._decode_model(sizes, dtype, None)
        return SamplingPrograms(model, mesh, variables, beside)

    def _decode_model(self, sizes: Qwen3Config, dtype: Any, lora: LoraSpec | None) -> Qwen3:
        return decode_model(sizes, dtype, lora, kernel=self._kernel(sizes, dtype))

    @cached_property
    def _guest(self) -> Bytes:
        """A second model's weights, where they stay on these chips while it is not asked."""
        critic = self._config.critic
        if not isinstance(critic, CheckpointCritic):
            return Counter()
        if not isinstance(critic.placement, SharedDevices):
            return Counter()
        sizes, dtype = planned_sizes(critic.path, "critic.path"), critic.compute_dtype
        return held(abstract_base(self._meshes.critic, sizes, jnp.dtype(dtype)))

    def _score(self, work: Workload) -> Program:
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
                self._base,
                abstract_sequences(self._mesh, rows=rows, width=width, num_tokens=tokens),
            ),
            beside=self._waiting(work, tokens, work.parts - 1) + self._guest,
            results=self._waiting(work, tokens, 1)["rows"],
            temporaries=layer_bytes(self._method.model, here),
            shapes=part_shapes(work, work.teacher_row, num_shards(self._mesh)),
        )

    def _update(self, work: Workload) -> Program:
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
                self._base,
                abstract_sequences(mesh, rows=rows, width=width, num_tokens=tokens),
                abstract_targets(mesh, num_tokens=tokens),
                hidden,
            )
            return rest if whole else (self._abstract_sums(), *rest)

        return self._program(
            "update",
            f"{'update' if whole else 'gradient'} {rows} x {width}",
            (*self._method_made_of, model.remat, tokens, whole),
            self._step_programs.whole if whole else self._step_programs.accumulate,
            arguments,
            beside=self._waiting(work, tokens, work.parts - 1) + self._guest,
            temporaries=saved
            + _backward_bytes(model, here)
            + _tile_bytes(model, tile)
            + bytes_per_device(self._abstract_state.trainable),  # gradient
            shapes=part_shapes(work, work.solver_row, num_shards(mesh)),
        )

    def _finish(self, work: Workload) -> Program:
        """The optimizer, after the last of several micro-batches."""
        _, _, tokens = self._part(work, work.solver_row)
        return self._program(
            "update",
            "finish",
            self._method_made_of,
            self._step_programs.finish,
            lambda: (self._abstract_state, self._abstract_sums()),
            beside=held(self._base) + self._waiting(work, tokens, work.parts) + self._guest,
            temporaries=0,  # the state is updated in place
        )

    def _part(self, work: Workload, row: int) -> tuple[int, int, int]:
        """Rows, their width and the packed tokens of a micro-batch, all at their largest."""
        rows, shards = work.rows // work.parts, num_shards(self._mesh)
        return rows, padded_width(row), shards * padded(rows // shards * work.completion)

    def _waiting(self, work: Workload, tokens: int, parts: int) -> Bytes:
        """The teacher's states of so many parts; nothing where none is asked."""
        if not work.teacher_row:
            return Counter()
        one = abstract_hidden(self._mesh, self._sizes, self._dtype, num_tokens=tokens)
        return Counter(rows=bytes_per_device(one) * parts)

    def _program(
        self,
        phase: str,
        name: str,
        made_of: tuple[Any, ...],
        function: Any,
        arguments: Callable[[], tuple[Any, ...]],
        *,
        beside: Bytes,
        results: int = 0,
        temporaries: int,
        shapes: int = 1,
    ) -> Program:
        return Program(
            phase=phase,
            name=name,
            made_of=made_of,
            function=function,
            arguments=arguments,
            mesh=self._mesh,
            given=held(*arguments()),
            beside=beside,
            returns="rows",
            results=results,
            temporaries=temporaries,
            shapes=shapes,
        )

    @property
    def _method_made_of(self) -> tuple[Any, ...]:
        """What a step's programs are made of, in words that do not change between processes."""
        config, model = self._config, self._method.model
        return (
            *(model.config, model.dtype, model.lora, model.kernel),
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
    def _base(self) -> Any:
        return abstract_base(self._mesh, self._sizes, self._dtype)


def _backward_bytes(model: Qwen3, tokens: int) -> int:
    """What a layer's activations of so many tokens and their gradients take, about."""
    sizes = model.config
    wide = 4 * sizes.hidden_size + 3 * sizes.intermediate_size
    heads = 4 * sizes.num_heads * sizes.head_dim
    return 4 * tokens * (wide + heads) * jnp.dtype(model.dtype).itemsize


def _tile_bytes(model: Qwen3, tokens: int) -> int:
    """What the loss takes of a tile of tokens: four arrays of logits in float32."""
    return 4 * 4 * tokens * model.config.vocab_size
