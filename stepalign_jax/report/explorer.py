# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The part of a page that page/*.js brings to life: a list of rollouts, and one of them."""

from stepalign_jax.report.html import Html, joined, tag

_SHOWN = {
    "all": "all",
    "wrong": "wrong",
    "right": "right",
    "failed": "without a usable context",
    "cut": "truncated",
}
_HEADINGS = {
    "step": "step",
    "problem": "problem",
    "correct": "answer",
    "tokens": "tokens",
    "mean": "mean |A|",
    "low": "lowest A",
    "failure": "context",
}


def explorer(objective: str | None) -> Html:
    """Returns what stands still of it; `objective` names what the loss of a token is."""
    return joined(_controls(), _list(), _viewer(objective))


def _controls() -> Html:
    options = [tag("option", words, value=value) for value, words in _SHOWN.items()]
    return tag(
        "form",
        tag("label", "Search ", tag("input", id="search", type="search", autocomplete="off",
            placeholder="in problems, rollouts, critiques", spellcheck="false")),
        tag("label", "Show ", tag("select", *options, id="shown")),
        tag("label", "From ", tag("select", id="source"), id="sources", hidden=True),
        tag("p", id="found", role="status"),
        class_="controls script",
    )  # fmt: skip


def _list() -> Html:
    headings = [
        tag(
            "th",
            tag("button", title, type="button", data_sort=name),
            scope="col",
            class_=f"c-{name}",
        )
        for name, title in _HEADINGS.items()
    ]
    drawn = tag(
        "table",
        tag(
            "caption",
            "A is log π(teacher) − log π(solver) of a token, in nats. Open a row to read it.",
        ),
        tag("thead", tag("tr", *headings)),
        tag("tbody", id="rows"),
        class_="list",
    )
    pages = tag(
        "div",
        tag("button", "Back", type="button", id="back"),
        tag("span", id="at"),
        tag("button", "On", type="button", id="on"),
        class_="pages",
    )
    return tag(
        "div",
        tag(
            "div",
            drawn,
            class_="wide",
            tabindex=0,
            role="region",
            aria_label="List of rollouts",
        ),
        pages,
        class_="script",
    )


def _viewer(objective: str | None) -> Html:
    return tag(
        "dialog", id="viewer", aria_labelledby="viewer-title", data_loss=objective or "loss"
    )
