# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The answer that a report opens with: did it learn, by how much, at what cost."""

from typing import Any, Literal, NamedTuple

from stepalign_jax.evaluation.words import percent
from stepalign_jax.report.facts import Facts
from stepalign_jax.runs.stopwatch import duration

Verdict = Literal["learned", "unclear", "worse", "open"]

_WORDS: dict[Verdict, str] = {
    "learned": "It learned",
    "unclear": "No sign that it learned",
    "worse": "It got worse",
    "open": "Not known yet",
}


class Answer(NamedTuple):
    """The first lines of a report.

    Attributes:
      verdict: by whether the interval of the gain holds 0.
      headline: in a few words.
      sentence: the same in one sentence with its numbers.
      scale: (before, after, gain) as intervals in shares; None where nothing was measured.
      costs: (value, what it is).
    """

    verdict: Verdict
    headline: str
    sentence: str
    scale: tuple[Any, Any, Any] | None
    costs: list[tuple[str, str]]


def verdict_of(gain: dict[str, float]) -> Verdict:
    """ "learned" where the whole interval is above 0, "worse" where it is below."""
    if gain["low"] > 0:
        return "learned"
    return "worse" if gain["high"] < 0 else "unclear"


def answer_of(facts: Facts) -> Answer:
    """Returns the answer that a run gives so far."""
    if facts.summary is not None:
        return _finished(facts, facts.summary)
    done, planned = len(facts.metrics), facts.of("train", "num_steps")
    progress = f"{done} of {planned} optimizer steps are done"
    gain = facts.validation_gain
    if gain is None:
        sentence = (
            f"{progress}, and nothing has been measured twice, so there is no gain to tell."
        )
        return Answer("open", _WORDS["open"], sentence, None, _costs(facts))
    verdict, (first, *_, newest) = verdict_of(gain), facts.validation.values()
    headline = {"learned": "It is learning", "worse": "It is getting worse"}
    sentence = (
        f"{progress}. Avg@{facts.of('evaluation', 'num_validation_samples')} on validation "
        f"problems went from {100 * first:.1f} % to {100 * newest:.1f} %, "
        f"{percent(gain, signed=True)} points."
    )
    return Answer(
        verdict, headline.get(verdict, "No sign yet that it learns"), sentence,
        (first, newest, gain), _costs(facts),
    )  # fmt: skip


def _finished(facts: Facts, summary: dict[str, Any]) -> Answer:
    before, after, gain = (summary[side]["avg_at_k"] for side in ("before", "after", "gain"))
    verdict = verdict_of(gain)
    went = "rose" if gain["mean"] > 0 else "fell"
    share = (f"{100 * value['mean']:.1f} %" for value in (before, after))
    number = summary.get("num_problems")
    problems = "the test problems" if number is None else f"{number:,} test problems"
    sentence = (
        f"Avg@{summary.get('k', 'k')} on {problems} {went} from {' to '.join(share)}: "
        f"{percent(gain, signed=True)} points, with the interval over problems in brackets."
    )
    return Answer(verdict, _WORDS[verdict], sentence, (before, after, gain), _costs(facts))


def _costs(facts: Facts) -> list[tuple[str, str]]:
    found = [(count(facts.total("solver_tokens")), "tokens sampled by the solver")]
    if facts.total("critic_tokens"):
        found.append((count(facts.total("critic_tokens")), "tokens written by the critic"))
    if facts.train_seconds:
        number = len(facts.timings)
        steps = "1 optimizer step" if number == 1 else f"{number:,} optimizer steps"
        found.append((duration(facts.train_seconds), f"of training, {steps}"))
    if facts.critic_share:
        found.append((f"{100 * facts.critic_share:.0f} %", "of that time was the critic's"))
    if cost := facts.total("critic_cost"):
        found.append((f"{cost:,.2f}", "paid to the critic's server"))
    return found


def count(value: float) -> str:
    """A count in few digits: 950, 12,345, 1.2 M, 3.4 G."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:,.0f}"
