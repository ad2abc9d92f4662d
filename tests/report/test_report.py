# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from support.run_files import interval, make_summary

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import write_json, write_jsonl
from stepalign_jax.report import comparison_page, plots, tables
from stepalign_jax.report.comparison_panels import windows
from stepalign_jax.runs.directory import RunDirectory


def make_seed(seed: int, gain: float, num_points: int = 3) -> dict:
    return {
        "seed": seed,
        "summary": make_summary(0.4, 0.4 + gain),
        "curve": [[10 * i, 0.4 + gain * i / 2] for i in range(num_points)],
        "critic_exactness": [[0, 0.5], [1, None], [2, 1.0]] if seed == 0 else [[0, None]],
        "solver_tokens": 1000 + seed,
        "critic_share": 0.25,
        "train_seconds": 60.0,
    }


def whole(conditions: dict, num_seeds: int = 2) -> dict:
    """A comparison of these seeds by condition, with intervals of their own."""
    names = list(conditions)
    scores = dict.fromkeys(tables.SCORES, interval(0.25, 0.05))
    gaps: dict = {name: scores for name in names[1:]}
    variants = ("equal_tokens", "equal_wall_clock")
    return {
        "k": 12,
        "num_seeds": num_seeds,
        "labels": names,
        "variants": {key: {n: s for n, s in conditions.items() if s} for key in variants},
        "gains": {key: {name: scores for name in names} for key in variants},
        "differences": dict.fromkeys(variants, gaps),
        "missing": {"equal_tokens": [], "equal_wall_clock": []},
        "notes": [],
    }


def make_comparison() -> dict:
    conditions = {
        "stepalign": [make_seed(0, 0.3), make_seed(1, 0.2, num_points=2)],
        "no_context": [make_seed(1, 0.0)],
    }
    return whole(conditions)


@pytest.fixture
def drawn(monkeypatch) -> list[Axes]:
    """Returns the axes of the figures that are saved, beside saving them."""
    axes: list[Axes] = []
    save = Figure.savefig

    def remember(figure: Figure, *args, **kwargs) -> None:
        axes.extend(figure.axes)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return axes


def test_summary_table_to_the_letter():
    assert tables.summary_table(make_summary()) == (
        "                   before             after              gain\n"
        "-----------------  -----------------  -----------------  --------------------\n"
        "Avg@12             40.0 [37.0, 43.0]  70.0 [67.0, 73.0]  +30.0 [+27.0, +33.0]\n"
        "Pass@12            40.0 [37.0, 43.0]  70.0 [67.0, 73.0]  +30.0 [+27.0, +33.0]\n"
        "Maj@12             40.0 [37.0, 43.0]  70.0 [67.0, 73.0]  +30.0 [+27.0, +33.0]\n"
        "greedy             40.0 [37.0, 43.0]  70.0 [67.0, 73.0]  +30.0 [+27.0, +33.0]\n"
        "tokens per answer  40.0 [39.5, 40.5]  38.5 [38.0, 39.0]  -1.5 [-2.0, -1.0]\n"
        "Shares in percent, gains in points, [intervals] over problems.\n"
        "The run took 1,234 s.\n"
    )


def test_evaluation_table_to_the_letter():
    names = ("avg_at_k", "pass_at_k", "maj_at_k", "greedy", "truncated", "unparsed")
    shares = {name: interval(0.1 * i, 0.01) for i, name in enumerate(names, start=1)}
    assert tables.evaluation_table(
        {**shares, "mean_tokens": interval(40.0, 0.5)}, 12, "solver"
    ) == (
        "solver             percent\n"
        "-----------------  ------------------------\n"
        "Avg@12             10.0 [9.0, 11.0]\n"
        "Pass@12            20.0 [19.0, 21.0]\n"
        "Maj@12             30.0 [29.0, 31.0]\n"
        "greedy             40.0 [39.0, 41.0]\n"
        "truncated          50.0 [49.0, 51.0]\n"
        "no answer          60.0 [59.0, 61.0]\n"
        "answer length      40.0 [39.5, 40.5] tokens\n"
    )


def test_the_tables_of_a_probe_to_the_letter():
    found = {"attempts": 8, "wrong_attempts": 4, "mean_tokens": 17.5, "failed": {"empty": 2}}
    assert tables.critic_table(found, interval(0.5), interval(0.25)) == (
        "critic             percent\n"
        "-----------------  -----------------\n"
        "exact              50.0 [47.0, 53.0]\n"
        "exact on wrong     25.0 [22.0, 28.0]\n"
        "empty              25.0\n"
        "critique length    17.5 tokens\n"
        "Asked about 8 rollouts, 4 of them wrong.\n"
        "Exact: to the letter as a program corrects the rollout.\n"
    )
    unjudged = tables.critic_table({**found, "failed": {}, "mean_tokens": None}, None, None)
    assert unjudged.splitlines()[2:] == [
        "exact              –",
        "exact on wrong     –",
        "critique length    –",
        "Asked about 8 rollouts.",
    ]
    assert tables.teacher_heading().splitlines()[0] == "teacher shown      percent"
    assert tables.teacher_row("stepalign", interval(0.625)) == (
        "stepalign          62.5 [59.5, 65.5]\n"
    )
    assert tables.teacher_row("refsol", None) == "refsol             –\n"


def test_summary_table_shows_what_is_missing():
    summary = make_summary()
    del summary["after"]["maj_at_k"], summary["gain"]["maj_at_k"], summary["seconds"]
    table = tables.summary_table(summary)
    assert "Maj@12             40.0 [37.0, 43.0]  –                  –\n" in table
    assert "took" not in table


def test_comparison_markdown():
    lines = tables.comparison_markdown(make_comparison()).splitlines()
    assert lines[0] == "### Equal tokens"
    assert lines[2].startswith("| condition | seeds | Avg@12 before |")
    assert lines[4] == (
        "| stepalign | 2 | 40.0 | 65.0 | +25.0 [+20.0, +30.0] "
        "| +30.0 [+27.0, +33.0]; +20.0 [+17.0, +23.0] | 75.0 | 25.0 | 1,000 | 60 |"
    )
    assert lines[5] == (
        "| no_context | 1/2 | 40.0 | 40.0 | +25.0 [+20.0, +30.0] | +0.0 [-3.0, +3.0] | – "
        "| 25.0 | 1,001 | 60 |"
    )
    assert lines[7] == "| gain of stepalign, less that of | Avg@12 | Pass@12 | Maj@12 |"
    gap = " | ".join(["+25.0 [+20.0, +30.0]"] * 3)
    assert lines[9] == f"| no_context | {gap} |"
    assert "### Equal wall clock" in lines


def test_what_the_choice_of_a_checkpoint_adds_stands_in_the_markdown_where_it_is_known():
    comparison = make_comparison()
    assert "that other problems choose" not in tables.comparison_markdown(comparison)
    seeds = [
        {"best_on_test": 0.5, "chosen_elsewhere": 0.46, "effect": 0.04},
        {"best_on_test": 0.6, "chosen_elsewhere": 0.58, "effect": 0.02},
    ]
    comparison["selection"] = {"equal_tokens": {"stepalign": seeds, "no_context": []}}
    written = tables.comparison_markdown(comparison)
    assert "| stepalign | 55.0 | 52.0 | 3.0 | 4.0; 2.0 |" in written
    assert written.count("of each seed |") == 1  # the other variant has none


def test_what_became_of_problems_that_no_base_solved_stands_in_the_markdown():
    comparison = make_comparison()
    assert "that no base solved" not in tables.comparison_markdown(comparison)
    rate, less = ({"mean": m, "low": m - 0.1, "high": m + 0.1} for m in (0.25, -0.125))
    scores = {"avg_at_k": rate, "pass_at_k": rate}
    comparison["unsolved"] = {
        "equal_tokens": {
            "num_problems": 7,
            "num_samples": 24,
            "after": {"stepalign": scores, "no_context": scores},
            "differences": {"no_context": less},
        },
        "equal_wall_clock": {},
    }
    written = tables.comparison_markdown(comparison)
    assert "whatever the seed: 7, each answered 24 times." in written
    shown = "25.0 [15.0, 35.0]"
    assert f"| stepalign | {shown} | {shown} | – |" in written
    assert f"| no_context | {shown} | {shown} | -12.5 [-22.5, -2.5] |" in written
    assert written.count("that no base solved") == 1
    assert "that no base solved" in str(comparison_page._variant(comparison, "equal_tokens"))


def widest(table: str) -> int:
    return max(map(len, table.splitlines()))


def test_no_table_is_wider_than_a_terminal():
    summary = make_summary(0.2, 0.8)
    for side, low, mean, high in (
        ("before", 0.985, 1.0, 1.0),
        ("after", 0.98, 1.0, 1.0),
        ("gain", 0.455, 0.505, 0.55),
    ):
        summary[side]["pass_at_k"] = {"mean": mean, "low": low, "high": high}
        summary[side]["mean_tokens"] = {"mean": 1234.5, "low": 1034.5, "high": 2048.0}
    assert widest(tables.summary_table(summary)) <= 80
    comparison = make_comparison()
    slow = make_seed(0, 1.0) | {"solver_tokens": 123_456_789, "train_seconds": 1_234_567.0}
    long = "a-condition-with-a-long-name"
    comparison = whole({long: [slow, slow], f"{long}-too": [slow, slow], "none": []})
    wide = {"mean": -0.825, "low": -0.875, "high": -0.775}
    comparison["differences"]["equal_tokens"] = {
        f"{long}-too": dict.fromkeys(tables.SCORES, wide),
        "none": None,
    }
    comparison["notes"] = ["A note. " * 20]
    comparison["missing"]["equal_tokens"] = [f"none:{seed}:equal_tokens" for seed in range(20)]
    assert widest(tables.comparison_table(comparison)) <= 80


def test_comparison_table_to_the_letter():
    comparison = make_comparison()
    comparison["missing"]["equal_tokens"] = ["no_context:0:equal_tokens"]
    table = tables.comparison_table(comparison)
    assert table.split("\n\n")[0] == (
        "Equal tokens  before  after  gain                  n    critic  tokens  s\n"
        "------------  ------  -----  --------------------  ---  ------  ------  --\n"
        "stepalign     40.0    65.0   +25.0 [+20.0, +30.0]  2    75.0    1,000   60\n"
        "no_context    40.0    40.0   +25.0 [+20.0, +30.0]  1/2  –       1,001   60"
    )
    assert table.split("\n\n")[1] == (
        # One space between columns: with two it would be wider than a terminal.
        "stepalign minus Avg@12               Pass@12              Maj@12\n"
        "--------------- -------------------- -------------------- --------------------\n"
        "no_context      +25.0 [+20.0, +30.0] +25.0 [+20.0, +30.0] +25.0 [+20.0, +30.0]"
    )
    assert table.endswith("Missing at equal tokens: no_context:0.\n")


def test_plot_run_draws_what_there_is(tmp_path, drawn):
    run = RunDirectory(tmp_path)
    rows = [{"step": s, "loss": 1.0 / (s + 1), "reward": None} for s in range(4)]
    write_jsonl(run.metrics_file, rows)
    write_json(run.evaluation_file("validation_00000"), {"avg_at_k": [0.0, 0.5]})
    write_json(run.evaluation_file("validation_00003"), {"avg_at_k": [0.25, 0.75]})
    write_json(run.config_file, {"evaluation": {"confidence": 0.95}})
    write_json(run.summary_file, make_summary())
    assert plots.plot_run(run) == run.report / "run.png"
    assert imread(run.report / "run.png").shape[:2] == (480, 1980)
    titles = [a.get_title(loc="left") for a in drawn]
    assert titles == [
        "Validation Avg@k (%), 95 % intervals over problems",
        "Test before and after (%), intervals over problems",
        "Loss",
    ]
    np.testing.assert_array_equal(drawn[0].lines[0].get_xydata(), [[0, 25], [3, 50]])
    np.testing.assert_allclose(np.asarray(drawn[2].lines[0].get_ydata())[3], 0.25)
    heights = [bar.get_height() for bar in drawn[1].patches]
    np.testing.assert_allclose(heights, [40] * 3 + [70] * 3)


def test_plot_run_shows_shares_in_percent_and_a_loss_as_it_is(tmp_path, drawn):
    run = RunDirectory(tmp_path)
    row = {"step": 3, "loss": 0.5, "reward": 0.25, "critic_exact_on_wrong": 0.75}
    write_jsonl(run.metrics_file, [row])
    plots.plot_run(run)
    points = {a.get_title(loc="left"): np.asarray(a.lines[0].get_xydata()) for a in drawn[:3]}
    assert {title: xy.tolist() for title, xy in points.items()} == {
        "Reward: share of correct rollouts (%)": [[3, 25]],
        "Loss": [[3, 0.5]],
        "Critic exact on wrong rollouts (%)": [[3, 75]],
    }


def test_bars_have_their_own_numbers_and_intervals(tmp_path, drawn):
    run, summary = RunDirectory(tmp_path), make_summary()
    for i, name in enumerate(tables.SCORES):
        # No interval is symmetric, and no two scores are alike.
        mean = 0.4 + 0.1 * i
        summary["before"][name] = {"mean": mean, "low": mean - 0.1, "high": mean + 0.2}
        mean += 0.05
        summary["after"][name] = {"mean": mean, "low": mean - 0.02, "high": mean + 0.03}
    write_json(run.summary_file, summary)
    plots.plot_run(run)
    (axes,) = drawn
    assert [t.get_text() for t in axes.get_xticklabels()] == ["Avg@12", "Pass@12", "Maj@12"]
    assert [t.get_text() for t in axes.texts] == [
        "40.0",
        "50.0",
        "60.0",
        "45.0",
        "55.0",
        "65.0",
    ]
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, [40, 50, 60, 45, 55, 65])
    segments = np.concatenate([lines.get_segments() for lines in axes.collections])
    ends = [[30, 60], [40, 70], [50, 80], [43, 48], [53, 58], [63, 68]]
    np.testing.assert_allclose(segments[:, :, 1], ends)


def test_shares_have_an_axis_from_0_to_100_and_the_title_names_the_run(tmp_path, drawn):
    run = RunDirectory(tmp_path / "tiny-stepalign")
    rows = [{"step": s, "loss": 0.5, "reward": 0.97} for s in range(60)]
    write_jsonl(run.metrics_file, rows)
    write_json(run.summary_file, make_summary(0.4, 1.0))
    plots.plot_run(run)
    bars, reward, loss = drawn
    for axes in (reward, bars):
        assert axes.get_yticks().tolist() == [0, 20, 40, 60, 80, 100]
        assert axes.spines["left"].get_bounds() == (0, 100)
    assert loss.get_ylim()[1] < 1
    assert reward.get_xticks().tolist()[1:-1] == [0, 10, 20, 30, 40, 50, 60]
    figure = bars.figure
    assert isinstance(figure, Figure) and figure.get_suptitle() == "tiny-stepalign"


def test_plot_run_draws_trailing_means_of_long_runs(tmp_path, drawn):
    run = RunDirectory(tmp_path)
    write_jsonl(run.metrics_file, [{"step": s, "loss": float(s)} for s in range(40)])
    plots.plot_run(run)
    each, mean = drawn[0].lines
    assert len(np.asarray(each.get_ydata())) == 40
    # Five steps at a time, and fewer at the start.
    np.testing.assert_allclose(np.asarray(mean.get_ydata())[[0, 1, 4, 39]], [0, 0.5, 2, 37])


def test_plot_run_of_a_run_without_numbers(tmp_path):
    assert plots.plot_run(RunDirectory(tmp_path)).exists()


def test_plot_comparison_draws_means_over_common_steps(tmp_path, drawn):
    path = plots.plot_comparison(make_comparison(), tmp_path / "plots" / "comparison.png")
    assert path.exists() and len(drawn) == 6
    labels = {line: str(line.get_label()) for line in drawn[0].lines}
    curves = {label: line for line, label in labels.items() if not label.startswith("_")}
    assert set(curves) == {"stepalign", "no_context"}
    # The second seed stops at step 10, and a mean over fewer seeds would jump there.
    np.testing.assert_allclose(curves["stepalign"].get_xydata(), [[0, 40], [10, 52.5]])
    assert [t.get_text() for t in drawn[2].get_yticklabels()] == ["stepalign", "no_context"]
    assert [t.get_text() for t in drawn[2].texts] == ["+25.0", "+25.0"]
    assert curves["stepalign"].get_color() != curves["no_context"].get_color()


def test_plot_comparison_draws_bands_the_critic_and_each_seeds_gain(tmp_path, drawn):
    seeds = [make_seed(0, 0.3), make_seed(1, 0.1), make_seed(2, 0.1)]
    for seed, share in zip(seeds, (0.25, 0.5, 1.0), strict=True):
        seed["critic_exactness"] = [[1, share], [2, None], [3, share]]
    seeds[0]["summary"]["gain"]["avg_at_k"] = {"mean": 0.3, "low": 0.1, "high": 0.35}
    comparison = whole({"stepalign": seeds}) | {
        "variants": {"equal_tokens": {"stepalign": seeds}}
    }
    plots.plot_comparison(comparison, tmp_path / "comparison.png")
    left, middle, right = drawn
    curve = np.asarray(left.lines[0].get_xydata())
    np.testing.assert_allclose(curve, [[0, 40], [10, 40 + 25 / 3], [20, 40 + 50 / 3]])
    band = np.asarray(left.collections[0].get_paths()[0].vertices)
    at_the_end = band[band[:, 0] == 20, 1]
    np.testing.assert_allclose([at_the_end.min(), at_the_end.max()], [50, 70])
    np.testing.assert_allclose(np.asarray(middle.lines[0].get_xydata()), [[3, 175 / 3]])
    zero, diamond, dots = right.lines
    np.testing.assert_allclose(np.asarray(zero.get_xdata()), [0, 0])
    np.testing.assert_allclose(np.asarray(diamond.get_xdata()), [25])
    np.testing.assert_allclose(np.asarray(dots.get_xdata()), [30, 10, 10])
    assert [t.get_text() for t in right.texts] == ["+25.0"]
    bars = [np.array(lines.get_segments())[:, :, 0] for lines in right.collections]  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(bars[0], [[20, 30]])  # over seeds and problems
    np.testing.assert_allclose(bars[1], [[10, 35], [7, 13], [7, 13]])


def test_critic_exactness_is_averaged_over_windows_and_skips_gaps():
    points = [[1, 0.5], [2, None], [3, 1.0], [4, None], [5, None], [6, 0.25], [7, None]]
    assert windows(points) == {5: 0.75, 7: 0.25}
    assert windows([[1, None]]) == {}


def test_image_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*x\.png \(File exists: .*file"):
        plots.plot_comparison(make_comparison(), tmp_path / "file" / "x.png")
