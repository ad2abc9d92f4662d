# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run or a comparison came to, as tables to read.

A summary: {"before": scores, "after": scores, "gain": scores, "seconds": float, ...} where
scores = {"avg_at_k": interval, "pass_at_k": interval, "maj_at_k": interval, "mean_tokens":
number or interval} and interval = {"mean": float, "low": float, "high": float}. Shares are in
0..1 and shown in percent; a gain is the difference of two shares, in percentage points.

A comparison, as `runs/compare.py` makes it: {"k": int, "num_seeds": int, "labels": [condition],
"missing": {variant: [cell]}, "notes": [sentence]}, and by variant

    variants      {condition: [one dict per seed]}, of those that have cells
    curves        {condition: [[step, mean, low, high], ...]}, validation Avg@k with intervals
                  over runs and problems; [] where a cell is too old to have them
    gains         {condition: {score: interval}}, over runs and problems
    differences   {condition: {score: interval} or None}, gain of the first less this one's
    selection     {condition: [{best_on_test, chosen_elsewhere, effect}]}, one dict per seed;
                  [] where there was nothing to choose from
    unsolved      `runs.comparison.unsolved`

with the keys seed, summary, curve ([[step, avg_at_k], ...]), critic_exactness ([[step, value or
None], ...]), solver_tokens, critic_share and train_seconds per seed.
"""

import textwrap
from typing import Any

import numpy as np

from stepalign_jax.evaluation.selection_effect import TEST_PROBLEMS
from stepalign_jax.evaluation.words import NOTHING, percent, rounded

SCORES = {"avg_at_k": "Avg@{k}", "pass_at_k": "Pass@{k}", "maj_at_k": "Maj@{k}"}

_EVALUATED = {
    **SCORES,
    "greedy": "greedy",
    "truncated": "truncated",
    "unparsed": "no answer",
}
_SELECTION = {
    "best_on_test": "best checkpoint on the test",
    "chosen_elsewhere": "the one that other problems choose",
    "effect": "what the choice adds, points",
}
SELECTION_NOTE = (
    "Were the checkpoint chosen on the test problems: validation Avg@n in percent, over random "
    f"splits into {TEST_PROBLEMS} problems that play the test and the others."
)
_UNSOLVED_NOTE = (
    "Problems that no base solved, whatever the seed: {num_problems}, each answered "
    "{num_samples} times. After training, in percent; a control says what chance gives."
)
_PAIRED_NOTE = "Shares in percent, gains in points, [intervals] over problems.\n"

VARIANTS = {"equal_tokens": "Equal tokens", "equal_wall_clock": "Equal wall clock"}

WIDTH = 80  # of a terminal; no table is wider
_LONGEST = 17  # name of a condition
_LABEL, _CELL = 17, 17  # widths of the columns of tables that stand under each other


def summary_table(summary: dict[str, Any]) -> str:
    """Returns a plain-text table of a run before and after, with intervals."""
    before, after, gain = (summary[side] for side in ("before", "after", "gain"))
    names = {**SCORES, "greedy": "greedy"}
    rows = _paired_rows(names, before, after, gain, summary.get("k", "k"))
    table = aligned([["", "before", "after", "gain"], *rows]) + _PAIRED_NOTE
    seconds = summary.get("seconds")
    took = "" if seconds is None else f"The run took {seconds:,.0f} s.\n"
    return table + took + "".join(map(_change, summary.get("changes", [])))


def gain_table(
    base: dict[str, Any], trained: dict[str, Any], gain: dict[str, Any], k: int, title: str
) -> str:
    """Returns a plain-text table of an evaluation beside the base's, with paired gains."""
    rows = _paired_rows(_EVALUATED, base, trained, gain, k)
    return aligned([[title, "base", "trained", "gain"], *rows]) + _PAIRED_NOTE


def _paired_rows(
    names: dict[str, str],
    before: dict[str, Any],
    after: dict[str, Any],
    gain: dict[str, Any],
    k: Any,
) -> list[list[str]]:
    rows = []
    for key, label in names.items():
        if key in before:
            cells = [percent(before[key]), percent(after.get(key))]
            cells.append(percent(gain.get(key), signed=True))
            rows.append([label.format(k=k), *cells])
    tokens = [rounded(before.get("mean_tokens")), rounded(after.get("mean_tokens"))]
    tokens.append(rounded(gain.get("mean_tokens"), signed=True))
    return [*rows, ["tokens per answer", *tokens]]


def _change(change: dict[str, Any]) -> str:
    """A line about what changed under a run; tables are no place for silence either."""
    if "num_steps" in change:
        return "Lengthened at step {} from {} to {} steps.\n".format(
            change["step"], *change["num_steps"]
        )
    words = f"Inputs changed at step {change['step']}: {', '.join(change['inputs'])}."
    return textwrap.fill(words, WIDTH) + "\n"


def evaluation_table(intervals: dict[str, Any], k: int, title: str = "") -> str:
    """Returns a plain-text table of one evaluation's intervals."""
    rows = [[label.format(k=k), percent(intervals[key])] for key, label in _EVALUATED.items()]
    rows.append(["answer length", f"{rounded(intervals['mean_tokens'])} tokens"])
    return aligned([_heading(title), *rows])


def prepared_table(manifest: dict[str, Any]) -> str:
    """Returns what each filter took of a data set, and the problems of each split."""
    taken = [(entry["what"], entry["number"]) for entry in manifest["counts"]]
    rows = [["", "rows"], *([what.replace("_", " "), f"{n:,}"] for what, n in taken)]
    rows += [[f"{split} problems", f"{n:,}"] for split, n in manifest["problems"].items()]
    width = max(len(number) for _, number in rows)
    return aligned([[what, number.rjust(width)] for what, number in rows])


def critic_table(found: dict[str, Any], exact: Any, exact_on_wrong: Any) -> str:
    """Returns a plain-text table of what a probe found of a critic.

    Args:
      found: `evaluation.probe.CriticFindings.as_json`.
      exact: interval of the critiques that are the oracle's to the letter; None: no oracle.
      exact_on_wrong: the same over wrong rollouts.
    """
    number = found["attempts"]
    rows = [
        _heading("critic"),
        ["exact", percent(exact)],
        ["exact on wrong", percent(exact_on_wrong)],
    ]
    rows += [[name, percent(count / number)] for name, count in found["failed"].items()]
    length = rounded(found["mean_tokens"])
    rows.append(["critique length", length if length == NOTHING else f"{length} tokens"])
    if exact is None:
        return aligned(rows) + f"Asked about {number} rollouts.\n"
    asked = f"Asked about {number} rollouts, {found['wrong_attempts']} of them wrong.\n"
    return aligned(rows) + asked + "Exact: to the letter as a program corrects the rollout.\n"


def teacher_heading() -> str:
    """Returns the head of the table whose rows `teacher_row` makes, one at a time."""
    return aligned([_heading("teacher shown")])


def teacher_row(condition: str, interval: Any) -> str:
    """Returns how often the teacher is right under a condition's context; None: never asked."""
    return f"{condition:{_LABEL}}  {percent(interval)}\n"


def _heading(title: str) -> list[str]:
    return [title.ljust(_LABEL), "percent".ljust(_CELL)]


def aligned(rows: list[list[str]]) -> str:
    """Returns rows as columns, the first row underlined; closer if a terminal needs it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "
    lines = [gap.join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, gap.join("-" * width for width in widths))
    return "".join(line.rstrip() + "\n" for line in lines)


def comparison_table(comparison: dict[str, Any]) -> str:
    """Returns plain-text tables per variant, with less than `comparison_markdown` has."""
    parts = []
    for variant in comparison["variants"]:
        title = _shortened(str(VARIANTS.get(variant, variant)))
        rows = [[title, "before", "after", "gain", "n", "critic", "tokens", "s"]]
        for name in comparison["labels"]:
            found = _row(comparison, variant, name)
            shown = ("before", "after", "gain", "seeds", "critic", "tokens", "seconds")
            rows.append([_shortened(name), *(found[key] for key in shown)])
        parts.append(aligned(rows))
        if differences := _difference_rows(comparison, variant):
            differences[0][0] = _shortened(differences[0][0], end=" minus")
            parts.append(aligned([[_shortened(row[0]), *row[1:]] for row in differences]))
    parts.append(
        f"Avg@{comparison['k']} in percent, gains in points [intervals] over seeds and "
        "problems.\nn: seeds. critic: percent exact on wrong rollouts.\n"
        "tokens, s: of the solver, and seconds of training, in one run.\n"
        + "".join(textwrap.fill(note, WIDTH) + "\n" for note in _notes(comparison))
    )
    return "\n".join(parts)


def _row(comparison: dict[str, Any], variant: str, name: str) -> dict[str, str]:
    """A condition's means over its seeds, by column; of one without a cell, dashes."""
    seeds = comparison["variants"][variant].get(name, [])
    number, asked = len(seeds), comparison["num_seeds"]
    columns = ("before", "after", "gain", "each", "critic", "share", "tokens", "seconds")
    found: dict[str, str] = dict.fromkeys(columns, NOTHING)
    found["seeds"] = str(number) if number == asked else f"{number}/{asked}"
    if not seeds:
        return found

    def mean_of(side: str) -> float:
        return float(np.mean([seed["summary"][side]["avg_at_k"]["mean"] for seed in seeds]))

    exactness = [v for s in seeds for _, v in s["critic_exactness"] if v is not None]
    gains = [percent(s["summary"]["gain"]["avg_at_k"], signed=True) for s in seeds]
    gain = comparison["gains"][variant][name]["avg_at_k"]
    return found | {
        "before": percent(mean_of("before")),
        "after": percent(mean_of("after")),
        "gain": percent(gain, signed=True),
        "each": "; ".join(gains),
        "critic": percent(float(np.mean(exactness)) if exactness else None),
        "share": percent(float(np.mean([s["critic_share"] for s in seeds]))),
        "tokens": _count(np.mean([s["solver_tokens"] for s in seeds])),
        "seconds": _count(np.mean([s["train_seconds"] for s in seeds])),
    }


def _count(value: Any) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.1f}M"


def _difference_rows(comparison: dict[str, Any], variant: str) -> list[list[str]]:
    """How much more the first condition gained than each other one; [] without any pair."""
    differences = comparison["differences"][variant]
    found = {n: differences[n] for n in comparison["labels"] if differences.get(n)}
    if not found:
        return []
    labels = [label.format(k=comparison["k"]) for label in SCORES.values()]
    return [
        [comparison["labels"][0], *labels],
        *([n, *(percent(d[key], signed=True) for key in SCORES)] for n, d in found.items()),
    ]


def _notes(comparison: dict[str, Any]) -> list[str]:
    missing = [
        f"Missing at {str(VARIANTS.get(variant, variant)).lower()}: "
        f"{', '.join(name.rpartition(':')[0] for name in names)}."
        for variant, names in comparison["missing"].items()
        if names
    ]
    return [*missing, *comparison["notes"]]


def _shortened(name: str, end: str = "") -> str:
    """A name of any length, cut in its middle to `_LONGEST` characters, `end` included."""
    longest = _LONGEST - len(end)
    half = (longest - 1) // 2
    return (name if len(name) <= longest else f"{name[:half]}…{name[-half:]}") + end


def comparison_rows(
    comparison: dict[str, Any], variant: str
) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the rows of a variant with its head: conditions, and their differences or []."""
    k = comparison["k"]
    columns = {
        "seeds": "seeds",
        "before": f"Avg@{k} before",
        "after": f"Avg@{k} after",
        "gain": "gain [interval]",
        "each": "gain of each seed [interval over problems]",
        "critic": "critic exactness",
        "share": "critic's share of time",
        "tokens": "solver tokens",
        "seconds": "training seconds",
    }
    rows = [["condition", *columns.values()]]
    for name in comparison["labels"]:
        found = _row(comparison, variant, name)
        rows.append([name, *(found[key] for key in columns)])
    if differences := _difference_rows(comparison, variant):
        differences[0][0] = f"gain of {comparison['labels'][0]}, less that of"
    return rows, differences


def selection_rows(comparison: dict[str, Any], variant: str) -> list[list[str]]:
    """Returns what choosing a checkpoint on the test adds, with its head; [] if unknown."""
    found = comparison.get("selection", {}).get(variant, {})
    rows = []
    for name in comparison["labels"]:
        if seeds := found.get(name):
            means = [percent(float(np.mean([s[key] for s in seeds]))) for key in _SELECTION]
            rows.append([name, *means, "; ".join(percent(seed["effect"]) for seed in seeds)])
    return [["condition", *_SELECTION.values(), "of each seed"], *rows] if rows else []


def unsolved_rows(comparison: dict[str, Any], variant: str) -> tuple[str, list[list[str]]]:
    """Returns a caption, and what became of the problems that no base solved; [] if unknown."""
    found = comparison.get("unsolved", {}).get(variant, {})
    if not found:
        return "", []
    k, first = comparison["k"], comparison["labels"][0]
    rows = [["condition", f"Avg@{k} after", f"Pass@{k} after", f"Avg@{k} of {first}, less it"]]
    for name in comparison["labels"]:
        if scores := found["after"].get(name):
            less = found["differences"].get(name)
            shown = percent(less, signed=True) if less else NOTHING
            rows.append(
                [name, percent(scores["avg_at_k"]), percent(scores["pass_at_k"]), shown]
            )
    return _UNSOLVED_NOTE.format(**found), rows


def comparison_markdown(comparison: dict[str, Any]) -> str:
    """Returns Markdown tables per variant: a row per condition, then the differences."""
    parts = []
    for variant in comparison["variants"]:
        parts.append(f"### {VARIANTS.get(variant, variant)}")
        parts += [markdown_rows(rows) for rows in comparison_rows(comparison, variant) if rows]
        if rows := selection_rows(comparison, variant):
            parts += [SELECTION_NOTE, markdown_rows(rows)]
        note, rows = unsolved_rows(comparison, variant)
        if rows:
            parts += [note, markdown_rows(rows)]
    parts.append(
        "Shares in percent, gains in points; means over seeds. Intervals are over seeds and "
        "problems, where not said otherwise, and pair both."
    )
    return "\n\n".join([*parts, *_notes(comparison)]) + "\n"


def markdown_rows(rows: list[list[str]]) -> str:
    table = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)
