# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from support.run_files import make_summary

from stepalign_jax.base.files import write_json, write_jsonl
from stepalign_jax.report import panels
from stepalign_jax.report.comparison_panels import comparison_panels
from stepalign_jax.report.figures import Drawn, comparison_figures, run_figures
from stepalign_jax.report.run_panels import run_panels
from stepalign_jax.report.svg import to_svg
from stepalign_jax.runs.directory import RunDirectory

_PAGES = {"light": "#ffffff", "dark": "#15171a"}
_ALLOWED = {"svg", "g", "defs", "path", "use", "text", "tspan", "clipPath", "rect"}


def metrics_row(step: int) -> dict:
    return {
        "step": step,
        "reward": 0.25 + 0.5 * (step % 2),
        "loss": 1.0 / (step + 1),
        "mean_tokens": 30.0 + step,
        "truncated": 0.01,
        "looping": 0.0,
        "sampler_logprob_gap": 1e-6,
        "solver_logprob_mean": -0.5,
        "gradient_norm": 0.1,
        "critic_exact_on_wrong": None,
        "critic_outcome/accepted": 6.0,
        **({"context_failed/wrong_answer": 2.0} if step % 2 else {}),
    }


def timings_row(step: int) -> dict:
    phases = {"sample": 1.0, "critique": 2.0, "score": 0.5, "update": 1.5, "host": 0.25}
    compile_seconds = 60.0 if step == 0 else 0.0
    phases["update"] += compile_seconds
    total = {"compile_seconds": compile_seconds, "total": sum(phases.values())}
    return {"step": step, **phases, **total}


def make_run(path, num_steps: int = 20) -> RunDirectory:
    run = RunDirectory(path)
    write_json(run.config_file, {"evaluation": {"confidence": 0.9}})
    write_jsonl(run.metrics_file, map(metrics_row, range(num_steps)))
    write_jsonl(run.timings_file, map(timings_row, range(num_steps)))
    for step, scores in ((0, [0.0, 0.5, 0.25, 0.25]), (10, [1.0, 0.5, 0.75, 0.75])):
        write_json(run.evaluation_file(f"validation_{step:05d}"), {"avg_at_k": scores})
    part = {"bytes_per_device": 3 * 2**20, "devices": 1, "where": "device 0"}
    critic = {"bytes_per_device": 0, "devices": 1, "where": "the base itself"}
    write_json(run.memory_file, {"base": part, "critic": critic})
    write_json(run.summary_file, make_summary())
    return run


def make_comparison(**changes) -> dict:
    def seed(number: int, gain: float) -> dict:
        return {
            "seed": number,
            "summary": make_summary(0.4, 0.4 + gain),
            "curve": [[0, 0.4], [10, 0.4 + gain / 2], [20, 0.4 + gain]],
            "critic_exactness": [[s + 1, 0.5] for s in range(20)],
        }

    conditions = {"stepalign": [seed(0, 0.3), seed(1, 0.2)], "no_context": [seed(0, 0.0)]}
    gain = {"avg_at_k": {"mean": 0.25, "low": 0.2, "high": 0.3}}
    return {
        "k": 12,
        "labels": ["stepalign", "refsol", "no_context"],
        "variants": {"equal_tokens": conditions, "equal_wall_clock": {}},
        "gains": {"equal_tokens": dict.fromkeys(conditions, gain)},
        **changes,
    }


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> list[Drawn]:
    found = run_figures(make_run(tmp_path_factory.mktemp("run")))
    return [*found, *comparison_figures(make_comparison())]


def test_a_run_has_a_figure_of_all_that_it_measured(figures):
    assert [drawn.name for drawn in figures] == [
        *("validation", "before_after", "reward", "loss", "mean_tokens", "truncated"),
        *("surprisal", "looping", "critic_outcomes", "failures", "gradient_norm"),
        *("time", "time_by_step", "memory"),
        *("equal_tokens_curves", "equal_tokens_critic", "equal_tokens_gains"),
    ]


def test_a_run_that_has_nothing_yet_has_no_figure(tmp_path):
    assert run_figures(RunDirectory(tmp_path)) == []


def test_figures_are_the_same_bytes_each_time(tmp_path):
    run = make_run(tmp_path)
    assert run_figures(run) == run_figures(run)


def test_figures_hold_nothing_that_a_page_must_fear(figures):
    for drawn in figures:
        root = ElementTree.fromstring(drawn.svg)
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert tags <= _ALLOWED
        attributes = {
            (key.rpartition("}")[2], value)
            for element in root.iter()
            for key, value in element.attrib.items()
        }
        names = {key for key, _ in attributes}
        assert not {name for name in names if name == "style" or name.startswith("on")}
        # Whatever is referred to is in the figure itself.
        ids = {value for key, value in attributes if key == "id"}
        references = {value for key, value in attributes if key == "href"}
        references |= {v[4:-1] for _, v in attributes if v.startswith("url(")}
        assert references and {reference[1:] for reference in references} <= ids
        assert all(value.startswith(f"{drawn.name}-") for value in ids)


def test_ids_of_a_page_are_unique(figures):
    ids = [id_ for drawn in figures for id_ in re.findall(r'\bid="([^"]*)"', drawn.svg)]
    assert len(ids) == len(set(ids)) > 100


def test_text_axes_and_grid_take_the_colour_of_the_page(figures):
    known = {colour.lower() for colour in (*panels.COLOURS, panels.BEFORE)}
    for drawn in figures:
        colours = set(re.findall(r"#[0-9a-fA-F]{6}\b", drawn.svg))
        assert {colour.lower() for colour in colours} <= known
        assert 'fill="currentColor"' in drawn.svg and "black" not in drawn.svg


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("page", _PAGES)
@pytest.mark.parametrize("colour", [*panels.COLOURS, panels.BEFORE])
def test_colours_stand_out_in_light_and_dark(page, colour):
    """WCAG 2 asks three to one of graphics."""
    low, high = sorted([luminance(colour), luminance(_PAGES[page])])
    assert (high + 0.05) / (low + 0.05) >= 3.0


def test_figures_are_told_in_words_with_their_numbers(figures):
    told = {drawn.name: drawn.alternative for drawn in figures}
    for drawn in figures:
        assert ElementTree.fromstring(drawn.svg).get("aria-label") == drawn.alternative
    assert told["validation"].startswith(
        "Validation Avg@k in percent by optimizer step, over 4 problems with 90 % intervals: "
        "25.0 [12.5, "
    )
    assert " 75.0 [62.5, " in told["validation"] and told["validation"].endswith("at step 10.")
    assert told["before_after"] == (
        "Scores on the test problems in percent: Avg@12 from 40.0 [37.0, 43.0] to 70.0 "
        "[67.0, 73.0]; Pass@12 from 40.0 [37.0, 43.0] to 70.0 [67.0, 73.0]; Maj@12 from 40.0 "
        "[37.0, 43.0] to 70.0 [67.0, 73.0]."
    )
    assert "32 in the first 5" in told["mean_tokens"] and "highest 49" in told["mean_tokens"]
    assert "over all 20 steps: wrong answer 20." in told["failures"]
    assert "3 min in all" in told["time"] and "update 90 s (55 %)" in told["time"]
    assert told["time"].endswith("Of it 60 s went to compilation.")
    assert "base 3.0 MiB; critic the base itself" in told["memory"]
    assert "stepalign +25.0 [+20.0, +30.0]" in told["equal_tokens_gains"]
    assert "stepalign 65.0 (seeds 60.0 to 70.0)" in told["equal_tokens_curves"]


def test_hostile_names_do_no_harm():
    figure = Figure()
    figure.subplots().set_title('</text><script>alert("x")</script>')
    svg = to_svg(figure, name="a", alternative='"><script>')
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).get("aria-label") == '"><script>'


def test_surprisal_is_of_sampled_tokens_alone(tmp_path):
    run = make_run(tmp_path)
    rows = [metrics_row(step) | {"sampler_logprob_gap": None} for step in range(3)]
    write_jsonl(run.metrics_file, rows)
    assert "surprisal" not in [panel.name for panel in run_panels(run)]


def test_a_trailing_mean_and_its_interval():
    found = panels.trailing(np.array([1.0, 3.0, 2.0, 2.0, 2.0, 7.0]))
    assert found.window == 5
    np.testing.assert_allclose(found.mean, [1, 2, 2, 2, 2, 3.2])
    # Of 1 and 3: standard deviation sqrt(2), standard error 1.
    np.testing.assert_allclose([found.low[1], found.high[1]], [2 - 1.96, 2 + 1.96])
    assert found.low[0] == found.high[0] == 1.0


def test_many_steps_are_drawn_as_means_of_neighbours():
    steps, values = panels.binned(np.arange(10), np.arange(10.0) ** 2, 3)
    np.testing.assert_allclose(steps, [1, 4, 7.5])
    np.testing.assert_allclose(
        values, [(0 + 1 + 4) / 3, (9 + 16 + 25) / 3, (36 + 49 + 64 + 81) / 4]
    )
    unchanged = panels.binned(np.arange(3), np.arange(3.0), 3)
    np.testing.assert_array_equal(unchanged, [[0, 1, 2]] * 2)


def test_a_long_run_has_small_figures(tmp_path):
    figures = run_figures(make_run(tmp_path, num_steps=3000))
    assert max(len(drawn.svg) for drawn in figures) < 150_000


def test_a_step_that_compiles_does_not_dwarf_the_others(tmp_path):
    (panel,) = (p for p in run_panels(make_run(tmp_path)) if p.name == "time_by_step")
    axes = Figure().subplots()
    panel.draw(axes)
    assert 5.25 < axes.get_ylim()[1] < 7
    assert [text.get_text() for text in axes.texts] == ["65.2"]


def test_a_comparison_shows_the_intervals_of_its_curves_where_it_has_them():
    band = [[0, 0.4, 0.3, 0.5], [10, 0.5, 0.35, 0.6]]
    comparison = make_comparison(curves={"equal_tokens": {"stepalign": band, "no_context": []}})
    curves, *_ = comparison_panels(comparison)["equal_tokens"]
    assert "stepalign 50.0 [35.0, 60.0] at step 10" in curves.alternative
    assert "no_context 40.0 (seeds 40.0 to 40.0)" in curves.alternative
    axes = Figure().subplots()
    curves.draw(axes)
    drawn = np.asarray(axes.collections[0].get_paths()[0].vertices)
    np.testing.assert_allclose(sorted(set(drawn[:, 1])), [30, 35, 50, 60])
    seeds = [line.get_xdata() for line in axes.lines if line.get_linewidth() < 1]
    assert list(map(len, seeds)) == [3, 3]


def test_conditions_keep_their_colours_where_one_is_missing():
    curves, _, gains = comparison_panels(make_comparison())["equal_tokens"]
    left, right = Figure().subplots(1, 2)
    curves.draw(left)
    gains.draw(right)
    lines = {str(line.get_label()): line.get_color() for line in left.lines}
    assert lines["stepalign"] == panels.COLOURS[0]
    assert lines["no_context"] == panels.COLOURS[2]
    assert [text.get_text() for text in right.get_yticklabels()] == ["stepalign", "no_context"]


def test_a_panel_without_a_curve_says_so():
    comparison = make_comparison()
    for seeds in comparison["variants"]["equal_tokens"].values():
        for seed in seeds:
            seed["curve"] = []
    curves, *_ = comparison_panels(comparison)["equal_tokens"]
    axes = Figure().subplots()
    curves.draw(axes)
    assert not axes.lines
    assert [text.get_text() for text in axes.texts] == ["nothing was measured"]
