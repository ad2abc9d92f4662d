# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether the advantage tells the truth: `analysis/truth.py` makes the numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepalign_jax.analysis.continuations import Continuations
from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.analysis.truth import changes, predictors
from stepalign_jax.evaluation.words import NOTHING, percent, rounded
from stepalign_jax.report.analysis_figures import Plate
from stepalign_jax.report.panels import COLOURS, INK, means_and_errors, prepare, triple
from stepalign_jax.report.tables import aligned, markdown_rows

# Columns of the tables: heading, and measure.
_AREAS = {
    "AUROC": "auroc",
    "where it could fall": "auroc_where_it_could_fall",
}
_RANKS = {"over entropy": "auroc_over_entropy", "Spearman": "spearman"}
_NOISE = 0.5  # of a count, so that equal changes do not hide each other


def truth_tables(truth: Mapping[str, Any]) -> str:
    """Returns plain-text tables of truth.json, with intervals over problems."""
    parts = [_head(truth), *(aligned(rows) for rows in _tables(truth))]
    return "\n".join(parts) + (
        "AUROC for 'lowered', and its gain over the solver's mean entropy on the same\n"
        "reasoning steps, in percent; Spearman's correlation with the change. A is\n"
        "negated: what is right has an AUROC above 50 and a negative correlation.\n"
    )


def truth_markdown(truth: Mapping[str, Any]) -> str:
    """Returns one table of truth.json in Markdown."""
    columns = _AREAS | _RANKS
    return markdown_rows([["score of the reasoning step", *columns], *_rows(truth, columns)])


def _head(truth: Mapping[str, Any]) -> str:
    return (
        f"{truth['reasoning_steps']} reasoning steps of {truth['rollouts']} rollouts, "
        f"{truth['problems']} problems; {truth['continuations']} continuations from each of\n"
        f"{truth['prefixes']} prefixes. {truth['lowered']} lowered the chance of success by "
        f"{truth['drop']:g} or more, {truth['raised']} raised it so.\n"
        f"{_first_errors(truth['first_errors'])}"
    )


def _first_errors(found: Mapping[str, Any]) -> str:
    if not found["reasoning_steps"]:
        return ""
    return (
        f"{found['reasoning_steps']} are the first wrong ones of their rollouts, of which "
        f"{found['lowered']} lowered it so:\n"
        f"chance before them {percent(found['before'])}, "
        f"change {percent(found['change'], signed=True)} points.\n"
    )


def _tables(truth: Mapping[str, Any]) -> Iterator[list[list[str]]]:
    for columns in (_AREAS, _RANKS):
        yield [["score", *columns], *_rows(truth, columns)]


def _rows(truth: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[list[str]]:
    for row in truth["predictors"]:
        yield [name_of(row), *(_cell(row.get(m), m) for m in columns.values())]
    yield ["the other half", *(_cell(truth["halves"].get(m), m) for m in columns.values())]


def _cell(interval: dict[str, float | None] | None, measure: str) -> str:
    if interval is None or interval["mean"] is None:
        return NOTHING
    value = interval["mean"] if interval["low"] is None else interval
    if measure == "spearman":
        return rounded(value, scale=100.0)
    return percent(value, signed=measure == "auroc_over_entropy")


def name_of(row: Mapping[str, Any]) -> str:
    """A predictor in words: `stepalign, mean A`, or `entropy mean`."""
    if row["context"] is None:
        return row["name"]
    return f"{row['context']}, {row['name'].removeprefix('advantage ')} A"


def truth_plate(
    scored: ScoredRollouts, found: Continuations, truth: Mapping[str, Any]
) -> Plate:
    """Returns a figure: AUROC by score, and change against the first context's mean A."""
    rows = [row for row in truth["predictors"] if row["auroc"] is not None]
    figure = Figure(figsize=(11.5, max(3.6, 1.3 + 0.23 * len(rows))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _draw_areas(left, rows)
    left.set_title(_areas_title(truth), fontsize=10, loc="left", color=INK)
    [each] = [
        each
        for each in predictors(scored, found)
        if (each.name, each.context) == ("advantage mean", scored.contexts[0])
    ]
    _draw_change(right, -each.scores, changes(scored, found).change, truth)
    title = f"Change against mean A, {each.context}"
    right.set_title(title, fontsize=10, loc="left", color=INK)
    return Plate("truth", truth_words(truth), figure)


def truth_words(truth: Mapping[str, Any]) -> str:
    """The figure in words, with the numbers."""
    told = "; ".join(
        f"{name_of(row)} {_cell(row['auroc'], 'auroc')}"
        for row in truth["predictors"]
        if row["auroc"] is not None
    )
    return (
        f"{_areas_title(truth)}, by score of the reasoning step: {told}. Beside it each of "
        f"{truth['reasoning_steps']} reasoning steps by its change and its mean advantage."
    )


def _areas_title(truth: Mapping[str, Any]) -> str:
    return f"AUROC for 'lowered the chance of success by {truth['drop']:g} or more' (%)"


def _draw_areas(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Draws one interval per score; a hollow mark is where the chance could fall."""
    prepare(axes)
    axes.axvline(50, color=INK, alpha=0.6, linewidth=1)
    axes.grid(axis="y", visible=False)
    looks = (
        ("auroc", "all reasoning steps", "o", 0.0),
        ("auroc_where_it_could_fall", "where it could fall", "D", 0.32),
    )
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    for measure, label, mark, shift in looks:
        for place, row in enumerate(rows):
            if row[measure] is None:
                continue
            colour = COLOURS[contexts.index(row["context"]) % len(COLOURS)]
            mean, ends = means_and_errors(100 * np.array([_known(row[measure])]))
            axes.errorbar(
                mean, [place + shift], xerr=ends, fmt=mark, color=colour, ms=4, lw=1.2,
                fillstyle="full" if shift == 0 else "none",
            )  # fmt: skip
        fill = INK if shift == 0 else "none"
        axes.plot([], [], mark, color=INK, ms=4, markerfacecolor=fill, label=label)
    axes.set_yticks(range(len(rows)), [name_of(row) for row in rows])
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.set_xlim(right=101)
    axes.legend(
        frameon=False, fontsize=8.5, labelcolor=INK, ncols=2, loc="upper center",
        bbox_to_anchor=(0.4, -0.06),
    )  # fmt: skip


def _known(interval: dict[str, Any]) -> tuple[float, float, float]:
    """Mean and ends; an interval without ends has no width."""
    mean, low, high = triple(interval)
    return mean, mean if low is None else low, mean if high is None else high


def _draw_change(
    axes: Axes, advantage: np.ndarray, change: np.ndarray, truth: Mapping[str, Any]
) -> None:
    """Draws a dot per reasoning step; `advantage` is nan where the context failed."""
    prepare(axes, "mean advantage of the reasoning step (nats)")
    rng = np.random.default_rng(0)
    shown = change + rng.uniform(-_NOISE, _NOISE, len(change)) / truth["continuations"]
    lowered = change <= -truth["drop"]
    for chosen, colour, mark, label in (
        (~lowered, COLOURS[0], "o", "did not"),
        (lowered, COLOURS[1], "v", f"lowered it by {truth['drop']:g} or more"),
    ):
        axes.plot(
            advantage[chosen], shown[chosen], mark, color=colour, ms=3.5, alpha=0.6, mew=0,
            label=label,
        )  # fmt: skip
    axes.axhline(-truth["drop"], color=INK, alpha=0.6, linewidth=1, linestyle="--")
    axes.axvline(0, color=INK, alpha=0.3, linewidth=1)
    axes.set_ylabel("success after - success before", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="best")
