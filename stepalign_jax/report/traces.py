# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One rollout under several contexts: its advantages over its tokens, and its text in colour.

Blue is negative ("change this"), orange positive ("keep this"), and the scale is symmetric:
both are told apart with any common colour vision, and by their place above or below 0. Text of
models is drawn as it is, never as formulas.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.report.panels import INK, prepare

NEGATIVE, POSITIVE = "#2079B5", "#D55E00"
_MAP = LinearSegmentedColormap.from_list(
    "advantage", ["#0B4F86", "#6AAAD6", "#F4F4F2", "#F0A069", "#A84300"]
)
# Of the scales: small advantages shall look small, and beyond the most all colours are alike.
_LEAST_NATS, _MOST_NATS = 1.0, 4.0
_LABELLED = 80  # tokens that have room for their text below the axis
_COLUMNS = 100  # characters of a line of the heatmap
_GAP = 4  # characters between contexts that stand beside each other
_MOST_TOKENS = 600  # of a heatmap
_DARK, _LIGHT = "#1A1A1A", "#FFFFFF"
_LINE, _END = "\u21b5", "\u25a0"


def token_texts(scored: ScoredRollouts, rollout: int) -> list[str]:
    """The text of each token; a newline is an arrow, what writes nothing a block."""
    text = scored.rows[rollout]["rollout"]
    ends = scored.ends[scored.of(rollout)].tolist()
    found = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [_shown(piece) if piece else _END for piece in found]


def trace_figure(scored: ScoredRollouts, rollout: int) -> Figure:
    """Draws the advantage against the token, one panel per context, all on one scale.

    Reasoning steps are parted by thin lines; the first wrong one is shaded.
    """
    names = scored.contexts
    figure = Figure(figsize=(9.6, 1.0 + 1.25 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    values, usable = scored.advantage[:, scored.of(rollout)], scored.usable[:, rollout]
    limit = max(_LEAST_NATS, 1.12 * float(np.abs(values[usable]).max(initial=0.0)))
    for panel, name, advantage, is_usable in zip(axes, names, values, usable, strict=True):
        _draw_trace(panel, advantage)
        panel.set_ylim(-limit, limit)
        panel.set_title(name, fontsize=9, loc="left", color=INK, pad=3)
        _mark_steps(panel, scored, rollout)
        if not is_usable:
            why = scored.rows[rollout]["failures"][names.index(name)]
            panel.text(
                0.5, 0.7, f"no context: {why}", transform=panel.transAxes, ha="center",
                fontsize=9, color=INK,
            )  # fmt: skip
    _label_steps(axes[0], scored, rollout)
    _label_tokens(axes[-1], token_texts(scored, rollout))
    figure.supylabel("advantage (nats)", fontsize=9, color=INK)
    figure.suptitle(
        _title(scored, rollout), fontsize=10, x=0.01, ha="left", color=INK, parse_math=False
    )
    return figure


def trace_words(scored: ScoredRollouts, rollout: int) -> str:
    """Says what `trace_figure` shows, for those who do not see it."""
    values = scored.advantage[:, scored.of(rollout)]
    texts, parts = token_texts(scored, rollout), []
    for name, advantage, is_usable in zip(
        scored.contexts, values, scored.usable[:, rollout], strict=True
    ):
        if not is_usable:
            parts.append(f"{name}: no context")
            continue
        low = int(advantage.argmin())
        parts.append(f"{name}: lowest {advantage[low]:+.1f} at token {low} ({texts[low]})")
    return f"Advantage of each token in nats. {_title(scored, rollout)}. {'; '.join(parts)}."


def heatmap_figure(scored: ScoredRollouts, rollout: int) -> Figure:
    """Draws the rollout's text once per context, each token coloured by its advantage.

    The first wrong reasoning step is underlined. Of a long rollout the first tokens are drawn.
    """
    texts = token_texts(scored, rollout)[:_MOST_TOKENS]
    places, height = _lay_out(texts)
    values = scored.advantage[:, scored.of(rollout)][:, : len(texts)]
    usable = scored.usable[:, rollout]
    largest = float(np.abs(values[usable]).max(initial=0.0))
    norm = Normalize(-(limit := min(_MOST_NATS, max(largest, _LEAST_NATS))), limit)
    # Short lines leave room for several contexts beside each other.
    width = max(column + len(text) for text, (column, _) in zip(texts, places, strict=True))
    number = len(scored.contexts)
    beside = max(1, min(number, _COLUMNS // (width + _GAP)))
    beside = -(-number // -(-number // beside))  # as many in each row
    block = height + 1.8
    lines = block * -(-number // beside)
    used = max(0.6 * _COLUMNS, beside * (width + _GAP))  # room for the title
    size = (9.6 * used / _COLUMNS, 1.25 + 0.235 * lines)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, used)
    axes.set_ylim(lines, -0.2)
    axes.set_axis_off()
    steps, error = scored.reasoning_step[scored.of(rollout)], scored.first_error[rollout]
    wrong = (steps[: len(texts)] == error) & (error >= 0)
    for index, name in enumerate(scored.contexts):
        top, left = index // beside * block, index % beside * (width + _GAP)
        words = name if usable[index] else f"{name}: no context"
        axes.text(left, top + 0.5, words, fontsize=9.5, color=INK, va="center", weight="bold")
        shift = [(column + left, line + top + 1) for column, line in places]
        _draw_text(axes, texts, shift, values[index], wrong, norm)
    _draw_scale(figure, axes, norm, clipped=largest > _MOST_NATS)
    length = len(scored.tokens[scored.of(rollout)])
    cut = f" (first {len(texts)} of {length} tokens)" if length > len(texts) else ""
    figure.suptitle(
        _title(scored, rollout) + cut, fontsize=10, x=0.01, ha="left", color=INK,
        parse_math=False,
    )  # fmt: skip
    return figure


def _draw_trace(axes: Axes, advantage: np.ndarray) -> None:
    prepare(axes)
    axes.grid(axis="x", visible=False)
    places = np.arange(len(advantage))
    colours = np.where(advantage < 0, NEGATIVE, POSITIVE)
    if len(places) <= 2 * _LABELLED:
        axes.bar(places, advantage, 0.8, color=colours, linewidth=0)
    else:
        axes.vlines(places, 0, advantage, colors=colours.tolist(), linewidth=1.0)
    axes.axhline(0, color=INK, alpha=0.6, linewidth=0.7)
    axes.set_xlim(-0.8, len(places) - 0.2)


def _starts(steps: np.ndarray) -> list[tuple[int, int, int]]:
    """(reasoning step, its first token, one past its last) of each that has tokens."""
    found = []
    for step in np.unique(steps[steps >= 0]):
        places = np.flatnonzero(steps == step)
        found.append((int(step), int(places[0]), int(places[-1]) + 1))
    return found


def _mark_steps(axes: Axes, scored: ScoredRollouts, rollout: int) -> None:
    for step, start, end in _starts(scored.reasoning_step[scored.of(rollout)]):
        if step == scored.first_error[rollout]:
            axes.axvspan(start - 0.5, end - 0.5, color=INK, alpha=0.08, linewidth=0)
            axes.axvline(start - 0.5, color=INK, linestyle="--", linewidth=1)
        else:
            axes.axvline(start - 0.5, color=INK, alpha=0.35, linewidth=0.6)


def _label_steps(axes: Axes, scored: ScoredRollouts, rollout: int) -> None:
    steps = _starts(scored.reasoning_step[scored.of(rollout)])
    width = len(scored.tokens[scored.of(rollout)])
    last = -1e9
    for step, start, _ in steps:
        is_error = step == scored.first_error[rollout]
        if not is_error and start - last < 0.16 * width:
            continue  # no room
        last = start
        words = f"reasoning step {step + 1}{': first error' if is_error else ''}"
        axes.annotate(
            words, (start - 0.5, 1), (2, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=7.5, color=INK,
            fontweight="bold" if is_error else "normal",
        )  # fmt: skip


def _label_tokens(axes: Axes, texts: Sequence[str]) -> None:
    if len(texts) > _LABELLED:
        axes.set_xlabel("token", fontsize=9, color=INK)
        return
    # The arrow of a newline is no more than a smudge at this size.
    shown = [(text.strip() or text).replace(_LINE, r"\n") for text in texts]
    shown = [text if len(text) <= 8 else f"{text[:7]}…" for text in shown]
    axes.set_xticks(range(len(shown)), shown, family="monospace", parse_math=False)
    axes.tick_params(axis="x", labelsize=8, length=0)
    for label, text in zip(axes.get_xticklabels(), shown, strict=True):
        label.set_rotation(90 if len(text) > 2 else 0)


def _lay_out(texts: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
    """Column and line of each token, and the number of lines; a newline ends a line."""
    places, column, line = [], 0, 0
    for text in texts:
        width = min(len(text), _COLUMNS)
        if column + width > _COLUMNS:
            column, line = 0, line + 1
        places.append((column, line))
        column += width
        if text.endswith(_LINE):
            column, line = 0, line + 1
    return places, line + (column > 0)


def _draw_text(
    axes: Axes,
    texts: Sequence[str],
    places: Sequence[tuple[float, float]],
    values: np.ndarray,
    wrong: np.ndarray,
    norm: Normalize,
) -> None:
    cells = []
    for text, (column, line), value, is_wrong in zip(texts, places, values, wrong, strict=True):
        width, colour = min(len(text), _COLUMNS), _MAP(norm(value))
        cells.append(Rectangle((column + 0.03, line + 0.04), width - 0.06, 0.92, color=colour))
        dark = np.dot(colour[:3], [0.299, 0.587, 0.114]) < 0.55
        axes.text(
            column + width / 2, line + 0.54, text[:_COLUMNS], family="monospace", fontsize=9.5,
            ha="center", va="center", color=_LIGHT if dark else _DARK, parse_math=False,
        )  # fmt: skip
        if is_wrong:
            axes.plot([column, column + width], [line + 1, line + 1], color=INK, linewidth=1.2)
    axes.add_collection(PatchCollection(cells, match_original=True, linewidth=0))


def _draw_scale(figure: Figure, axes: Axes, norm: Normalize, *, clipped: bool) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm, _MAP), ax=axes, orientation="horizontal", fraction=0.03,
        aspect=50, shrink=0.5, pad=0.01, extend="both" if clipped else "neither",
    )  # fmt: skip
    bar.set_label("advantage (nats); underlined: the first error", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7.5, color=INK, labelcolor=INK)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _title(scored: ScoredRollouts, rollout: int) -> str:
    row: dict[str, Any] = scored.rows[rollout]
    verdict = "right" if scored.correct[rollout] else "wrong"
    problem = " ".join(_shown(row["problem"]).replace(_LINE, " ").split())
    problem = problem if len(problem) <= 70 else f"{problem[:69]}…"
    return f"{row['id']}: {problem} (answer {_shown(row['answer'])[:20]}); {verdict}"


def _shown(text: str) -> str:
    """Text without what no font draws."""
    text = text.replace("\r\n", _LINE).replace("\n", _LINE).replace("\t", " ")
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
