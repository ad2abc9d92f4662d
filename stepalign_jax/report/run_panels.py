# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What there is to draw of a run, from the files that it has so far."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.evaluation.statistics import bootstrap_interval
from stepalign_jax.evaluation.words import percent
from stepalign_jax.report import panels
from stepalign_jax.report.localisation_figures import analysis_curves
from stepalign_jax.report.tables import SCORES
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.stopwatch import duration

# Enough for the ends of an interval to half a pixel, and cheap at every step of a long curve.
_NUM_RESAMPLES = 1000
# Metrics that are shares of 1; the axis of those that should be rare ends near their highest.
_SHARES = {
    "reward": "whole",
    "truncated": "rare",
    "looping": "rare",
    "critic_exact_on_wrong": "whole",
}
_TITLES = {
    "reward": "Reward: share of correct rollouts (%)",
    "truncated": "Truncated rollouts (%)",
    "looping": "Rollouts that end in a loop (%)",
    "critic_exact_on_wrong": "Critic exact on wrong rollouts (%)",
    "loss": "Loss",
    "mean_tokens": "Length of a rollout (tokens)",
    "surprisal": "Surprisal of sampled tokens (nats per token)",
    "gradient_norm": "Norm of the gradient",
}
# Which belong together, in the order of a page.
_ORDER = (
    *("validation", "before_after", "reward", "loss", "mean_tokens", "truncated", "surprisal"),
    *("looping", "critic_exact_on_wrong", "critic_outcomes", "failures", "gradient_norm"),
    *("analysis_auroc", "analysis_abs_first", "analysis_false_blame_correct"),
    *("time", "time_by_step", "memory"),
)
PHASES = ("sample", "critique", "score", "update", "host", "validate", "analyze")
_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


class Panel(NamedTuple):
    """One picture.

    Attributes:
      name: a word for files and ids.
      title: what it shows, with the unit.
      alternative: the same for those who do not see it, with the numbers.
      draw: draws it on axes.
      width: inches.
      height: inches.
    """

    name: str
    title: str
    alternative: str
    draw: Callable[[Axes], None]
    width: float = 4.4
    height: float = 2.9


def run_panels(run: RunDirectory) -> list[Panel]:
    """Returns the panels of which the run has numbers, those that belong together in a row.

    Raises:
      UserError: a file of the run cannot be read.
    """
    rows = read_jsonl(run.metrics_file) if run.metrics_file.exists() else []
    timings = read_jsonl(run.timings_file) if run.timings_file.exists() else []
    found = [
        *_validation(run),
        *_before_after(run),
        *_curves(rows),
        *_outcomes(rows),
        *_times(timings),
        *_memory(run),
        *(Panel(*curve) for curve in analysis_curves(run)),
    ]
    return sorted(found, key=lambda panel: _ORDER.index(panel.name))


def _validation(run: RunDirectory) -> list[Panel]:
    evaluations = {step: Evaluation.read(f) for step, f in run.validation_files().items()}
    if not evaluations:
        return []
    confidence = read_json(run.config_file)["evaluation"]["confidence"]
    intervals = {
        step: bootstrap_interval(
            found.per_problem["avg_at_k"], num_resamples=_NUM_RESAMPLES,
            confidence=confidence, seed=0,
        ).as_dict()
        for step, found in evaluations.items()
    }  # fmt: skip
    points = np.array([[s, *(100 * v for v in i.values())] for s, i in intervals.items()])
    (first, at_first), *_, (last, at_last) = [*intervals.items(), *intervals.items()]
    num_problems = len(evaluations[first].per_problem["avg_at_k"])
    words = (
        f"Validation Avg@k in percent by optimizer step, over {num_problems} problems with "
        f"{100 * confidence:g} % intervals: {percent(at_first)} at step {first}, "
        f"{percent(at_last)} at step {last}."
    )
    draw = partial(panels.draw_intervals, points=points)
    title = f"Validation Avg@k (%), {100 * confidence:g} % intervals over problems"
    return [Panel("validation", title, words, draw)]


def _before_after(run: RunDirectory) -> list[Panel]:
    if not run.summary_file.exists():
        return []
    summary = read_json(run.summary_file)
    before, after = summary["before"], summary["after"]
    keys = [key for key in SCORES if before.get(key) is not None]
    names = [SCORES[key].format(k=summary.get("k", "k")) for key in keys]
    sides = {
        side: 100 * np.array([panels.triple(summary[side][key]) for key in keys]).reshape(-1, 3)
        for side in ("before", "after")
    }
    words = "; ".join(
        f"{name} from {percent(before[key])} to {percent(after[key])}"
        for key, name in zip(keys, names, strict=True)
    )
    draw = partial(panels.draw_before_after, sides=sides, names=names)
    return [
        Panel(
            "before_after", "Test before and after (%), intervals over problems",
            f"Scores on the test problems in percent: {words}.", draw,
        )
    ]  # fmt: skip


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The metrics that have one number per step."""
    found = []
    for name, title in _TITLES.items():
        points = _points(rows, name)
        if not len(points):
            continue
        share = _SHARES.get(name, "")
        if share:
            points = points * [1, 100]
        draw = partial(panels.draw_steps, points=points, share=share)
        found.append(Panel(name, title, _told(title, points), draw))
    return found


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Returns [n, 2] (step, value) of the rows that have a value."""
    points = [(row["step"], value) for row in rows if (value := _value(row, name)) is not None]
    return np.array(points, dtype=float).reshape(-1, 2)


def _value(row: Mapping[str, Any], name: str) -> float | None:
    if name != "surprisal":
        return row.get(name)
    # Where other tokens are scored than were sampled it says nothing of the sampled ones.
    sampled = row.get("sampler_logprob_gap") is not None
    return -row["solver_logprob_mean"] if sampled and "solver_logprob_mean" in row else None


def _told(title: str, points: np.ndarray) -> str:
    """A curve in words: how it begins, how it ends, and between which values it lies."""
    steps, values = points.T
    found = panels.trailing(values)
    window = min(found.window, len(values))
    return (
        f"{title} by optimizer step, {len(values)} steps from {steps[0]:.0f} to "
        f"{steps[-1]:.0f}: {values[:window].mean():.4g} in the first {window}, "
        f"{found.mean[-1]:.4g} [{found.low[-1]:.4g}, {found.high[-1]:.4g}] in the last; lowest "
        f"{values.min():.4g}, highest {values.max():.4g}."
    )


def _outcomes(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """How the critic's replies ended, and why contexts failed, as counts per step."""
    wanted = (
        ("critic_outcomes", "critic_outcome/", "How the critic's replies ended (number)"),
        ("failures", "context_failed/", "Rollouts without a usable context (number)"),
    )
    found = []
    for name, prefix, title in wanted:
        kinds = sorted({key for row in rows for key in row if key.startswith(prefix)})
        if not kinds:
            continue
        layers = {
            kind.removeprefix(prefix).replace("_", " "): np.array(
                [row.get(kind) or 0.0 for row in rows]
            )
            for kind in kinds
        }
        totals = ", ".join(f"{key} {values.sum():.0f}" for key, values in layers.items())
        steps = np.array([row["step"] for row in rows])
        draw = partial(panels.draw_stack, steps=steps, layers=layers)
        words = f"{title} by optimizer step; over all {len(rows)} steps: {totals}."
        found.append(Panel(name, title, words, draw, height=3.2))
    return found


def _times(timings: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Seconds by phase: their sums, and step by step."""
    if not timings:
        return []
    present = [p for p in PHASES if any(p in row for row in timings)]
    layers = {p: np.array([row.get(p, 0.0) for row in timings]) for p in present}
    sums = {phase: float(values.sum()) for phase, values in layers.items()}
    total = sum(sums.values()) or 1.0
    labels = [f"{duration(value)} ({100 * value / total:.0f} %)" for value in sums.values()]
    compiling = np.array([row.get("compile_seconds", 0.0) for row in timings])
    words = "; ".join(f"{p} {label}" for p, label in zip(present, labels, strict=True))
    within = f" Of it {duration(float(compiling.sum()))} went to compilation."
    return [
        Panel(
            "time", "Where time went (seconds in all)",
            f"Seconds by phase over {len(timings)} optimizer steps, {duration(total)} in all: "
            f"{words}.{within}",
            partial(panels.draw_bars, values=sums, labels=labels),
        ),
        _time_by_step(timings, layers, compiling),
    ]  # fmt: skip


def _time_by_step(
    timings: Sequence[Mapping[str, Any]],
    layers: Mapping[str, np.ndarray],
    compiling: np.ndarray,
) -> Panel:
    whole = np.sum(list(layers.values()), axis=0)
    plain = whole[compiling < 0.05 * whole]
    top = 1.15 * float(plain.max()) if len(plain) and plain.max() < 0.5 * whole.max() else None
    parts = ", ".join(f"{p} {np.median(v):.3g}" for p, v in layers.items())
    words = (
        f"Seconds of each optimizer step, stacked by phase: median {np.median(whole):.3g}, "
        f"longest {whole.max():.3g}; medians by phase: {parts}."
    )
    steps = np.array([row["step"] for row in timings])
    draw = partial(panels.draw_stack, steps=steps, layers=layers, top=top)
    title = "Seconds of each optimizer step, by phase"
    return Panel("time_by_step", title, words, draw, height=3.2)


def _memory(run: RunDirectory) -> list[Panel]:
    if not run.memory_file.exists():
        return []
    parts = read_json(run.memory_file)
    order = [p for p in ("base", "trainable", "optimizer", "teacher", "critic") if p in parts]
    sizes = {part: parts[part]["bytes_per_device"] for part in order}
    unit = next((u for u, size in _UNITS.items() if max(sizes.values()) >= size), "KiB")
    values = {part: size / _UNITS[unit] for part, size in sizes.items()}
    labels = [
        f"{values[part]:.1f} {unit}" if values[part] else parts[part]["where"] for part in order
    ]
    told = "; ".join(f"{part} {label}" for part, label in zip(order, labels, strict=True))
    words = f"What stays in each device's memory: {told}. Activations and caches are not in it."
    draw = partial(panels.draw_bars, values=values, labels=labels)
    return [Panel("memory", f"Weights in each device's memory ({unit})", words, draw)]
