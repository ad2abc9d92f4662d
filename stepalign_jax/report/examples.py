# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A few rollouts for a reader without a script, and on paper."""

from collections.abc import Sequence
from typing import Any

from stepalign_jax.report.html import Html, tag, written

_LONGEST = 4_000  # characters of a text


def examples_of(rows: Sequence[dict[str, Any]]) -> Html | None:
    """Returns rows of rollouts/*.jsonl side by side with their contexts; None without any."""
    if not rows:
        return None
    return tag("div", tag("h3", "A few of them"), *map(_example, rows), class_="examples")


def _example(row: dict[str, Any]) -> Html:
    verdict = "right" if row.get("correct") else "wrong"
    title = f"Optimizer step {row['step']}, {verdict}, expected answer {row.get('answer', '')}"
    return tag(
        "article",
        tag("h4", title),
        tag("pre", written(_cut(str(row.get("problem", "")))), class_="problem"),
        tag("div", tag("h5", "Rollout"), tag("pre", written(_cut(row["rollout"])))),
        tag(
            "div", tag("h5", "What the teacher saw"), tag("pre", written(_cut(row["context"])))
        ),
    )


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]} … ({len(text):,} characters; the run's files have all of them)"
