# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the advantage falls, as tables: `analysis/localisation.py` makes the numbers."""

import textwrap
from typing import Any

from stepalign_jax.evaluation.words import percent
from stepalign_jax.report.tables import WIDTH, aligned, markdown_rows

# Tables that stand under each other: title, then heading and measure of each column.
TABLES: dict[str, dict[str, str]] = {
    "share of |A|": {
        "before error": "abs_before",
        "in it": "abs_first",
        "after it": "abs_after",
    },
    "false blame": {
        "AUROC of error": "auroc",
        "right rollouts": "false_blame_correct",
        "right prefixes": "false_blame_prefix",
    },
    "blamed tokens": {
        "right rollouts": "blamed_tokens_correct",
        "right prefixes": "blamed_tokens_prefix",
    },
    "form": {
        "|A| on markup": "abs_on_markup",
        "KL on markup": "kl_on_markup",
    },
    "copied": {
        "head": "copied_head",
        "in order": "copied",
    },
}
_EVEN = "all tokens alike"
_NOTE = (
    "All in percent, [intervals] over problems. A: log-probability of the teacher minus that "
    "of the solver. Error: the first wrong reasoning step. Blame: the negative share of |A|; a "
    "blamed token is at most half as likely to the teacher as to the solver."
)


def localisation_tables(found: dict[str, Any]) -> str:
    """Returns plain-text tables of analysis.json, with intervals over problems."""
    return "\n".join([_head(found), *map(aligned, _tables(found)), textwrap.fill(_NOTE, WIDTH)])


def localisation_markdown(found: dict[str, Any]) -> str:
    """Returns the same tables in Markdown."""
    tables = [[[c.replace("|", r"\|") for c in row] for row in rows] for rows in _tables(found)]
    return "\n\n".join(map(markdown_rows, tables)) + "\n"


def _head(found: dict[str, Any]) -> str:
    counts, by = found["counts"], found.get("first_error_by", {})
    who = ", ".join(f"{number} by {name}" for name, number in by.items())
    lines = (
        f"{counts['rollouts']} rollouts of {counts['problems']} problems, "
        f"{counts['tokens']:,} tokens: {found['source']}",
        f"scored by {found['of']}",
        f"{counts['right']} right, {counts['wrong']} with a wrong reasoning step, "
        f"{counts['unknown']} unknown (first error: {who})",
    )
    return "".join(textwrap.fill(line, WIDTH) + "\n" for line in lines)


def _tables(found: dict[str, Any]) -> list[list[list[str]]]:
    even, tables = found["tokens"], []
    spread = {
        "abs_before": even["before"],
        "abs_first": even["first"],
        "abs_after": even["after"],
        "abs_on_markup": even["markup"],
        "kl_on_markup": even["markup"],
        "auroc": 0.5,
    }
    for title, columns in TABLES.items():
        rows = [[title, *columns]]
        for name in found["names"]:
            numbers = found["contexts"][name]
            rows.append([name, *(_cell(numbers[measure]) for measure in columns.values())])
        if any(measure in spread for measure in columns.values()):
            rows.append([_EVEN, *(percent(spread.get(m)) for m in columns.values())])
        tables.append(rows)
    return tables


def _cell(interval: dict[str, float | None] | None) -> str:
    """An interval in percent; its mean alone where its ends have no value."""
    if interval is None or interval["mean"] is None:
        return percent(None)
    return percent(interval["mean"] if interval["low"] is None else interval)
