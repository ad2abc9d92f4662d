# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A plan as tables to read; `planning/plan.py` makes it."""

from stepalign_jax.planning.chips import GIB, Topology
from stepalign_jax.planning.plan import KEYS, Fitted, Plan, Planner
from stepalign_jax.report.tables import aligned

_COLUMNS = ("weights etc.", "results", "in between", "beside", "total", "compiled in")


def memory_table(plan: Plan, topology: Topology) -> str:
    """GiB of a chip by program: its arguments, results, temporaries, and what lies beside."""
    of = "compiled" if plan.compiled else "ESTIMATED: no compiler for these chips is at hand"
    rows = [["phase", "program", *_COLUMNS]]
    rows += [_memory_row(one) for one in plan.fitted]
    limit = topology.chip.memory / GIB
    note = f"GiB of each of {topology.number} chip(s) with {limit:.2f}; {of}.\n"
    return aligned(rows) + note + "".join(f"Note: {words}.\n" for words in plan.work.notes)


def _memory_row(one: Fitted) -> list[str]:
    memory, program = one.memory, one.program
    if memory.refusal:
        return [program.phase, program.name, "", "", "", "", "does not fit", ""]
    parts = (memory.arguments, memory.results, memory.temporaries + memory.code)
    numbers = [f"{part / GIB:.2f}" for part in (*parts, program.beside, one.total)]
    took = f"{memory.seconds:.0f} s" if memory.seconds else ""
    return [program.phase, program.name, *numbers, took]


def time_table(plan: Plan, topology: Topology, price: float | None) -> str:
    """The least seconds of each phase, and what the run takes of the chips."""
    rows = [["phase", "PFLOP", "GB per chip", "seconds", "bound by"]]
    for phase, bound in plan.bounds.items():
        numbers = [f"{bound.flops / 1e15:.2f}", f"{bound.bytes / 1e9:,.0f}"]
        rows.append([phase, *numbers, f"{bound.seconds:.2f}", bound.by])
    hours, work = plan.run_seconds / 3600, plan.work
    words = (
        f"At least {plan.step_seconds:.1f} s per step, {hours:.2f} h for {work.steps} steps "
        f"and two evaluations: {hours * topology.number:.1f} chip-hours"
    )
    if price is not None:
        words += f", {hours * topology.number * price:,.2f} at {price:g} each"
    return (
        aligned(rows) + words + ".\nEvery answer is taken as long as the config admits; no "
        "program reaches these bounds.\n"
    )


def largest_table(planner: Planner, plan: Plan) -> str:
    """The largest number of slots of each sampling phase, and of rows of a part, that fit."""
    work, rows = plan.work, [["phase", "now", "largest that fits", "key"]]
    for phase in dict.fromkeys(one.program.phase for one in plan.fitted):
        of_step = phase in ("score", "update")
        now = work.rows // work.parts if of_step else getattr(work, phase).slots
        found = planner.largest(phase, work, now)
        unit = "rows" if of_step else "slots"
        best = "none" if found is None else f"{found} {unit}"
        key = f"{KEYS[phase]}={work.rows // found}" if of_step and found else KEYS[phase]
        rows.append([phase, f"{now} {unit}", best, key])
    return aligned(rows)


def verdict(plan: Plan, topology: Topology) -> str:
    """One sentence: it fits, with the peak; or what to change."""
    if plan.fits:
        most = max(plan.fitted, key=lambda one: one.total)
        return (
            f"It fits {topology.name}: at most {most.total / GIB:.2f} of "
            f"{most.limit / GIB:.2f} GiB, in {most.program.phase} ({most.program.name})."
        )
    names = ", ".join(dict.fromkeys(o.program.phase for o in plan.fitted if not o.fits))
    mends = [f"--{key}={value}" for key, value in plan.mends.items() if value is not None]
    without = [key for key, value in plan.mends.items() if value is None]
    words = f"It does not fit {topology.name}: {names}."
    if mends:
        words += f" It would with {' '.join(mends)}."
    if without:
        words += (
            f" No value of {', '.join(without)} is enough: take more or larger chips, cut the "
            "weights (parallel.fsdp, parallel.tensor), train an adapter, or shorten the rows."
        )
    return words
