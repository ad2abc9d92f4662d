# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The figures of an analysis show what the scores say, whatever the text is."""

import dataclasses
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from support.hand_scored import scored_texts
from support.runs import tiny_roles

from stepalign_jax.analysis.localisation import localisation
from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.base.errors import UserError
from stepalign_jax.problems.problem import Problem
from stepalign_jax.report.analysis_figures import draw_analysis, examples
from stepalign_jax.report.localisation import localisation_markdown, localisation_tables
from stepalign_jax.report.traces import (
    NEGATIVE,
    POSITIVE,
    heatmap_figure,
    token_texts,
    trace_figure,
    trace_words,
)

ROLES = tiny_roles()
WRONG = "Step 1: 3*8=24\nStep 2: 47+24=61\nStep 3: 61-12=49\nAnswer: 49"
RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nStep 3: 71-12=59\nAnswer: 59"
AT_ONCE = "Step 1: 3*8=25\nAnswer: 25"
CONTEXTS = ("stepalign", "refsol")


def make(*, values: Any = None, usable: Any = None) -> ScoredRollouts:
    """Three rollouts: right, wrong at once, and wrong in the middle; that is number 2."""
    texts = [RIGHT, AT_ONCE, WRONG]
    problems = [Problem("47+3*8-12", "59", None, "test")] * 3
    made = scored_texts(
        ROLES, problems, texts, CONTEXTS,
        first_error=np.array([-1, 0, 1], np.int32), correct=np.array([True, False, False]),
    )  # fmt: skip
    advantages = np.zeros((2, len(made.tokens)), np.float32) if values is None else values
    usable = np.ones((2, 3), bool) if usable is None else usable
    solver = np.zeros(len(made.tokens), np.float32)
    return dataclasses.replace(
        made, solver_logprobs=solver, teacher_logprobs=advantages, usable=usable
    )


def with_one(place: int, value: float) -> ScoredRollouts:
    """`value` at one token of the wrong rollout, under the first context."""
    made = make()
    values = np.zeros((2, len(made.tokens)), np.float32)
    values[0, made.of(2).start + place] = value
    return make(values=values)


def test_a_trace_has_a_panel_per_context_on_one_scale():
    figure = trace_figure(with_one(15, -5.0), 2)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(CONTEXTS)
    low, high = figure.axes[0].get_ylim()
    assert figure.axes[1].get_ylim() == (low, high) and low == -high and high > 5
    bars = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_height()]
    heights = {round(bar.get_x() + bar.get_width() / 2): bar for bar in bars}
    assert heights[15].get_height() == -5.0
    assert heights[15].get_facecolor() == to_rgba(NEGATIVE)
    up = trace_figure(with_one(15, 2.0), 2).axes[0].patches
    assert any(p.get_facecolor() == to_rgba(POSITIVE) and p.get_height() == 2.0 for p in up)


def test_the_first_error_is_shaded_and_named():
    figure = trace_figure(make(), 2)
    # `Step 1: ` and seven tokens, then ten of the second reasoning step.
    for axes in figure.axes:
        spans = [p for p in axes.patches if p.get_alpha() == 0.08]
        assert [(p.get_x(), p.get_width()) for p in spans] == [(7.5, 10.0)]
    words = [text.get_text() for text in figure.axes[0].texts]
    assert "reasoning step 2: first error" in words
    none = trace_figure(make(), 0)
    assert not any("first error" in text.get_text() for text in none.axes[0].texts)


def test_a_context_that_failed_says_so():
    made = make(usable=np.array([[True] * 3, [True, True, False]]))
    made.rows[2]["failures"][1] = "truncated"
    texts = [text.get_text() for text in trace_figure(made, 2).axes[1].texts]
    assert "no context: truncated" in texts
    assert "refsol: no context" in trace_words(made, 2)
    titles = [text.get_text() for text in heatmap_figure(made, 2).axes[0].texts]
    assert "refsol: no context" in titles


def test_words_name_the_lowest_token():
    assert "stepalign: lowest -5.0 at token 15 (6)" in trace_words(with_one(15, -5.0), 2)


def test_a_heatmap_holds_the_text_once_per_context_and_underlines_the_error():
    made = with_one(15, -3.0)
    axes = heatmap_figure(made, 2).axes[0]
    texts = [text.get_text() for text in axes.texts if text.get_text() not in CONTEXTS]
    assert texts == 2 * token_texts(made, 2)
    assert "".join(token_texts(made, 2)) == WRONG.replace("\n", "\u21b5") + "\u25a0"
    assert len(axes.lines) == 2 * 10  # tokens of the wrong reasoning step
    assert not heatmap_figure(made, 0).axes[0].lines  # the answer is in no reasoning step


def hostile(text: str) -> ScoredRollouts:
    made = make()
    rows = [
        {**row, "rollout": text[: len(row["rollout"])], "problem": text} for row in made.rows
    ]
    ends = np.minimum(made.ends, len(text)).astype(np.int32)
    return dataclasses.replace(made, rows=rows, ends=ends)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(
    "text",
    ["$\\frac{1}{$" * 9, "</script><b>&" * 9, "\u202eabc\x00\ud800\t\r\n" * 9, "数学" * 30],
)
def test_any_text_is_drawn_as_it_is(tmp_path, text):
    made = hostile(text)
    found = localisation(make(), num_resamples=5, confidence=0.9, seed=0)
    for path in draw_analysis(tmp_path, made, found, [2]):
        assert path.stat().st_size > 5000
        svg = path.with_suffix(".svg").read_text(encoding="utf-8")
        assert ElementTree.fromstring(svg).get("role") == "img"
        assert "<script" not in svg and "<b>" not in svg


def test_of_a_long_rollout_the_first_tokens_are_drawn():
    made, times = make(), 30
    own = made.of(0)
    long = dataclasses.replace(
        made,
        rows=[{**made.rows[0], "rollout": RIGHT * times}],
        offsets=np.array([0, times * own.stop]),
        ends=np.concatenate([made.ends[own] + n * len(RIGHT) for n in range(times)]),
        tokens=np.tile(made.tokens[own], times),
        reasoning_step=np.tile(made.reasoning_step[own], times),
        solver_logprobs=np.zeros(times * own.stop, np.float32),
        teacher_logprobs=np.zeros((2, times * own.stop), np.float32),
    )
    assert trace_figure(long, 0).axes[-1].get_xlabel() == "token"
    figure = heatmap_figure(long, 0)
    assert f"first 600 of {times * own.stop} tokens" in figure.get_suptitle()
    assert len(figure.axes[0].texts) == 2 * 601


def test_examples_are_an_error_amid_reasoning_steps_and_a_right_rollout():
    assert examples(make()) == [2, 0]
    # One with all contexts is better to look at than a better place.
    assert examples(make(usable=np.ones((2, 3), bool))) == [2, 0]
    nothing = dataclasses.replace(make(), first_error=np.full(3, -2), correct=np.zeros(3, bool))
    assert examples(nothing) == []


def analysis(**changes: Any) -> dict[str, Any]:
    made = dataclasses.replace(with_one(15, -3.0), **changes)
    found = localisation(made, num_resamples=5, confidence=0.9, seed=0)
    return {"of": "a model", "source": "rollouts", "first_error_by": {"oracle": 3}, **found}


def test_tables_fit_a_terminal_and_have_a_row_per_context():
    text = localisation_tables(analysis())
    assert max(map(len, text.splitlines())) <= 80
    for name in CONTEXTS:
        assert text.count(f"\n{name} ") == 5
    assert "3 by oracle" in text and "100.0" in text
    table = localisation_markdown(analysis())
    assert "| stepalign | 0.0 [0.0, 0.0] | 100.0 [100.0, 100.0] |" in table
    assert r"share of \|A\|" in table


def test_what_cannot_be_measured_is_a_dash_and_is_drawn_as_nothing(tmp_path):
    found = analysis(first_error=np.full(3, -2, np.int32))
    assert "\u2013" in localisation_tables(found)
    [path] = draw_analysis(tmp_path, make(), found, [])
    assert path.name == "localisation.png"


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        draw_analysis(tmp_path / "file", make(), analysis(), [])
