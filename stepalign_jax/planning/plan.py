# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a run fits chips that nobody has rented yet, and how long it would take at least.

The memory of a phase is that of its largest program and of what lies beside it; the run takes
the largest phase's, not the sum. A program that does not fit is halved until one does.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from stepalign_jax.base.progress import progress
from stepalign_jax.config.schema import Config
from stepalign_jax.parallel.mesh import MESH_AXES, make_mesh, num_shards
from stepalign_jax.planning.chips import Topology
from stepalign_jax.planning.compiled import Compiled, compile_program
from stepalign_jax.planning.fits import bytes_per_device
from stepalign_jax.planning.programs import Program, RunPrograms
from stepalign_jax.planning.roofline import Bound, Roofline
from stepalign_jax.planning.workload import Workload, planned_sizes, workload
from stepalign_jax.training.packing import check_parts

# The key that a phase's memory grows with; for an optimizer step's it is the rows of a part.
KEYS = {
    "sample": "sampling.batch_size",
    "critique": "critic.batch_size",
    "evaluate": "evaluation.batch_size",
    "score": "train.micro_batches",
    "update": "train.micro_batches",
}


class Fitted(NamedTuple):
    """A program on a chip.

    Attributes:
      program: what was compiled.
      memory: what it takes.
      limit: bytes that a chip has.
    """

    program: Program
    memory: Compiled
    limit: float

    @property
    def total(self) -> int:
        """Bytes of the chip while it runs."""
        return self.memory.total + self.program.beside

    @property
    def fits(self) -> bool:
        """Whether the chip has that much."""
        return not self.memory.refusal and self.total <= self.limit


class Plan(NamedTuple):
    """What a run comes to on a topology.

    Attributes:
      fitted: its programs.
      bounds: the least time of a step's phases, and of one evaluation.
      work: what was planned for.
      mends: settings that make it fit, by key; None for a key that no value of does. {} where
        it fits.
      compiled: whether the compiler said so; else it is an estimate.
    """

    fitted: list[Fitted]
    bounds: dict[str, Bound]
    work: Workload
    mends: dict[str, int | None]
    compiled: bool

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return all(one.fits for one in self.fitted)

    @property
    def step_seconds(self) -> float:
        """Of an optimizer step, at least."""
        return sum(b.seconds for phase, b in self.bounds.items() if phase != "evaluate")

    @property
    def run_seconds(self) -> float:
        """Of all steps, and of the evaluations before and after, at least."""
        return self.work.steps * self.step_seconds + 2 * self.bounds["evaluate"].seconds


class Planner:
    """Plans a config's run on a topology."""

    def __init__(self, config: Config, topology: Topology):
        """Args: the config, and the chips.

        Raises:
          UserError: the mesh does not fit the number of chips, or the model's sizes or the
            parts of a step do not fit the mesh.
        """
        self._config, self._topology = config, topology
        self._mesh = _mesh(config, topology)
        self._sizes = planned_sizes(config.model.path, "model.path")
        self._programs = RunPrograms(config, self._sizes, self._mesh)
        self._work = workload(config)
        check_parts(self._work.rows, self._work.parts, self._mesh)

    def plan(self) -> Plan:
        """Compiles every program at its largest shape."""
        work = self._work
        programs = list(self._programs.all(work))
        fitted = []
        with progress(total=len(programs), description="plan") as bar:
            for program in programs:
                bar.set_postfix_str(f"{program.phase}: {program.name}")
                fitted.append(self.fit(program))
                bar.update()
        mends = self._mends(work, [one for one in fitted if not one.fits])
        compiled = self._topology.devices is not None
        return Plan(fitted, self._bounds(work), work, mends, compiled)

    def fit(self, program: Program) -> Fitted:
        """What a program takes of a chip."""
        if self._topology.devices is None:
            arguments = sum(map(bytes_per_device, map(_placed, program.arguments())))
            memory = Compiled(arguments, program.results, program.temporaries, 0, 0.0, "")
        else:
            memory = compile_program(program, self._topology.name)
        return Fitted(program, memory, self._topology.chip.memory)

    def largest(self, phase: str, work: Workload, start: int) -> int | None:
        """The largest number that fits, of doublings and halvings of `start`.

        It is of slots, or of rows of a part in an optimizer step's phases. None: not even 1.
        """
        tried = start
        if not self._fits(phase, work, tried):
            while tried > 1:
                tried //= 2
                if self._fits(phase, work, tried):
                    return tried
            return None
        while tried < self._most(phase, work) and self._fits(phase, work, 2 * tried):
            tried *= 2
        return tried

    def _most(self, phase: str, work: Workload) -> int:
        sampling = {"sample": work.sample, "critique": work.critique, "evaluate": work.evaluate}
        how = sampling.get(phase)
        return work.rows if how is None else how.requests

    def _fits(self, phase: str, work: Workload, number: int) -> bool:
        return all(self.fit(program).fits for program in self._of(phase, work, number))

    def _of(self, phase: str, work: Workload, number: int) -> Iterator[Program]:
        """The phase's programs with so many slots, or rows of a part."""
        if phase in ("score", "update"):
            parts = max(1, work.rows // number)
            yield getattr(self._programs, phase)(work._replace(parts=parts))
        elif phase == "critique":
            assert work.critique is not None
            yield from self._programs.critique(work.critique.with_slots(number))
        else:
            how = getattr(work, phase).with_slots(number)
            yield from self._programs.sampling(phase, how)

    def _mends(self, work: Workload, failed: list[Fitted]) -> dict[str, int | None]:
        """By key, the nearest value with which its phases fit."""
        mends: dict[str, int | None] = {}
        for phase in dict.fromkeys(one.program.phase for one in failed):
            key, shards = KEYS[phase], num_shards(self._mesh)
            if key == "train.micro_batches":
                largest = self.largest(phase, work, work.rows // work.parts)
                least = None if largest is None or largest < shards else work.rows // largest
                known = mends.get(key, 0)
                mends[key] = None if least is None or known is None else max(least, known)
            else:
                how = getattr(work, phase)
                mends[key] = self.largest(phase, work, how.slots)
        return mends

    def _bounds(self, work: Workload) -> dict[str, Bound]:
        config, itemsize = self._config, jnp.dtype(self._config.model.compute_dtype).itemsize
        chip, shape = self._topology.chip, dict(self._mesh.shape)
        roofline = Roofline(self._sizes, chip, shape, itemsize)
        group = config.train.samples_per_problem
        bounds = {"sample": roofline.sampling(work.sample, work.rows // group)}
        if work.critique is not None:
            sizes = self._sizes
            if path := getattr(config.critic, "path", ""):
                sizes = planned_sizes(path, "critic.path")
            critic = Roofline(sizes, chip, shape, itemsize)
            bounds["critique"] = critic.sampling(work.critique, work.rows)
        if work.teacher_row:
            bounds["score"] = roofline.score(work)
        bounds["update"] = roofline.update(work, config)
        bounds["evaluate"] = roofline.sampling(work.evaluate, config.problems.num_test)
        return bounds


def _mesh(config: Config, topology: Topology) -> Any:
    if topology.devices is not None:
        return make_mesh(config.parallel, topology.devices)
    # The same sizes without devices, which the compiler alone would need.
    sizes = make_mesh(config.parallel, np.arange(topology.number).tolist()).shape
    return AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _placed(argument: Any) -> Any:
    """The argument's leaves that lie on the devices; rows and scalars take next to nothing."""
    return [leaf for leaf in jax.tree.leaves(argument) if getattr(leaf, "sharding", None)]


def plan_json(plan: Plan, topology: Topology) -> dict[str, Any]:
    """The plan for --to."""
    return {
        "topology": topology.name,
        "chips": topology.number,
        "bytes_of_a_chip": topology.chip.memory,
        "compiled": plan.compiled,
        "fits": plan.fits,
        "programs": [
            {
                "phase": one.program.phase,
                "program": one.program.name,
                "beside": one.program.beside,
                **one.memory._asdict(),
                "total": one.total,
                "fits": one.fits,
            }
            for one in plan.fitted
        ],
        "least_seconds": {phase: bound._asdict() for phase, bound in plan.bounds.items()},
        "step_seconds": plan.step_seconds,
        "run_seconds": plan.run_seconds,
        "mends": plan.mends,
        "workload": plan.work._asdict(),
    }
