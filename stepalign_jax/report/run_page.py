# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""report.html of one run."""

import pathlib
from typing import Any

from stepalign_jax.evaluation.words import percent, rounded
from stepalign_jax.feedback.contexts import FAILURES
from stepalign_jax.report.analyses import analyses_of
from stepalign_jax.report.answer import answer_of
from stepalign_jax.report.doubts import doubts_of
from stepalign_jax.report.examples import examples_of
from stepalign_jax.report.explorer import explorer
from stepalign_jax.report.facts import Facts, read_facts
from stepalign_jax.report.figures import run_figures
from stepalign_jax.report.html import Html, joined, tag, written
from stepalign_jax.report.page import write_page
from stepalign_jax.report.rollouts import Packed, pack_rollouts
from stepalign_jax.report.sections import (
    as_json,
    costs_list,
    doubts_list,
    figures_of,
    opening,
    page_body,
    scale,
    section,
    table,
)
from stepalign_jax.report.tables import SCORES
from stepalign_jax.runs.directory import RunDirectory

_ROLES = {
    "solver": "The solver reads the question alone.",
    "critic": "The critic reads the question, the solver's attempt, and what it may know.",
    "teacher": "The teacher reads question and context, and scores the solver's tokens.",
}


def write_run_report(run: RunDirectory) -> pathlib.Path:
    """Writes report/report.html of a run, which may be training.

    Returns:
      Its path.

    Raises:
      UserError: a file of the run is damaged, or the page cannot be written.
    """
    facts = read_facts(run)
    packed = pack_rollouts(run, facts.config)
    parts = {
        "figures": ("Figures", figures_of(run_figures(run))),
        "prompts": ("Prompts", _prompts(facts)),
        "critiques": ("Critiques", _critiques(facts)),
        "analysis": ("Where the advantage falls", analyses_of(run)),
        "rollouts": ("Rollouts", _rollouts(facts, packed)),
        "config": ("Config", _config(facts)),
    }
    shown = {name: part for name, part in parts.items() if part[1]}
    sections = [section(name, title, part) for name, (title, part) in shown.items()]
    contents = [("answer", "Answer"), *((name, title) for name, (title, _) in shown.items())]
    body = page_body(
        "Report of a run", facts.name, _under(facts), contents, [_opening(facts), *sections]
    )
    path = run.report / "report.html"
    return write_page(path, title=f"{facts.name}: report", body=body, blocks=packed.blocks)


def _under(facts: Facts) -> str:
    known = {
        "condition": facts.of("condition"),
        "model": facts.of("model", "path"),
        "trains": facts.of("trainable", "kind"),
        "objective": facts.of("objective", "kind"),
        "seed": facts.of("seed"),
    }
    return " · ".join(f"{name} {value}" for name, value in known.items() if value is not None)


def _opening(facts: Facts) -> Html:
    answer = answer_of(facts)
    confidence = facts.of("evaluation", "confidence") or 0.95
    drawn = None if answer.scale is None else scale(*answer.scale[:2], confidence)
    return opening(
        answer.verdict,
        answer.headline,
        answer.sentence,
        drawn,
        costs_list(answer.costs),
        doubts_list(doubts_of(facts)),
        _scores(facts.summary) if facts.summary else None,
    )


def _scores(summary: dict[str, Any]) -> Html:
    names = {**SCORES, "greedy": "greedy", "truncated": "truncated", "unparsed": "no answer"}
    sides = [summary[side] for side in ("before", "after", "gain")]
    rows = [
        [
            label.format(k=summary.get("k", "k")),
            *(percent(side.get(key), signed=side is sides[2]) for side in sides),
        ]
        for key, label in names.items()
        if key in sides[0]
    ]
    tokens = (rounded(side.get("mean_tokens"), signed=side is sides[2]) for side in sides)
    caption = (
        "Test problems before and after: percent, and points of gain, with intervals over "
        "problems"
    )
    return table(
        ["", "before", "after", "gain"], [*rows, ["tokens per answer", *tokens]], caption
    )


def _prompts(facts: Facts) -> Html | None:
    shown = [(role, facts.prompts[role]) for role in _ROLES if facts.prompts.get(role)]
    if not shown:
        return None
    return joined(
        tag("p", "As each role reads them, for the first training problem."),
        *(
            tag(
                "details",
                tag("summary", role.capitalize(), tag("span", _ROLES[role], class_="note")),
                tag("pre", written(str(text)), tabindex=0, aria_label=f"Prompt of the {role}"),
                open=role == "teacher",
            )
            for role, text in shown
        ),
    )


def _critiques(facts: Facts) -> Html | None:
    asked = int(facts.total("critic_requests"))
    outcomes = _counts(facts, "critic_outcome/")
    failed = _counts(facts, "context_failed/")
    if not (outcomes or failed or facts.column("critic_exact_on_wrong")):
        return None
    exact = facts.column("critic_exact_on_wrong")
    words = (
        f"On wrong rollouts {100 * sum(exact) / len(exact):.1f} % of the critiques were, to "
        "the letter, what a program makes of the rollout."
        if exact
        else "No program can check these critiques."
    )
    rollouts = facts.num_rollouts
    usable = {"usable": rollouts - sum(failed.values()), **failed}
    of_contexts = [[n, f"{v:,.0f}", _share(v, rollouts), _why(n)] for n, v in usable.items()]
    of_outcomes = [[n, f"{v:,.0f}", _share(v, asked), _why(n)] for n, v in outcomes.items()]
    head = ["", "number", "percent", "meaning"]
    return joined(
        tag("p", words),
        table(
            head,
            of_contexts,
            "Contexts of all rollouts; the teacher reads those that are usable",
        ),
        table(head, of_outcomes, "How each question to the critic ended")
        if of_outcomes
        else None,
    )


def _counts(facts: Facts, group: str) -> dict[str, float]:
    names = {name for row in facts.metrics for name in row if name.startswith(group)}
    counts = {name.removeprefix(group): facts.total(name) for name in names}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _share(number: float, whole: float) -> str:
    return f"{100 * number / whole:.1f}" if whole else "–"


def _why(name: str) -> str:
    if name in ("usable", "ok"):
        return "it can be used"
    return FAILURES[name].meaning if name in FAILURES else "a name of this run's own"


def _rollouts(facts: Facts, packed: Packed) -> Html | None:
    if not packed.number:
        return None
    here = (
        f"All {packed.number:,} rollouts are in this file."
        if packed.opened == packed.number
        else f"The list has all {packed.number:,} rollouts; the texts of {packed.opened:,}, "
        "spread over the run, are in this file, and those of the others in the run's rollouts/."
    )
    return joined(
        tag("p", here),
        *(tag("p", fault, class_="fault") for fault in packed.faults),
        explorer(facts.of("objective", "kind")),
        examples_of(packed.examples),
    )


def _config(facts: Facts) -> Html:
    return tag(
        "details",
        tag("summary", "The resolved config of the run"),
        tag("pre", written(as_json(facts.config)), tabindex=0, aria_label="Config"),
    )
