# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What the cells of a comparison say together: gains, and differences of gains, with intervals.

Intervals resample runs and problems (`evaluation.statistics.two_level_interval`). Seed k of two
conditions answers the same problems, drawn with the same noise, so a difference is taken
problem by problem and seed by seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepalign_jax.config.schema import EvaluationConfig
from stepalign_jax.evaluation.evaluate import Evaluation, gains
from stepalign_jax.evaluation.selection_effect import TEST_PROBLEMS, selection_effect
from stepalign_jax.evaluation.statistics import two_level_interval
from stepalign_jax.runs.cells import Cell

COMPARED = ("avg_at_k", "pass_at_k", "maj_at_k")
_RESAMPLING_SEED = 0


def seed_entry(cell: Cell, how: EvaluationConfig) -> dict[str, Any]:
    """Returns what tables and plots show of one cell; intervals are over problems alone."""
    seed = cell["seed"]
    before, after = (Evaluation.from_lists(cell[side]) for side in ("before", "after"))
    return {
        "seed": seed,
        "name": cell["config"]["name"],
        "num_steps": cell["config"]["train"]["num_steps"],
        "summary": {
            "before": before.intervals(how, seed),
            "after": after.intervals(how, seed),
            "gain": gains(before, after, how, seed),
        },
        "curve": cell["curve"],
        "critic_exactness": cell["critic_exactness"],
        "solver_tokens": cell["costs"]["solver_tokens"],
        "critic_tokens": cell["costs"]["critic_tokens"],
        "critic_share": cell["costs"]["critic_share"],
        "train_seconds": cell["costs"]["train_seconds"],
    }


def gain_intervals(cells: Sequence[Cell], how: EvaluationConfig) -> dict[str, dict[str, float]]:
    """Returns, by metric, the gain over all runs of one condition."""
    return {metric: _interval(_gains(cells, metric), how) for metric in COMPARED}


def difference(
    first: Mapping[int, Cell], other: Mapping[int, Cell], how: EvaluationConfig
) -> dict[str, Any] | None:
    """Returns, by metric, how much more the first condition gained, and of which seeds.

    Args:
      first: cells by seed.
      other: cells by seed; seeds that only one side has are left out.
      how: number of resamples, and confidence.

    Returns:
      Intervals by metric, and "seeds"; None where no seed has both.
    """
    seeds = sorted(first.keys() & other.keys())
    if not seeds:
        return None
    sides = [[cells[seed] for seed in seeds] for cells in (first, other)]
    return {"seeds": seeds} | {
        metric: _interval(_gains(sides[0], metric) - _gains(sides[1], metric), how)
        for metric in COMPARED
    }


def curve_intervals(
    cells: Sequence[Cell], how: EvaluationConfig
) -> list[tuple[int, float, float, float]]:
    """Returns validation Avg@k over all runs of one condition: step, mean, low, high.

    The steps are those that all runs have. Cells of older versions do not have problems apart:
    with one of them there is nothing to resample, and the list is empty.
    """
    if not all("curve_by_problem" in cell for cell in cells):
        return []
    curves = [dict(cell["curve_by_problem"]) for cell in cells]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    found = []
    for step in steps:
        interval = _interval(np.array([curve[step] for curve in curves]), how)
        found.append((step, *(interval[key] for key in ("mean", "low", "high"))))
    return found


def selection_effects(cells: Sequence[Cell]) -> list[dict[str, float]]:
    """Returns by run, in order, what choosing a checkpoint on test problems would add.

    Of the validation behind the first step (`evaluation/selection_effect.py`). A run with too
    few validation problems, or with less than two such checkpoints, has nothing to choose from;
    with one of them the list is empty.
    """
    found = []
    for cell in cells:
        curve = [values for step, values in cell.get("curve_by_problem", []) if step > 0]
        if len(curve) < 2 or len(curve[0]) < 2 * TEST_PROBLEMS:
            return []
        found.append(selection_effect(np.array(curve))._asdict())
    return found


def unsolved(
    labels: Sequence[str], cells: Mapping[str, Mapping[int, Cell]], how: EvaluationConfig
) -> dict[str, Any]:
    """Returns what training did on problems that no base of these cells ever solved.

    A base that fails n times is not one that cannot: some such problems are solved afterwards
    though nothing was learnt. So a control says what a rate means here, and not 0.

    Args:
      labels: of the conditions; differences are taken from the first.
      cells: by label and seed.
      how: number of resamples, and confidence.

    Returns:
      {"num_problems": int, "num_samples": per problem, of the base, "after": {label: {score:
      interval}}, "differences": {label: interval or None}}: Avg@k of the first condition less
      this one's. {} where there is no such problem.
    """
    every = [
        (seed, cell["before"]) for by_seed in cells.values() for seed, cell in by_seed.items()
    ]
    chosen = ~np.any([np.array(before["pass_at_k"]) > 0 for _, before in every], axis=0)
    if not chosen.any():
        return {}

    # The base has 0 of everything there, so that a gain is what comes after.
    found = {
        label: {seed: _on(chosen, cell) for seed, cell in by_seed.items()}
        for label, by_seed in cells.items()
    }
    after = {
        label: gain_intervals(list(by_seed.values()), how) for label, by_seed in found.items()
    }
    first = found.get(labels[0], {})
    return {
        "num_problems": int(chosen.sum()),
        # Conditions share a seed's samples of the base.
        "num_samples": int(sum(before["num_samples"][0] for before in dict(every).values())),
        "after": {
            label: {metric: scores[metric] for metric in ("avg_at_k", "pass_at_k")}
            for label, scores in after.items()
        },
        "differences": {
            label: (difference(first, by_seed, how) or {}).get("avg_at_k")
            for label, by_seed in found.items()
            if label != labels[0]
        },
    }


def _on(chosen: np.ndarray, cell: Cell) -> Cell:
    """What is compared of a cell, on the chosen problems alone."""
    return {
        side: {metric: np.array(cell[side][metric])[chosen] for metric in COMPARED}
        for side in ("before", "after")
    }


def _gains(cells: Sequence[Cell], metric: str) -> np.ndarray:
    """[num_runs, num_problems] float64: after - before."""
    return np.array(
        [np.subtract(cell["after"][metric], cell["before"][metric]) for cell in cells]
    )


def _interval(values: np.ndarray, how: EvaluationConfig) -> dict[str, float]:
    return two_level_interval(
        values,
        num_resamples=how.num_resamples,
        confidence=how.confidence,
        seed=_RESAMPLING_SEED,
    ).as_dict()


def variant_of(
    labels: Sequence[str], cells: Mapping[str, Mapping[int, Cell]], how: EvaluationConfig
) -> dict[str, Any]:
    """Returns one variant of comparison.json.

    Args:
      labels: of the conditions; differences are taken from the first.
      cells: by label and seed, those that there are.
      how: number of resamples, and confidence.
    """
    found = {label: dict(sorted(cells[label].items())) for label in labels if cells.get(label)}
    first = found.get(labels[0], {})
    return {
        "conditions": {
            label: [seed_entry(cell, how) for cell in by_seed.values()]
            for label, by_seed in found.items()
        },
        "gains": {
            label: gain_intervals(list(by_seed.values()), how)
            for label, by_seed in found.items()
        },
        "curves": {
            label: curve_intervals(list(by_seed.values()), how)
            for label, by_seed in found.items()
        },
        "selection": {
            label: selection_effects(list(by_seed.values())) for label, by_seed in found.items()
        },
        "unsolved": unsolved(labels, found, how) if found else {},
        "differences": {
            label: difference(first, by_seed, how)
            for label, by_seed in found.items()
            if label != labels[0]
        },
    }


def notes_on(cells: Sequence[Cell], *, num_seeds: int, timed: bool) -> list[str]:
    """Returns what a reader of the tables has to know, a sentence each."""
    notes = []
    if num_seeds == 1:
        notes.append(
            "One seed: intervals are over problems, and say nothing of what another run of "
            "the same condition would gain."
        )
    elif num_seeds < 5:
        notes.append(
            f"{num_seeds} seeds: intervals see {num_seeds - 1} of {num_seeds} parts of the "
            "variance between runs, and are too narrow by that."
        )
    versions = sorted({cell["version"] for cell in cells})
    if len(versions) > 1:
        notes.append(f"Cells were made by several versions: {', '.join(versions)}.")
    if timed and len({cell["machine"] for cell in cells}) > 1:
        notes.append("Cells were timed on several machines, whose seconds do not compare.")
    if changed := sorted({cell["config"]["name"] for cell in cells if cell["changes"]}):
        notes.append(f"Inputs or length changed under {', '.join(changed)}.")
    return notes
