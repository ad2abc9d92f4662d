# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What to doubt about a run: sentences that follow from its own numbers.

Each rule says one thing, and says nothing where the numbers give no reason. What is true of
every run stands last.
"""

from collections.abc import Iterator
from typing import Any

from stepalign_jax.feedback.contexts import FAILURES
from stepalign_jax.report.facts import Facts

FEW_PROBLEMS = 100
WIDE = 0.10  # of an interval of a gain, in shares
NOTABLE = 0.01  # a share of answers below this is not spoken of
LONGER = 1.5  # times as many tokens per answer
_RECENT = 10  # steps that stand for the end of a run


def doubts_of(facts: Facts) -> list[str]:
    """Returns a sentence for each reason to doubt what a run shows."""
    rules = (
        _unfinished, _gain, _answers, _ungraded, _contexts, _critic, _lengths, _inputs,
        _selection, _preflight, _alignment, _always,
    )  # fmt: skip
    return [sentence for rule in rules for sentence in rule(facts)]


def _unfinished(facts: Facts) -> Iterator[str]:
    if facts.summary is None:
        yield (
            "The run is not done: its numbers are of validation problems, which may be few. "
            "The test problems are asked at the end."
        )


def _gain(facts: Facts) -> Iterator[str]:
    gain = facts.validation_gain if facts.summary is None else facts.summary["gain"]["avg_at_k"]
    if gain is None:
        return
    width = gain["high"] - gain["low"]
    if gain["low"] <= 0 <= gain["high"]:
        yield "The interval of the gain holds 0, so chance alone may explain it."
    if width > WIDE:
        yield f"The interval of the gain is {100 * width:.0f} points wide."
    number = (facts.summary or {}).get("num_problems")
    if number is not None and number < FEW_PROBLEMS:
        yield f"There are {number} test problems: a few easy or hard ones move the average."


def _answers(facts: Facts) -> Iterator[str]:
    sides = facts.summary or {}
    words = {
        "truncated": "hit the limit of tokens and count as wrong",
        "unparsed": "had no final answer that could be read and count as wrong",
    }
    for name, meaning in words.items():
        shares = [_mean(sides.get(side, {}).get(name)) for side in ("before", "after")]
        if max(shares, default=0.0) >= NOTABLE:
            before, after = (f"{100 * share:.1f} %" for share in shares)
            yield (
                f"Of the test answers {before} before and {after} after training {meaning}: "
                "part of a gain may be learning to finish."
            )
    if (cut := _mean_of_last(facts, "truncated")) >= NOTABLE:
        yield f"Of the newest rollouts {100 * cut:.1f} % were truncated."


def _ungraded(facts: Facts) -> Iterator[str]:
    number = sum(
        row.get(name, 0)
        for row in facts.timings
        for name in ("grading_timeouts", "grading_crashes")
    )
    if number:
        yield f"{number:,.0f} answers could not be judged in time and count as wrong."


def _contexts(facts: Facts) -> Iterator[str]:
    failed = facts.total("contexts_failed")
    if not failed or not facts.num_rollouts:
        return
    kinds = {
        name.partition("/")[2]: sum(row.get(name) or 0 for row in facts.metrics)
        for name in {n for row in facts.metrics for n in row if n.startswith("context_failed/")}
    }
    worst = max(kinds, key=lambda name: kinds[name], default="")
    why = f", most often because of {meaning(worst)}" if worst else ""
    yield (
        f"{failed:,.0f} of {facts.num_rollouts:,} rollouts "
        f"({100 * failed / facts.num_rollouts:.1f} %) had no usable context{why}: they were "
        "left out of the loss."
    )


def meaning(failure: str) -> str:
    """A failure in words; one of a user's own stands for itself."""
    known = FAILURES.get(failure)
    return f"“{failure}” ({known.meaning})" if known else f"“{failure}”"


def _critic(facts: Facts) -> Iterator[str]:
    exact = facts.column("critic_exact_on_wrong")
    if exact and (share := sum(exact) / len(exact)) < 0.9:
        yield (
            f"On wrong rollouts {100 * share:.0f} % of the critiques were what a program would "
            "have written: the others teach something else."
        )


def _lengths(facts: Facts) -> Iterator[str]:
    sides = facts.summary or {}
    before, after = (
        _mean(sides.get(side, {}).get("mean_tokens")) for side in ("before", "after")
    )
    if before and after and not 1 / LONGER <= after / before <= LONGER:
        yield (
            f"Answers went from {before:,.0f} to {after:,.0f} tokens: compare at equal length "
            "before calling it reasoning."
        )


def _inputs(facts: Facts) -> Iterator[str]:
    for change in facts.changes:
        if "inputs" in change:
            what = ", ".join(change["inputs"])
            yield (
                f"Inputs changed at step {change['step']}: {what}. Before and after differ in "
                "more than training."
            )
        elif "num_steps" in change:
            old, new = change["num_steps"]
            yield f"The run was lengthened at step {change['step']}, from {old} to {new} steps."


def _selection(facts: Facts) -> Iterator[str]:
    limit = facts.of("problems", "base_avg_below")
    if limit:
        yield (
            "Problems were chosen because the base failed at them (Avg below "
            f"{100 * limit:g} %): some rise is expected without any learning."
        )
    scores = facts.validation
    if len(scores) > 2:
        best, last = max(scores, key=lambda step: scores[step]), max(scores)
        if scores[best] - scores[last] > 0.02:
            yield (
                f"Validation was best at step {best} ({100 * scores[best]:.1f} %) and is "
                f"{100 * scores[last]:.1f} % now; what is reported is the newest, not the best."
            )
        if scores[last] >= 0.99:
            yield "Validation is at its ceiling: these problems can show no further gain."


def _preflight(facts: Facts) -> Iterator[str]:
    for warning in facts.preflight.get("warnings", []):
        yield f"Before the first step: {warning}."


def _alignment(facts: Facts) -> Iterator[str]:
    found = facts.prompts.get("alignment") or {}
    if artefacts := found.get("template_artefacts"):
        named = ", ".join(map(str, artefacts))
        yield f"Teacher and solver differ by their template alone at: {named}."


def _always(facts: Facts) -> Iterator[str]:
    if facts.of("model", "path") == "packaged:tiny":
        yield (
            "The model is a miniature whose mistake was planted in pre-training: what it shows "
            "is that the loop works, and not how a real model would gain."
        )
    yield (
        "This is one run with one seed: intervals are over problems and say nothing of what "
        "another seed would give."
    )


def _mean(value: Any) -> float:
    return float(value["mean"] if isinstance(value, dict) else value or 0.0)


def _mean_of_last(facts: Facts, name: str) -> float:
    values = facts.column(name)[-_RECENT:]
    return sum(values) / len(values) if values else 0.0
