# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A plan as tables to read; `planning/plan.py` makes it."""

from stepalign_jax.planning.chips import GIB, Topology
from stepalign_jax.planning.plan import KEYS, OF_STEP, REMATS, Fitted, Plan, Planner
from stepalign_jax.planning.program import KINDS
from stepalign_jax.planning.workload import Workload
from stepalign_jax.report.tables import aligned


def memory_table(plan: Plan, topology: Topology) -> str:
    """GiB of a chip by program and by what they are held for."""
    of = "compiled" if plan.compiled else "ESTIMATED: no compiler for these chips is at hand"
    rows = [["phase", "program", *KINDS, "between", "total"]]
    rows += [_memory_row(one) for one in plan.fitted]
    limit = topology.chip.memory / GIB
    note = f"GiB of each of {topology.number} chip(s) with {limit:.2f}; {of}.\n"
    return aligned(rows) + note + "".join(f"Note: {words}.\n" for words in plan.work.notes)


def _memory_row(one: Fitted) -> list[str]:
    program = one.program
    if one.memory.refusal:
        return [program.phase, program.name, *[""] * (len(KINDS) + 1), "does not fit"]
    numbers = [f"{size / GIB:.2f}" for size in (*one.parts.values(), one.total)]
    return [program.phase, program.name, *numbers]


def compile_table(plan: Plan) -> str:
    """How many programs a run may compile, by kind, and the processor time of it."""
    rows = [["program", "shapes", "seconds each", "minutes"]]
    kinds = dict.fromkeys(_kind(one) for one in plan.families)
    for kind in kinds:
        of_kind = [one for one in plan.families if _kind(one) == kind]
        shapes = sum(one.program.shapes for one in of_kind)
        seconds = [one.memory.seconds for one in of_kind]
        total = sum(one.program.shapes * one.memory.seconds for one in of_kind)
        rows.append([kind, str(shapes), _span(seconds), f"{total / 60:.1f}"])
    words = f"A run may compile {plan.num_programs} programs"
    if plan.compiled:
        words += f", in {plan.compile_seconds / 3600:.1f} hours of one processor"
    return (
        aligned(rows) + words + ", once: later ones find them in the cache.\nEach counts as "
        "the largest of its kind; how many rows differ in shape is a guess.\n"
    )


def _kind(one: Fitted) -> str:
    return one.program.name.split()[0]


def _span(seconds: list[float]) -> str:
    low, high = f"{min(seconds):.0f}", f"{max(seconds):.0f}"
    return low if low == high else f"{low} to {high}"


def time_table(plan: Plan, topology: Topology, price: float | None) -> str:
    """The least seconds of each phase, and what the run takes of the chips."""
    rows = [["phase", "PFLOP", "GB per chip", "seconds", "bound by", "as shaped"]]
    for phase, bound in plan.bounds.items():
        numbers = [f"{bound.flops / 1e15:.2f}", f"{bound.bytes / 1e9:,.0f}"]
        seconds = [f"{bound.seconds:.2f}", bound.by, f"{bound.shaped:.2f}"]
        rows.append([phase, *numbers, *seconds])
    hours, work = plan.run_seconds / 3600, plan.work
    words = (
        f"{work.steps} steps and two evaluations draw at most {_drawn(work) / 1e6:.1f} million "
        f"tokens.\nThey take at least {plan.step_seconds:.1f} s per step, {hours:.2f} h, "
        f"{hours * topology.number:.1f} chip-hours"
    )
    if price is not None:
        words += f", {hours * topology.number * price:,.2f} at {price:g} each"
    return (
        aligned(rows) + words + ".\nEvery answer is taken as long as the config admits; no "
        "program reaches these bounds.\n"
    )


def _drawn(work: Workload) -> int:
    """Tokens that a run samples at most."""
    of_step = sum(how.requests * how.new for how in (work.sample, work.critique) if how)
    return work.steps * of_step + 2 * work.evaluate.requests * work.evaluate.new


def largest_table(planner: Planner, plan: Plan) -> str:
    """The largest number of slots of each sampling phase, and of rows of a part, that fit.

    Rows of an update are searched for under every `model.remat`.
    """
    rows = [["phase", "now", "largest that fits", "setting"]]
    for phase in dict.fromkeys(one.program.phase for one in plan.fitted):
        remats = REMATS if phase == "update" else (None,)
        for remat in remats:
            found = planner.largest(phase, remat)
            rows.append(_largest_row(planner, plan, phase, remat, found))
    return aligned(rows)


def _largest_row(
    planner: Planner, plan: Plan, phase: str, remat: str | None, found: int | None
) -> list[str]:
    of_step = phase in OF_STEP
    unit = "rows" if of_step else "slots"
    best = "none" if found is None else f"{found} {unit}"
    value = plan.work.rows // found if of_step and found else found
    setting = f"{KEYS[phase]}={value}" if found else KEYS[phase]
    if remat:
        setting += f" model.remat={remat}"
    return [phase, f"{planner.number(phase)} {unit}", best, setting]


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
