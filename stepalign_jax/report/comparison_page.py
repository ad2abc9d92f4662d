# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""report.html of a comparison; `tables.py` describes the dict that it is made from."""

import pathlib
from collections.abc import Iterator
from typing import Any

from stepalign_jax.evaluation.words import percent
from stepalign_jax.report.answer import Verdict, count, verdict_of
from stepalign_jax.report.figures import comparison_figures
from stepalign_jax.report.html import Html, joined, tag, written
from stepalign_jax.report.page import write_page
from stepalign_jax.report.sections import (
    as_json,
    costs_list,
    doubts_list,
    figures_of,
    opening,
    page_body,
    section,
    table,
)
from stepalign_jax.report.tables import (
    SELECTION_NOTE,
    VARIANTS,
    comparison_rows,
    selection_rows,
    unsolved_rows,
)
from stepalign_jax.runs.stopwatch import duration

_HEADLINES: dict[Verdict, str] = {
    "learned": "{first} gained more",
    "worse": "{other} gained more",
    "unclear": "No difference is shown",
    "open": "Nothing to compare yet",
}


def write_comparison_report(
    comparison: dict[str, Any], path: pathlib.Path, name: str
) -> pathlib.Path:
    """Writes the page of a comparison to `path`, and returns it.

    Args:
      comparison: see `tables.py`.
      path: of the file.
      name: of the comparison.

    Raises:
      UserError: it cannot be written.
    """
    shown = {v: found for v, found in comparison["variants"].items() if found}
    parts = {
        **{v: (str(VARIANTS.get(v, v)), _variant(comparison, v)) for v in shown},
        "figures": ("Figures", figures_of(comparison_figures(comparison))),
        "made": ("How it was made", _made(comparison)),
    }
    shown_parts = {key: part for key, part in parts.items() if part[1]}
    sections = [section(key, title, part) for key, (title, part) in shown_parts.items()]
    contents = [("answer", "Answer"), *((k, title) for k, (title, _) in shown_parts.items())]
    under = f"{', '.join(comparison['labels'])} · {_seeds(comparison['num_seeds'])}"
    body = page_body(
        "Report of a comparison",
        name,
        under,
        contents,
        [_opening(comparison, shown), *sections],
    )
    return write_page(path, title=f"{name}: comparison", body=body, blocks={})


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _opening(comparison: dict[str, Any], shown: dict[str, Any]) -> Html:
    variant = next(iter(shown))
    verdict, headline, sentence = _answer(comparison, variant)
    return opening(
        verdict,
        headline,
        sentence,
        costs_list(_costs(shown[variant])),
        doubts_list(list(comparison_doubts(comparison))),
    )


def _answer(comparison: dict[str, Any], variant: str) -> tuple[Verdict, str, str]:
    """The first condition against the one among the others that gained most."""
    k, gains = comparison["k"], comparison["gains"][variant]
    by_gain = sorted(gains, key=lambda label: -gains[label]["avg_at_k"]["mean"])
    told = "; ".join(
        f"{name} {percent(gains[name]['avg_at_k'], signed=True)}" for name in by_gain
    )
    at = str(VARIANTS.get(variant, variant)).lower()
    sentence = (
        f"Gains in Avg@{k} at {at}, in points with intervals over seeds and problems: {told}."
    )
    differences = {n: d for n, d in comparison["differences"][variant].items() if d}
    first = comparison["labels"][0]
    others = [name for name in by_gain if name in differences]
    if not others:
        return "open", _HEADLINES["open"], sentence
    rival = others[0]
    difference = differences[rival]["avg_at_k"]
    verdict = verdict_of(difference)
    headline = _HEADLINES[verdict].format(first=first, other=rival)
    points = percent(difference, signed=True)
    more = f"{first} less {rival}, the best of the others: {points} points."
    return verdict, headline, f"{sentence} {more}"


def _costs(conditions: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    seeds = [seed for found in conditions.values() for seed in found]
    tokens = sum(seed["solver_tokens"] for seed in seeds)
    seconds = sum(seed["train_seconds"] for seed in seeds)
    return [
        (f"{len(seeds)}", "runs"),
        (count(tokens), "tokens sampled by their solvers"),
        (duration(seconds), "of training, all runs together"),
    ]


def comparison_doubts(comparison: dict[str, Any]) -> Iterator[str]:
    """Yields a sentence for each reason to doubt a comparison."""
    yield from comparison["notes"]
    for variant, missing in comparison["missing"].items():
        if missing:
            at = str(VARIANTS.get(variant, variant)).lower()
            yield f"At {at} these cells are missing: {', '.join(missing)}."
    for variant, found in comparison["differences"].items():
        at = str(VARIANTS.get(variant, variant)).lower()
        for name, difference in found.items():
            if difference and verdict_of(difference["avg_at_k"]) == "unclear":
                yield (
                    f"At {at} the difference to {name} may be chance: its interval "
                    f"{percent(difference['avg_at_k'], signed=True)} holds 0."
                )
    if len(comparison["labels"]) > 2:
        yield (
            "Several conditions are compared, and the intervals are of each difference alone: "
            "of twenty such intervals at 95 % one misses by chance."
        )


def _variant(comparison: dict[str, Any], variant: str) -> Html:
    gains, differences = comparison_rows(comparison, variant)
    k = comparison["k"]
    caption = (
        f"Means over seeds: shares in percent, gains in points of Avg@{k} [intervals over "
        "seeds and problems]"
    )
    parts = [table(gains[0], gains[1:], caption)]
    if differences:
        words = (
            "How much more the first condition gained, in points [intervals over seeds and "
            "problems]"
        )
        parts.append(table(differences[0], differences[1:], words))
    if chosen := selection_rows(comparison, variant):
        parts.append(table(chosen[0], chosen[1:], SELECTION_NOTE))
    note, rows = unsolved_rows(comparison, variant)
    if rows:
        parts.append(table(rows[0], rows[1:], note))
    return joined(*parts)


def _made(comparison: dict[str, Any]) -> Html:
    keys = (
        "configs",
        "overrides",
        "labels",
        "num_seeds",
        "k",
        "confidence",
        "notes",
        "missing",
    )
    known = {key: comparison[key] for key in keys if key in comparison}
    shown = tag("pre", written(as_json(known)), tabindex=0, aria_label="How it was made")
    return tag("details", tag("summary", "Configs, overrides and what is missing"), shown)
