# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Parts that the pages of a run and of a comparison share."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from stepalign_jax.base.version import package_version
from stepalign_jax.report.figures import Drawn
from stepalign_jax.report.html import Html, joined, tag

_THEMES = {"auto": "as the system", "light": "light", "dark": "dark"}


def page_body(
    kind: str, name: str, under: str, contents: Sequence[tuple[str, str]], parts: Iterable[Html]
) -> Html:
    """Returns the body of a page.

    Args:
      kind: what the page is of.
      name: of that thing.
      under: a line below its name.
      contents: (id, title) of the sections.
      parts: the sections.
    """
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title in contents]
    options = [tag("option", words, value=value) for value, words in _THEMES.items()]
    theme = tag("label", "Colours ", tag("select", *options, id="theme"), class_="script")
    return joined(
        tag("a", "Skip to the answer", href="#answer", class_="skip"),
        tag(
            "header",
            tag("p", kind, class_="kind"),
            tag("h1", name),
            tag("p", under, class_="under"),
            tag("nav", tag("ul", *links), aria_label="Sections"),
            theme,
        ),
        tag("main", *parts),
        tag(
            "footer",
            tag(
                "p",
                f"Made by stepalign_jax {package_version()} from the files of the "
                f"{kind.split()[-1]}; this file asks for nothing from any network.",
            ),
        ),
    )


def section(name: str, title: str, *parts: Html | None) -> Html:
    """Returns a section under a heading that links can name."""
    return tag(
        "section",
        tag("h2", title, id=f"{name}-title"),
        *parts,
        id=name,
        aria_labelledby=f"{name}-title",
    )


def opening(verdict: str, headline: str, sentence: str, *parts: Html | None) -> Html:
    """Returns the first section: the answer itself is its heading."""
    return tag(
        "section",
        tag("h2", headline, id="answer-title"),
        tag("p", sentence, class_="lead"),
        *parts,
        id="answer",
        class_=f"answer {verdict}",
        aria_labelledby="answer-title",
    )


def costs_list(costs: Sequence[tuple[str, str]]) -> Html | None:
    """Returns what it cost, a number and what it is of each."""
    if not costs:
        return None
    items = [tag("div", tag("dt", words), tag("dd", value)) for value, words in costs]
    return joined(tag("h3", "What it cost"), tag("dl", *items, class_="costs"))


def doubts_list(doubts: Sequence[str]) -> Html:
    """Returns what to doubt, a sentence each."""
    return joined(
        tag("h3", "What to doubt"), tag("ul", *(tag("li", d) for d in doubts), class_="doubts")
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> Html:
    """Returns a table whose first column names its rows; it scrolls on a narrow page."""
    headings = [tag("th", cell, scope="col") for cell in head]
    lines = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    drawn = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *headings)),
        tag("tbody", *lines),
    )
    return tag("div", drawn, class_="wide", tabindex=0, role="region", aria_label=caption)


def as_json(value: Any) -> str:
    """A value as the files of a run show it."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def figures_of(drawn: Sequence[Drawn], *, broad: bool = False) -> Html | None:
    """Returns figures, each with its words to open; None without any.

    Args:
      drawn: what they show.
      broad: whether each takes a line of its own.
    """
    if not drawn:
        return None
    return tag("div", *map(_figure, drawn), class_="figures broad" if broad else "figures")


def _figure(drawn: Drawn) -> Html:
    words = tag("details", tag("summary", "In words"), tag("p", drawn.alternative))
    return tag(
        "figure",
        tag("figcaption", drawn.title),
        Html(drawn.svg),
        words,
        id=f"figure-{drawn.name}",
    )


def scale(before: Any, after: Any, confidence: float) -> Html:
    """Returns a line from 0 to 100 percent with both scores and their intervals.

    Args:
      before: an interval, or a number, in shares.
      after: the same, later.
      confidence: of the intervals.
    """
    sides = {"before": _ends(before), "after": _ends(after)}
    words = "; ".join(f"{side} {100 * mean:.1f} %" for side, (mean, *_) in sides.items())
    marks = [mark for side, ends in sides.items() for mark in _marks(side, *ends)]
    ticks = "".join(
        f'<line x1="{x}" x2="{x}" y1="62" y2="68" class="tick"/>'
        f'<text x="{x}" y="92" class="tick">{x // 10}{" %" if x == 1000 else ""}</text>'
        for x in range(0, 1001, 250)
    )
    (start, *_), (end, *_) = sides.values()
    way = f'<line x1="{1000 * start:.1f}" x2="{1000 * end:.1f}" y1="50" y2="50" class="way"/>'
    label = f"{words}, on a scale from 0 to 100 %; bars are {100 * confidence:.0f} % intervals"
    axis = '<line x1="0" x2="1000" y1="65" y2="65" class="tick"/>'
    opened = f'<svg class="scale" viewBox="-14 0 1064 100" role="img" aria-label="{label}">'
    return Html(f"{opened}{axis}{ticks}{way}{''.join(marks)}</svg>")


def _ends(value: Any) -> tuple[float, float, float]:
    if isinstance(value, dict):
        return value["mean"], value["low"], value["high"]
    return value, value, value


def _marks(side: str, mean: float, low: float, high: float) -> Iterable[str]:
    x, left, right = 1000 * mean, 1000 * low, 1000 * high
    yield f'<line x1="{left:.1f}" x2="{right:.1f}" y1="50" y2="50" class="{side} bar"/>'
    yield f'<circle cx="{x:.1f}" cy="50" r="9" class="{side}"/>'
    yield f'<text x="{x:.1f}" y="26" class="{side}">{100 * mean:.1f}</text>'
