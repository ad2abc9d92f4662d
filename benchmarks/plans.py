# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which chips take which model, and what a dense loss would take beside ours.

    python -m benchmarks.plans chips                     estimates
    python -m benchmarks.plans loss --topology v5e:1x1   compiled

Needs no chips; compiling needs libtpu. The runs are those of configs/stepalign.py with another
model, one row of each shard in a micro-batch. Writes docs/data/performance/plans-*.json.
"""

import argparse
import functools
import itertools
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.measure import machine, write_json
from benchmarks.sampling import RESULTS
from stepalign_jax.config.load import load_config
from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.planning.chips import GIB, TPUS, Topology, open_topology
from stepalign_jax.planning.compiled import compile_afresh
from stepalign_jax.planning.meshes import make_meshes
from stepalign_jax.planning.plan import Plan, Planner
from stepalign_jax.planning.programs import RunPrograms
from stepalign_jax.planning.sizes import published_config
from stepalign_jax.planning.workload import workload
from stepalign_jax.training import step

MODELS = ("0.6B", "1.7B", "4B", "8B", "14B", "32B")
TOPOLOGIES = ("v5e:1x1", "v5e:2x4", "v6e:1x1", "v6e:2x4", "v5p:2x2x1", "h100:4")
ROWS = 32  # of a step


def layouts(number: int) -> dict[str, int]:
    """The mesh axis that has all of the chips, and how many shards of a batch that makes."""
    if number == 1:
        return {"data": 1}
    return {"data": number, "fsdp": number, "tensor": 1}


@functools.cache
def planner(model: str, trainable: str, axis: str, topology: Topology) -> Planner:
    """Plans the run of a model with all chips on one axis, one row of each shard at a time."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | {axis: topology.number}
    overrides = [f"--parallel.{name}={size}" for name, size in sizes.items()]
    overrides += [f"--model.path=Qwen/Qwen3-{model}", f"--trainable={trainable}"]
    overrides += [f"--train.micro_batches={ROWS // layouts(topology.number)[axis]}"]
    return Planner(load_config("stepalign", overrides), topology)


def any_chips(number: int) -> Topology:
    """So many chips of no kind, which estimates for all kinds begin with."""
    return Topology("any", TPUS["v5e"], None, number)


def cell(model: str, trainable: str, topology: Topology) -> dict[str, Any]:
    """The first layout that takes the run as it is, else the first that does with a mend."""
    mended: dict[str, Any] = {"layout": None}
    for axis in layouts(topology.number):
        shared = planner(model, trainable, axis, any_chips(topology.number))
        plan = shared.estimating(topology).plan()
        found = {"layout": axis, **numbers(plan)}
        if plan.fits:
            return found
        if mended["layout"] is None and None not in plan.mends.values():
            mended = found
    return mended


def numbers(plan: Plan) -> dict[str, Any]:
    """The peak, what to change, and the least hours of a plan."""
    most = max(plan.fitted, key=lambda one: one.total)
    return {
        "peak_gib": round(most.total / GIB, 2),
        "peak_in": f"{most.program.phase}: {most.program.name}",
        "mends": plan.mends,
        "hours": None if plan.mends else round(plan.run_seconds / 3600, 2),
    }


def chips() -> list[dict[str, Any]]:
    """A cell per model, what is trained, and topology."""
    found = []
    for model, trainable, name in itertools.product(MODELS, ("lora", "full"), TOPOLOGIES):
        row = {"model": model, "trainable": trainable, "topology": name}
        found.append(row | cell(model, trainable, open_topology(name)))
        print(found[-1], flush=True)
    return found


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown, a row per model and what is trained: GiB of a chip by layout, or slots."""
    rows = [["model", *TOPOLOGIES], ["---"] * (1 + len(TOPOLOGIES))]
    for model, trainable in itertools.product(MODELS, ("lora", "full")):
        of_row = [c for c in cells if (c["model"], c["trainable"]) == (model, trainable)]
        by_topology = {c["topology"]: words(c) for c in of_row}
        rows.append([f"{model} {trainable}", *(by_topology[name] for name in TOPOLOGIES)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def words(found: dict[str, Any]) -> str:
    """Of a cell: its layout with the peak, or with the slots that it must do with."""
    if found["layout"] is None:
        return "-"
    slots = ("sampling", "critic", "evaluation")
    few = [str(found["mends"].get(f"{name}.batch_size", "")) or "*" for name in slots]
    return f"{found['layout']} {found['peak_gib'] if not found['mends'] else '/'.join(few)}"


def critic(name: str) -> dict[str, Any]:
    """How many critiques QwQ-32B writes at a time on all chips in turns with training."""
    topology = open_topology(name)._replace(devices=None)
    overrides = (f"--critic.tensor={topology.number}", "--parallel.data=-1")
    parts = f"--train.micro_batches={ROWS // topology.number}"
    planner = Planner(load_config("stepalign:checkpoint_critic", (*overrides, parts)), topology)
    return {"topology": name, "slots": planner.largest("critique")}


def dense_loss(
    divergence: Any,
    solver_hidden: jax.Array,
    teacher_hidden: jax.Array,
    solver_head: jax.Array,
    teacher_head: jax.Array,
    targets: Any,
) -> tuple[jax.Array, LossScores]:
    """`step.distillation_loss` of forward KL with all logits [N, V] at once, in float32."""

    def logprobs(hidden: jax.Array, head: jax.Array) -> jax.Array:
        logits = jnp.einsum("nd,vd->nv", hidden, head, preferred_element_type=jnp.float32)
        return jax.nn.log_softmax(logits / divergence.loss_temperature)

    solver = logprobs(solver_hidden, solver_head)
    teacher = logprobs(teacher_hidden, teacher_head)
    losses = jnp.sum(jnp.exp(teacher) * (teacher - solver), axis=-1)
    tokens = targets.tokens.reshape(-1)[:, None]
    own = jnp.take_along_axis(solver, tokens, axis=1)[:, 0]
    advantage = jnp.take_along_axis(teacher, tokens, axis=1)[:, 0] - own
    weights = targets.weights.reshape(-1)
    return jnp.sum(losses * weights), LossScores(losses, advantage, own)


def loss(name: str, rows_per_chip: int) -> list[dict[str, Any]]:
    """The update of a step that is one micro-batch, under either form of the loss."""
    topology, found = open_topology(name), []
    config = load_config("stepalign", ("--train.micro_batches=1",))
    work = workload(config)._replace(rows=rows_per_chip * topology.number)
    for form in ("tiled", "dense"):
        programs = RunPrograms(
            config, published_config("Qwen3-1.7B"), make_meshes(config, topology)
        )
        program = next(programs.phase("update", work))
        loss = dense_loss if form == "dense" else step.distillation_loss
        with mock.patch.object(step, "distillation_loss", loss):
            compiled = compile_afresh(program)
        numbers = compiled._asdict()
        del numbers["seconds"]  # of whatever else the machine did too
        found.append({"form": form, "program": program.name, **numbers})
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Writes the file of one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("chips", "loss"))
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--rows-per-chip", type=int, default=1)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(["jax", "jaxlib"])}
    if options.what == "chips":
        result |= {"cells": chips(), "critic": list(map(critic, TOPOLOGIES))}
        write_json(RESULTS / "plans-chips.json", result)
        print(table(result["cells"]), *result["critic"], sep="\n")
    else:
        result |= {"topology": options.topology}
        result |= {"updates": loss(options.topology, options.rows_per_chip)}
        write_json(RESULTS / f"plans-loss-{options.topology.replace(':', '-')}.json", result)


if __name__ == "__main__":
    main()
