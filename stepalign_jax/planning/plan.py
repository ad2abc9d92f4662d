# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a run fits chips that nobody has rented yet, and how long it would take at least.

The memory of a phase is that of its largest program and of what lies beside it; the run takes
the largest phase's, not the sum. A program that does not fit is halved until one does.
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from stepalign_jax.base.progress import progress
from stepalign_jax.config.schema import CheckpointCritic, Config
from stepalign_jax.parallel.mesh import check_heads, num_shards
from stepalign_jax.planning.chips import Topology
from stepalign_jax.planning.compiled import Compiled, compile_program
from stepalign_jax.planning.meshes import make_meshes
from stepalign_jax.planning.program import KINDS, Bytes, Program
from stepalign_jax.planning.programs import RunPrograms
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
OF_STEP = ("score", "update")  # their key counts parts of a step's rows; the others', slots
# The values of `model.remat`, from the least memory to the least recomputation.
REMATS = ("full", "dots", "none")


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
        memory, program = self.memory, self.program
        rest = memory.results + memory.temporaries + memory.code
        return self._arguments + rest + program.beside.total()

    @property
    def _arguments(self) -> int:
        """Bytes of what it is given; the compiler leaves out what it does not read.

        It counts more than the arrays have, since it pads them.
        """
        return max(self.memory.arguments, self.program.given.total())

    @property
    def fits(self) -> bool:
        """Whether the chip has that much."""
        return not self.memory.refusal and self.total <= self.limit

    @property
    def parts(self) -> dict[str, int]:
        """The total by kind (`program.KINDS`), and what is "between" arguments and results."""
        memory, program = self.memory, self.program
        parts: Bytes = program.given + program.beside
        parts["rows"] += self._arguments - program.given.total()
        parts[program.returns] += memory.results
        between = memory.temporaries + memory.code
        return {kind: parts[kind] for kind in KINDS} | {"between": between}


class Plan(NamedTuple):
    """What a run comes to on a topology.

    Attributes:
      fitted: its programs.
      bounds: the least time of a step's phases, and of one evaluation.
      work: what was planned for.
      mends: settings that make it fit, by key; None for a key of which no value is enough. {}
        where it fits.
      compiled: whether the compiler said so; else it is an estimate.
    """

    fitted: list[Fitted]
    bounds: dict[str, Bound]
    work: Workload
    mends: dict[str, int | str | None]
    compiled: bool

    @property
    def families(self) -> list[Fitted]:
        """One program of each kind that meets many shapes, the largest one."""
        deciding = [one for one in self.fitted if one.program.decides]
        return list({one.program.key: one for one in deciding}.values())

    @property
    def num_programs(self) -> int:
        """That a run compiles, about."""
        return sum(one.program.shapes for one in self.families)

    @property
    def compile_seconds(self) -> float:
        """Of all of them, each as long as the largest of its kind; 0: none was compiled."""
        return sum(one.program.shapes * one.memory.seconds for one in self.families)

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
        self._meshes = make_meshes(config, topology)
        self._sizes = planned_sizes(config.model.path, "model.path")
        heads = (self._sizes.num_heads, self._sizes.num_kv_heads)
        check_heads(self._meshes.trained, *heads)
        own = RunPrograms(config, self._sizes, self._meshes)
        self._programs = {remat: own.with_remat(remat) for remat in REMATS}
        self._work = workload(config)
        check_parts(self._work.rows, self._work.parts, self._meshes.trained)

    def estimating(self, topology: Topology) -> "Planner":
        """The same run on as many other chips, estimated; shapes are worked out once."""
        other = copy.copy(self)
        other._topology = topology._replace(devices=None)
        return other

    def plan(self, *, every_width: bool = False) -> Plan:
        """Compiles every program at its largest shape.

        Args:
          every_width: compiles decoding with each narrower cache as well.
        """
        programs, fitted = self.programs(every_width=every_width), []
        with progress(total=len(programs), description="plan") as bar:
            for program in programs:
                bar.set_postfix_str(f"{program.phase}: {program.name}")
                fitted.append(self.fit(program))
                bar.update()
        mends = self._mends([one for one in fitted if not one.fits])
        compiled = self._topology.devices is not None
        return Plan(fitted, self._bounds(self._work), self._work, mends, compiled)

    def programs(self, *, every_width: bool = False) -> list[Program]:
        """The run's programs, each at its largest shape; decoding at `every_width`."""
        own = self._programs[self._config.model.remat].all(self._work)
        return [program for program in own if program.decides or every_width]

    def fit(self, program: Program) -> Fitted:
        """What a program takes of a chip."""
        if self._topology.devices is None:
            sizes = (program.given.total(), program.results, program.temporaries, 0)
            memory = Compiled(*sizes, accessed=0.0, seconds=0.0, refusal="")
        else:
            memory = compile_program(program, self._topology.name)
        return Fitted(program, memory, self._topology.chip.memory)

    def largest(self, phase: str, remat: str | None = None) -> int | None:
        """The largest number that fits, of doublings and halvings of the config's.

        It is of slots, or of rows of a part in an optimizer step's phases. None: no such number
        that every chip has a part of.

        Args:
          phase: one of `KEYS`.
          remat: another `model.remat` than the config's.
        """
        tried = self.number(phase)
        if not self._fits(phase, tried, remat):
            while self._is_whole(phase, tried := tried // 2):
                if self._fits(phase, tried, remat):
                    return tried
            return None
        most = self._most(phase)
        while self._is_whole(phase, 2 * tried) and 2 * tried <= most:
            if not self._fits(phase, 2 * tried, remat):
                break
            tried *= 2
        return tried

    def number(self, phase: str) -> int:
        """The config's number of what `largest` counts."""
        work = self._work
        return work.rows // work.parts if phase in OF_STEP else getattr(work, phase).slots

    def _is_whole(self, phase: str, number: int) -> bool:
        """Whether a step has whole parts of so many rows, and each shard whole rows of them."""
        if number == 0 or phase not in OF_STEP:
            return number > 0
        shards = num_shards(self._meshes.trained)
        return self._work.rows % number == 0 and number % shards == 0

    def _most(self, phase: str) -> int:
        work = self._work
        return work.rows if phase in OF_STEP else getattr(work, phase).requests

    def _fits(self, phase: str, number: int, remat: str | None = None) -> bool:
        return all(self.fit(program).fits for program in self._of(phase, number, remat))

    def _of(self, phase: str, number: int, remat: str | None = None) -> Iterator[Program]:
        """The phase's largest programs with so many slots, or rows of a part."""
        work = self._work
        if phase in OF_STEP:
            work = work._replace(parts=work.rows // number)
        else:
            how = getattr(work, phase).with_slots(number)
            work = work._replace(**{phase: how})
        programs = self._programs[remat or self._config.model.remat].phase(phase, work)
        return (program for program in programs if program.decides)

    def _mends(self, failed: list[Fitted]) -> dict[str, int | str | None]:
        """By key, the nearest value with which its phases fit."""
        mends: dict[str, int | str | None] = {}
        phases = list(dict.fromkeys(one.program.phase for one in failed))
        for phase in phases:
            if phase not in OF_STEP:
                mends[KEYS[phase]] = self.largest(phase)
        if set(OF_STEP) & set(phases):
            mends |= self._mended_parts()
        return mends

    def _mended_parts(self) -> dict[str, int | str | None]:
        """The fewest parts under the config's remat; else another remat, and its parts."""
        key, now = KEYS["update"], self._config.model.remat
        phases = OF_STEP if self._work.teacher_row else ("update",)
        for remat in REMATS[REMATS.index(now) :: -1]:
            found = [self.largest(phase, remat) for phase in phases]
            if None not in found:
                rows = min(self.number("update"), *filter(None, found))
                mend: dict[str, int | str | None] = {key: self._work.rows // rows}
                return mend if remat == now else {"model.remat": remat, **mend}
        return {key: None}

    def _bounds(self, work: Workload) -> dict[str, Bound]:
        config, chip = self._config, self._topology.chip
        shape = dict(self._meshes.trained.shape)
        dtype = jnp.dtype(config.model.compute_dtype)
        roofline = Roofline(self._sizes, chip, shape, dtype.itemsize)
        group = config.train.samples_per_problem
        bounds = {"sample": roofline.sampling(work.sample, work.rows // group)}
        if work.critique is not None:
            critic = roofline
            if isinstance(config.critic, CheckpointCritic):
                sizes = planned_sizes(config.critic.path, "critic.path")
                itemsize = jnp.dtype(config.critic.compute_dtype).itemsize
                shape = dict(self._meshes.critic.shape)
                critic = Roofline(sizes, chip, shape, itemsize)
            bounds["critique"] = critic.sampling(work.critique, work.rows)
        if work.teacher_row:
            bounds["score"] = roofline.score(work)
        bounds["update"] = roofline.update(work, config)
        bounds["evaluate"] = roofline.sampling(work.evaluate, config.problems.num_test)
        return bounds


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
                "beside": dict(one.program.beside),
                **one.memory._asdict(),
                "parts": one.parts,
                "shapes": one.program.shapes,
                "total": one.total,
                "fits": one.fits,
            }
            for one in plan.fitted
        ],
        "least_seconds": {phase: bound._asdict() for phase, bound in plan.bounds.items()},
        "step_seconds": plan.step_seconds,
        "run_seconds": plan.run_seconds,
        "mends": plan.mends,
        "num_programs": plan.num_programs,
        "compile_seconds": plan.compile_seconds,
        "workload": plan.work._asdict(),
    }
