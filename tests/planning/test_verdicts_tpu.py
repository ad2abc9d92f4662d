# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A plan's verdict beside that of the TPU compiler; no TPU is needed, only libtpu.

A plan adds up what a program takes and what lies beside it. Here the compiler gets both: all
that lies beside is one more argument. It refuses exactly where the plan says that it does not
fit, which is tried at the largest number that the plan lets pass and at the next one. The
network is Qwen3-1.7B with two layers, which repeat; rows and cache fill the chip all the same.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from stepalign_jax.config.load import load_config
from stepalign_jax.parallel.mesh import num_shards, replicated, use_mesh
from stepalign_jax.planning import plan as planning
from stepalign_jax.planning.chips import open_topology
from stepalign_jax.planning.plan import Fitted, Planner
from stepalign_jax.planning.program import Program
from stepalign_jax.planning.sizes import published_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SIZES = replace(published_config("Qwen3-1.7B"), num_layers=2)
TOPOLOGIES = ("v5e:1x1", "v5e:2x4", "v6e:1x1", "v5p:2x2x1")
CASES = {
    "rollouts": ("sample", "stepalign", ()),
    "critiques": ("critique", "stepalign", ()),
    "evaluation": ("evaluate", "small", ()),
    "scoring": ("score", "stepalign:thinking_teacher", ()),
    "adapter": ("update", "stepalign", ("--model.remat=none",)),
    "all weights": ("update", "stepalign", ("--trainable=full", "--model.remat=dots")),
}
DONATED = {"copy": 0, "decode": 2, "gradient": 0, "finish": 0, "update": 0}


def test_up_to_eight_chips_of_a_plane_are_one_host():
    pytest.importorskip("libtpu")
    hosts = {name: open_topology(name).devices for name in ("v5e:2x4", "v6e:2x2", "v5e:4x4")}
    counts = [len({d.process_index for d in devices or ()}) for devices in hosts.values()]
    assert counts == [1, 1, 4]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_chip_has_the_memory_that_its_compiler_grants(topology):
    pytest.importorskip("libtpu")
    where = open_topology(topology)
    assert where.devices is not None
    place = jax.sharding.SingleDeviceSharding(where.devices[0])

    def grants(size: int) -> bool:
        most = jax.ShapeDtypeStruct((size >> 20, 1 << 20), jnp.uint8, sharding=place)
        one = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place)
        function = jax.jit(lambda _, small: small + 1, keep_unused=True)
        try:
            function.lower(most, one).compile()
        except jax.errors.JaxRuntimeError as error:
            assert "RESOURCE_EXHAUSTED" in str(error)
            return False
        return True

    memory = int(where.chip.memory)
    assert grants(memory - (2 << 20)) and not grants(memory + (2 << 20))


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("case", CASES)
def test_the_plans_verdict_is_the_compilers(case, topology, monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setattr(planning, "planned_sizes", lambda *_: SIZES)
    phase, name, overrides = CASES[case]
    where = open_topology(topology)
    parts = f"--train.micro_batches={32 // where.number}"
    planner = Planner(load_config(name, (*overrides, parts)), where)
    step = num_shards(planner._meshes.trained)

    def largest_program(number: int) -> Fitted:
        planner._work = planner._work._replace(rows=2 * number)  # two parts of a step
        estimated = planner.estimating(where).fit
        # Of a phase the estimates choose, which spares compiling all of it again and again.
        return planner.fit(max(planner._of(phase, number), key=lambda p: estimated(p).total))

    number = last_that_fits(largest_program, step)
    last, first = largest_program(number), largest_program(number + step)
    assert last.fits and not first.fits
    assert compiles(last.program)
    assert not compiles(first.program)


def last_that_fits(program: Callable[[int], Fitted], step: int) -> int:
    """The largest multiple of `step` that fits: memory grows about as a straight line does."""
    low, high = 8 * step, 16 * step
    while True:
        one, two = program(low), program(high)
        if two.memory.refusal:
            high = (low + high) // 2 // step * step
            continue
        slope = (two.total - one.total) / (high - low)
        guess = int((one.limit - one.total) / slope) // step * step + low
        if program(guess).fits:
            while program(guess + step).fits:
                guess += step
            return guess
        while not program(guess).fits:
            guess -= step
        return guess


def compiles(program: Program) -> bool:
    """Whether the compiler makes it with all that lies beside it as an argument, unread."""
    arguments = program.arguments()
    given = [index for index, argument in enumerate(arguments) if is_array(argument)]
    donated = DONATED.get(program.name.split()[0])
    # Arguments that the program does not read lie there too.
    beside = jax.ShapeDtypeStruct(
        (program.beside.total() >> 20, 1 << 20), jnp.uint8, sharding=replicated(program.mesh)
    )

    def call(beside: Any, *arrays: Any) -> Any:
        whole = list(arguments)
        for index, array in zip(given, arrays, strict=True):
            whole[index] = array
        return program.function(*whole)

    donate = () if donated is None else (1 + given.index(donated),)
    with use_mesh(program.mesh):
        function = jax.jit(call, donate_argnums=donate, keep_unused=True)
        try:
            function.lower(beside, *(arguments[index] for index in given)).compile()
        except jax.errors.JaxRuntimeError as error:
            assert "RESOURCE_EXHAUSTED" in str(error)
            return False
    return True


def is_array(argument: Any) -> bool:
    leaves = jax.tree.leaves(argument)
    return bool(leaves) and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
