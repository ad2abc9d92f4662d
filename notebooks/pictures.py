# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run's files for a notebook: HTML and SVG, made with the standard library."""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from IPython.display import HTML

_BLUE, _RED = (32, 121, 181), (213, 94, 0)  # told apart with any common colour vision
_SVG = re.compile(r'<svg[^>]*role="img"[^>]*>.*?</svg>', re.DOTALL)
_NAME = re.compile(r'id="([a-z_]+)-figure_1"')


def report(run: Path, height: int = 760) -> HTML:
    """The run's report.html, as it is, in a frame that reaches nothing outside it."""
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    return HTML(
        f'<div><iframe srcdoc="{escape(page)}" sandbox="allow-scripts" '
        'title="report of the run" '
        f'style="width:100%;height:{height}px;border:1px solid #8885;border-radius:6px">'
        "</iframe></div>"
    )


def figures(run: Path, *names: str) -> HTML:
    """Figures of report.html by name, or all of them."""
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    drawn = {match[1]: svg for svg in _SVG.findall(page) if (match := _NAME.search(svg))}
    chosen = names or tuple(drawn)
    missing = [name for name in chosen if name not in drawn]
    if missing:
        raise KeyError(f"{missing[0]}: the run has {', '.join(drawn)}")
    cells = "".join(
        f'<figure style="margin:0;min-width:0"><figcaption>{name.replace("_", " ")}'
        f"</figcaption>{drawn[name]}</figure>"
        for name in chosen
    )
    columns = "repeat(auto-fill,minmax(300px,1fr))"
    return HTML(
        f'<div style="display:grid;gap:1.5em;grid-template-columns:{columns}">{cells}</div>'
    )


def texts(parts: Mapping[str, str]) -> HTML:
    """Texts under each other, verbatim, each under its name."""
    return HTML("".join(f"<h4>{escape(k)}</h4>{_verbatim(v)}" for k, v in parts.items()))


def _verbatim(text: str) -> str:
    return (
        '<pre style="white-space:pre-wrap;border-left:3px solid #8888;padding:.2em .8em;'
        f'margin:0">{escape(text)}</pre>'
    )


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> HTML:
    """Some columns of rows; numbers with four digits."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in columns)}</tr>"
        for row in rows
    )
    return HTML(f"<table><tr>{head}</tr>{body}</table>")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def side_by_side(rollout: str, critique: str) -> HTML:
    """A rollout and its critique, line beside line; what the critique changes is marked."""
    ours, theirs = rollout.split("\n"), critique.split("\n")
    cells = []
    matcher = difflib.SequenceMatcher(a=ours, b=theirs, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        for i in range(max(b - a, d - c)):
            pair = [ours[a + i] if a + i < b else "", theirs[c + i] if c + i < d else ""]
            marks = ["", ""] if kind == "equal" else [_tint(_RED, 0.25), _tint(_BLUE, 0.25)]
            cells += [
                f'<td style="text-align:left;font-family:monospace;{mark}">{escape(line)}</td>'
                for line, mark in zip(pair, marks, strict=True)
            ]
    lines = "".join(f"<tr>{''.join(cells[i : i + 2])}</tr>" for i in range(0, len(cells), 2))
    return HTML(f"<table><tr><th>rollout</th><th>critique</th></tr>{lines}</table>")


def tokens_of(row: Mapping[str, Any]) -> list[str]:
    """The text that each token of a rollout writes; the stop token writes none."""
    starts = [0, *row["ends"]]
    return [row["rollout"][a:b] for a, b in itertools.pairwise(starts)]


def heat(row: Mapping[str, Any]) -> HTML:
    """The rollout, each token coloured by its advantage: blue for, orange against it."""
    advantages, parts = row["advantage"], tokens_of(row)
    largest = max(map(abs, advantages), default=0.0) or 1.0
    spans = []
    for text, value in zip(parts, advantages, strict=True):
        # The square root lets small values be seen beside the largest.
        tint = _tint(_BLUE if value > 0 else _RED, 0.85 * (abs(value) / largest) ** 0.5)
        shown = escape(text) if text else "[end]"
        spans.append(f'<span style="{tint}" title="{value:+.3f}">{shown}</span>')
    return HTML(
        '<pre style="white-space:pre-wrap;line-height:1.7;font-size:1.1em">'
        f"{''.join(spans)}</pre><p>{_words(row)}</p>"
    )


def trace(row: Mapping[str, Any], boundaries: str, width: int = 760) -> HTML:
    """Advantage against token index, reasoning steps told apart by lines.

    Args:
      row: of rollouts/step_*.jsonl.
      boundaries: a pattern of where a reasoning step begins, as the config has it.
      width: in pixels.
    """
    advantages, height = row["advantage"], 190
    largest = max(map(abs, advantages), default=0.0) or 1.0
    step, middle = width / max(len(advantages), 1), height / 2
    bars = []
    for i, value in enumerate(advantages):
        size = abs(value) / largest * (middle - 14)
        top = middle - size if value > 0 else middle
        bars.append(
            f'<rect x="{i * step:.1f}" y="{top:.1f}" width="{0.8 * step:.1f}" '
            f'height="{max(size, 0.5):.1f}" fill="rgb{_BLUE if value > 0 else _RED}"/>'
        )
    lines = []
    for match in re.finditer(boundaries, row["rollout"]):
        first = sum(end <= match.start() for end in row["ends"])
        x = f"{first * step:.1f}"
        lines.append(
            f'<line x1="{x}" x2="{x}" y1="0" y2="{height}" stroke="currentColor" '
            f'stroke-dasharray="3 3" opacity=".5"/><text x="{first * step + 3:.1f}" y="11" '
            f'font-size="11" fill="currentColor">{escape(match[0].strip())}</text>'
        )
    return HTML(
        f'<svg viewBox="0 0 {width} {height}" width="100%" style="max-width:{width}px" '
        f'role="img" aria-label="{escape(_words(row))}">{"".join(lines)}'
        f'<line x1="0" x2="{width}" y1="{middle}" y2="{middle}" stroke="currentColor" '
        f'opacity=".5"/>{"".join(bars)}</svg><p>Largest |A|: {largest:.2f} nats. One bar per '
        "token; up: the teacher thinks it likelier than the solver does.</p>"
    )


def _words(row: Mapping[str, Any]) -> str:
    """Which token the teacher likes least, and which best."""
    parts, advantages = tokens_of(row), row["advantage"]
    if not advantages:
        return "There is no token."
    low, high = (advantages.index(pick(advantages)) for pick in (min, max))
    return (
        f"Advantage of {len(advantages)} tokens: lowest {advantages[low]:+.2f} at token {low} "
        f"({escape(repr(parts[low]))}), highest {advantages[high]:+.2f} at token {high} "
        f"({escape(repr(parts[high]))})."
    )


def _tint(colour: tuple[int, int, int], opacity: float) -> str:
    return f"background:rgba({','.join(map(str, colour))},{opacity:.2f})"
