# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A comparison made of cells: run here, copied in, refused, made again. No model is loaded."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.run_files import finish
from support.runs import TINY, refusal

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, write_json
from stepalign_jax.compare import main
from stepalign_jax.config.load import load_config
from stepalign_jax.evaluation.statistics import bootstrap_interval
from stepalign_jax.report.tables import comparison_markdown, comparison_table
from stepalign_jax.runs import compare
from stepalign_jax.runs.cells import CellName, parse_cell_names
from stepalign_jax.runs.compare import Comparison
from stepalign_jax.runs.comparison import curve_intervals
from stepalign_jax.runs.directory import open_run
from stepalign_jax.runs.jobs import Job, of_conditions

CONDITIONS = ["stepalign", "grpo"]
SPEEDS = {"stepalign": 2.0, "grpo": 1.0}


class Runs:
    """Stands for `run_jobs`: finishes what it is asked for, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.after: dict[str, Sequence[float]] = {}
        self.inputs: dict[str, str] | None = None
        self.stop_after: int | None = None

    def __call__(self, jobs: Any, _workers: int, _description: str, finished: Any) -> None:
        self.asked.append([job.config.name for job in jobs])
        for number, job in enumerate(jobs):
            if number == self.stop_after:
                raise KeyboardInterrupt
            self.run(job)
            finished(job)

    def run(self, job: Job) -> None:
        open_run(job.config)
        finish(
            job.run,
            step_seconds=[SPEEDS[job.label], 1.0, 30.0][: 3 if job.label == "grpo" else 1],
            validation={0: 0.6},
            critic_exact=0.75 if job.label == "stepalign" else None,
            after=self.after.get(f"{job.label}:{job.seed}", (0.75, 0.65)),
            inputs=self.inputs,
        )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    fake = Runs()
    monkeypatch.setattr(compare, "run_jobs", fake)
    return fake


def comparison(
    tmp_path: Path, *overrides: str, seeds: int = 2, equal_time: bool = False
) -> Comparison:
    all_overrides = [f"--runs_dir={tmp_path}", "--train.num_steps=40", *overrides]
    contenders = of_conditions(TINY, CONDITIONS)
    return Comparison(contenders, all_overrides, seeds, title="t", equal_time=equal_time)


def made(tmp_path: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    found = comparison(tmp_path, *overrides, **options)
    found.make(1)
    return found.results()


def cells(tmp_path: Path) -> dict[str, Path]:
    files = (tmp_path / "comparison-t-stepalign-grpo" / "cells").glob("*")
    return {path.name: path for path in files}


def test_a_cell_says_what_it_was_made_from_and_what_it_cost(tmp_path, runs):
    made(tmp_path, seeds=1)
    assert set(cells(tmp_path)) == {
        "stepalign-seed0-equal_tokens.json",
        "grpo-seed0-equal_tokens.json",
    }
    cell = read_json(cells(tmp_path)["grpo-seed0-equal_tokens.json"])
    assert (cell["label"], cell["seed"], cell["variant"]) == ("grpo", 0, "equal_tokens")
    assert cell["config"]["condition"] == "grpo"
    assert cell["command"][:3] == ["train", "--config", f"{TINY}:grpo"]
    assert cell["inputs"] == {"test problems": "1f", "model weights": "9a"}
    assert cell["after"]["avg_at_k"] == [0.75, 0.65] and cell["curve"] == [[0, 0.6]]
    assert cell["curve_by_problem"] == [[0, [0.6, 0.6]]]
    # Steps of 1, 1 and 30 s; the critic has a quarter; a validation does not count.
    assert cell["costs"] == {
        "solver_tokens": 640,
        "critic_tokens": 96,
        "train_seconds": 32.0,
        "seconds_per_step": 1.0,
        "critic_share": 0.25,
    }
    assert re.fullmatch(r"\d+\.\d+.*", cell["version"])


def test_the_table_comes_of_the_cells_alone(tmp_path, runs):
    before = made(tmp_path)
    for run in tmp_path.glob("tiny-*"):
        shutil.rmtree(run)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(
        tmp_path / "comparison-t-stepalign-grpo", elsewhere / "comparison-t-stepalign-grpo"
    )
    runs.asked.clear()
    again = made(elsewhere)
    assert runs.asked == []
    assert again | {"overrides": 0} == before | {"overrides": 0}


def test_cells_that_are_named_run_and_no_others(tmp_path, runs):
    part = comparison(tmp_path)
    part.make(1, [CellName("grpo", 1, "equal_tokens")])
    assert runs.asked == [["tiny-grpo-seed1"]]
    found = part.results()
    assert list(found["variants"]["equal_tokens"]) == ["grpo"]
    assert found["missing"] == {
        "equal_tokens": ["stepalign:0:equal_tokens", "grpo:0:equal_tokens",
                         "stepalign:1:equal_tokens"]
    }  # fmt: skip
    table = comparison_table(found)
    assert "stepalign     –" in table and "1/2" in table
    assert "Missing at equal tokens: stepalign:0, grpo:0, stepalign:1.\n" in table
    # The rest, later or elsewhere.
    comparison(tmp_path).make(1)
    assert runs.asked[1] == ["tiny-stepalign-seed0", "tiny-grpo-seed0", "tiny-stepalign-seed1"]


def test_a_cell_made_on_other_devices_or_hosts_belongs(tmp_path, runs):
    made(tmp_path)
    path = cells(tmp_path)["grpo-seed1-equal_tokens.json"]
    cell = read_json(path)
    cell["config"]["parallel"]["data"] = 8
    del cell["config"]["hosts"]  # as before it existed
    write_json(path, cell)
    runs.asked.clear()
    assert set(made(tmp_path)["missing"]["equal_tokens"]) == set() and not runs.asked


def test_cells_that_others_made_meanwhile_are_in_the_table(tmp_path, runs, monkeypatch):
    def run_while_another_makes_the_rest(*arguments: Any) -> None:
        monkeypatch.setattr(compare, "run_jobs", runs)
        comparison(tmp_path).make(1, [CellName("grpo", 1, "equal_tokens")])
        runs(*arguments)

    monkeypatch.setattr(compare, "run_jobs", run_while_another_makes_the_rest)
    first = comparison(tmp_path)
    first.make(1, [CellName("stepalign", 1, "equal_tokens")])
    assert first.results()["missing"]["equal_tokens"] == [
        "stepalign:0:equal_tokens", "grpo:0:equal_tokens"
    ]  # fmt: skip


def test_a_stopped_comparison_keeps_the_cells_that_it_made(tmp_path, runs):
    runs.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        comparison(tmp_path).make(1)
    assert len(cells(tmp_path)) == 3
    runs.stop_after = None
    comparison(tmp_path).make(1)
    assert runs.asked[1] == ["tiny-grpo-seed1"]


def test_a_finished_run_without_a_cell_is_collected_and_not_run(tmp_path, runs):
    found = comparison(tmp_path)
    runs.run(found.jobs[0])
    found.make(0)
    assert set(cells(tmp_path)) == {"stepalign-seed0-equal_tokens.json"} and not runs.asked
    with pytest.raises(UserError, match=r"has no cell yet: leave --collect-only out"):
        nothing = comparison(tmp_path / "empty")
        nothing.make(0)
        nothing.results()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"inputs": {"test problems": "00"}},
            r"grpo-seed1-.* other inputs than .*: test problems;",
        ),
        ({"inputs": {"model weights": "00"}}, r": model weights; delete the one"),
        ({"config": {"seed": 7}}, r"grpo-seed1-.* was made with seed=7, .* has seed=1"),
        ({"config": {"condition": "sft"}}, r"condition=\"sft\""),
        ({"seed": 0}, r"is not the cell grpo:1:equal_tokens: delete it"),
        ({"label": None}, r"is not the cell grpo:1:equal_tokens: delete it"),
    ],
)
def test_a_cell_that_does_not_belong_is_refused_before_anything_runs(
    tmp_path, runs, change, words
):
    made(tmp_path)
    path = cells(tmp_path)["grpo-seed1-equal_tokens.json"]
    cell = read_json(path)
    for key, value in change.items():
        cell[key] = cell[key] | value if isinstance(value, dict) else value
    write_json(path, cell)
    cells(tmp_path)["stepalign-seed1-equal_tokens.json"].unlink()
    runs.asked.clear()
    with pytest.raises(UserError, match=words):
        comparison(tmp_path).make(1)
    assert runs.asked == []


def test_a_run_with_other_inputs_leaves_no_cell(tmp_path, runs):
    comparison(tmp_path).make(1, [CellName("grpo", 0, "equal_tokens")])
    runs.inputs = {"test problems": "00", "model weights": "9a"}
    with pytest.raises(UserError, match="test problems"):
        comparison(tmp_path).make(1)
    assert set(cells(tmp_path)) == {"grpo-seed0-equal_tokens.json"}


def test_places_may_differ_where_hashes_do_not(tmp_path, runs):
    made(tmp_path)
    path = cells(tmp_path)["grpo-seed1-equal_tokens.json"]
    cell = read_json(path)
    cell["config"]["model"]["path"] = "/mnt/elsewhere/tiny"
    write_json(path, cell)
    comparison(tmp_path).make(1)


def test_equal_time_gives_each_condition_the_slowest_ones_time(tmp_path, runs):
    found = made(tmp_path, seeds=3, equal_time=True)
    assert runs.asked[1] == [f"tiny-grpo-80steps-seed{seed}" for seed in range(3)]
    steps = {
        variant: {name: [seed["num_steps"] for seed in seeds] for name, seeds in part.items()}
        for variant, part in found["variants"].items()
    }
    # The same run of the slowest serves both variants.
    assert steps == {
        "equal_tokens": {"stepalign": [40] * 3, "grpo": [40] * 3},
        "equal_wall_clock": {"stepalign": [40] * 3, "grpo": [80] * 3},
    }
    assert len(cells(tmp_path)) == 12


def test_equal_time_waits_for_all_times_and_keeps_the_steps_that_it_once_gave(
    tmp_path, runs, capsys
):
    part = comparison(tmp_path, equal_time=True)
    part.make(1, [CellName("grpo", 0, "equal_tokens")])
    assert "equal wall clock waits for stepalign:0" in capsys.readouterr().err
    assert len(part.results()["missing"]["equal_wall_clock"]) == 4
    one = comparison(tmp_path, equal_time=True)
    one.make(
        1,
        [*(j.cell("equal_tokens") for j in one.jobs), CellName("grpo", 0, "equal_wall_clock")],
    )
    # The machine is another one now; grpo's other seed has the steps of the first all the same.
    for path in (p for n, p in cells(tmp_path).items() if n.startswith("stepalign")):
        cell = read_json(path)
        cell["costs"]["seconds_per_step"] = 9.0
        write_json(path, cell)
    comparison(tmp_path, equal_time=True).make(1)
    assert runs.asked[-1] == ["tiny-grpo-80steps-seed1"]


def test_gains_and_differences_pair_seeds_and_problems(tmp_path, runs):
    runs.after = {"grpo:0": (0.25, 0.55), "grpo:1": (0.5, 0.55)}
    found = made(tmp_path)
    gain = found["gains"]["equal_tokens"]["stepalign"]["avg_at_k"]
    assert gain["mean"] == pytest.approx(0.3)  # 0.5 and 0.1, in both runs
    against = found["differences"]["equal_tokens"]["grpo"]
    # grpo gained 0 and 0, then 0.25 and 0: 0.5, 0.1, 0.25, 0.1 less.
    assert against["seeds"] == [0, 1]
    assert against["avg_at_k"]["mean"] == pytest.approx((0.5 + 0.1 + 0.25 + 0.1) / 4)
    assert against["avg_at_k"]["low"] < against["avg_at_k"]["mean"]
    assert against.keys() == {"seeds", "avg_at_k", "pass_at_k", "maj_at_k"}
    assert "stepalign minus" in comparison_table(found)
    assert "| gain of stepalign, less that of | Avg@12 |" in comparison_markdown(found)


def test_conditions_that_gain_alike_run_by_run_differ_by_exactly_nothing(tmp_path, runs):
    for label in CONDITIONS:
        runs.after |= {f"{label}:0": (0.25, 0.55), f"{label}:1": (1.0, 0.75)}
    found = made(tmp_path)
    gain = found["gains"]["equal_tokens"]["grpo"]["avg_at_k"]
    assert gain["high"] - gain["low"] > 0.3  # the seeds themselves are unlike
    against = found["differences"]["equal_tokens"]["grpo"]["avg_at_k"]
    assert against == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_one_seed_has_intervals_over_problems_and_says_what_it_cannot_tell(tmp_path, runs):
    found = made(tmp_path, seeds=1)
    how = comparison(tmp_path).jobs[0].config.evaluation
    expected = bootstrap_interval(
        np.subtract((0.75, 0.65), (0.25, 0.55)),
        num_resamples=how.num_resamples, confidence=how.confidence, seed=0,
    )  # fmt: skip
    gain = found["gains"]["equal_tokens"]["grpo"]["avg_at_k"]
    assert gain == pytest.approx(expected.as_dict())
    assert "One seed: intervals are over problems" in comparison_table(found)
    assert "One seed: intervals are over problems" in comparison_markdown(found)


def test_a_cell_made_again_says_whether_its_digits_are_the_same(tmp_path, runs):
    made(tmp_path, equal_time=True)
    name = CellName("stepalign", 1, "equal_tokens")
    assert comparison(tmp_path, equal_time=True).again(name, 1) == []
    assert runs.asked[-1] == ["tiny-stepalign-seed1"]
    shelf = tmp_path / "comparison-t-stepalign-grpo" / "set_aside"
    assert {path.name for path in (shelf / "1").iterdir()} == {
        "tiny-stepalign-seed1",
        "stepalign-seed1-equal_tokens.json",
        "stepalign-seed1-equal_wall_clock.json",  # the same run
    }
    assert len(cells(tmp_path)) == 8
    runs.after = {"stepalign:1": (0.75, 0.7)}
    changed = comparison(tmp_path, equal_time=True).again(name, 1)
    assert changed[0] == "after avg_at_k: 1 of 2 problems (means 0.7000 and 0.7250)"
    assert len(list(shelf.iterdir())) == 2


def test_a_stopped_repetition_goes_on_and_still_compares(tmp_path, runs):
    made(tmp_path)
    name = CellName("grpo", 0, "equal_tokens")
    runs.stop_after = 0
    with pytest.raises(KeyboardInterrupt):
        comparison(tmp_path).again(name, 1)
    runs.stop_after, runs.after = None, {"grpo:0": (0.8, 0.65)}
    assert comparison(tmp_path).again(name, 1)[0].startswith("after avg_at_k: 1 of 2 problems")
    shelf = tmp_path / "comparison-t-stepalign-grpo" / "set_aside"
    assert [path.name for path in shelf.iterdir()] == ["1"]
    with pytest.raises(UserError, match="no cell grpo:0:equal_wall_clock to make again"):
        comparison(tmp_path).again(name._replace(variant="equal_wall_clock"), 1)


@pytest.mark.parametrize("text", ["grpo", "grpo:2", "grpo:x", "refsol:0", "grpo:0:fast", ""])
def test_what_is_no_cell_is_refused(text):
    with pytest.raises(UserError, match=r"is no cell of this comparison: .* stepalign, grpo"):
        parse_cell_names(text, CONDITIONS, 2)


def test_cells_are_named_by_label_and_seed():
    assert parse_cell_names("stepalign:0,grpo:1:equal_wall_clock", CONDITIONS, 2) == [
        CellName("stepalign", 0, "equal_tokens"),
        CellName("grpo", 1, "equal_wall_clock"),
    ]


def test_the_command(tmp_path, runs, monkeypatch, capsys):
    argv = ["--config", TINY, "--conditions", "stepalign,grpo", "--seeds", "1",
            f"--runs_dir={tmp_path}", "--equal-tokens-only"]  # fmt: skip
    words = refusal(
        main, [*argv, "--cells", "grpo:0", "--again", "grpo:0"], monkeypatch, capsys
    )
    assert words == "--cells, --collect-only and --again exclude each other: give one."
    main([*argv, "--cells", "grpo:0"])
    assert runs.asked == [["tiny-grpo-seed0"]]
    assert (
        "grpo:0:equal_tokens: Avg@12 40.0 -> 70.0, 60 steps in 32 s" in capsys.readouterr().out
    )
    main([*argv, "--collect-only"])
    assert len(runs.asked) == 1
    assert "Missing at equal tokens: stepalign:0." in capsys.readouterr().out
    main(argv)
    main([*argv, "--again", "grpo:0"])
    printed = capsys.readouterr().out
    assert (
        "grpo:0:equal_tokens made again, other digits: none: every digit is the same" in printed
    )
    directory = tmp_path / "comparison-tiny-stepalign-grpo"
    assert (
        comparison_markdown(read_json(directory / "comparison.json"))
        == (directory / "comparison.md").read_text()
    )
    assert (directory / "comparison.png").stat().st_size > 10_000


def test_a_curve_has_intervals_over_runs_and_problems_where_all_runs_have_a_point():
    how = load_config(TINY).evaluation
    cells = [
        {"curve_by_problem": [[0, [0.0, 0.0]], [10, [0.25, 0.75]]]},
        {"curve_by_problem": [[0, [0.5, 0.5]], [10, [0.25, 0.75]], [20, [1.0, 1.0]]]},
    ]
    first, second = curve_intervals(cells, how)
    # At first the runs differ and the problems do not, and then it is the other way round.
    assert first == (0, 0.25, 0.0, 0.5) and second == (10, 0.5, 0.25, 0.75)
    assert curve_intervals([cells[0], {"curve": []}], how) == []
    assert curve_intervals([], how) == []
