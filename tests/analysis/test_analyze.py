# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A run that analyses while it trains, and the command on what it leaves."""

from typing import Any

import numpy as np
import pytest
from support.runs import refusal, small_config

from stepalign_jax import analyze, train
from stepalign_jax.analysis import probe_set, results
from stepalign_jax.analysis.chosen import stored_rollouts
from stepalign_jax.analysis.score import (
    make_analysis_programs,
    score_rollouts,
    scored_conditions,
    show,
)
from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.config.load import config_from_json
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.problems.arithmetic import first_error
from stepalign_jax.problems.sources import load_problems
from stepalign_jax.report.run_panels import run_panels
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.setup import open_solver
from stepalign_jax.training.scoring import make_logprobs_program, whole_logprobs

pytestmark = pytest.mark.long  # they share a run
CONTEXTS = ("stepalign", "refsol", "no_context")
ANALYSIS = {"every_steps": 2, "num_rollouts": 5, "contexts": CONTEXTS, "batch_size": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    train_ = {"num_steps": 3, "checkpoint_every_steps": 3, "validate_every_steps": 0}
    config = small_config(tmp_path_factory.mktemp("runs"), train=train_, analysis=ANALYSIS)
    train.train(config)
    return RunDirectory.of(config)


def probe(run: RunDirectory, step: int) -> ScoredRollouts:
    return ScoredRollouts.load(run.analysis / f"step_{step:05d}")


def test_training_scores_one_probe_set_at_its_steps(run):
    assert sorted(path.name for path in run.analysis.iterdir()) == [
        "step_00000", "step_00002", "step_00003",
    ]  # fmt: skip
    before, after = probe(run, 0), probe(run, 3)
    assert before.contexts == after.contexts == list(CONTEXTS)
    assert before.rows == after.rows and len(before.rows) == 5
    assert len({row["problem"] for row in before.rows}) == 2  # as many as there are
    assert len({row["rollout"] for row in before.rows}) > 1
    for name in ("tokens", "offsets", "ends", "reasoning_step", "first_error", "usable"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    # The teacher is frozen, the solver learns.
    np.testing.assert_array_equal(before.teacher_logprobs, after.teacher_logprobs)
    assert np.abs(before.solver_logprobs - after.solver_logprobs).max() > 1e-4
    seconds = [row.get("analyze", 0) > 0 for row in read_jsonl(run.timings_file)]
    assert seconds == [False, True, True]


def test_rows_say_what_was_scored(run):
    made = probe(run, 0)
    for rollout, row in enumerate(made.rows):
        text, ends = row["rollout"], made.ends[made.of(rollout)]
        assert ends[-1] == len(text) and (np.diff(ends) >= 0).all()
        generator = first_error(row["problem"], text)
        assert made.first_error[rollout] == (-1 if generator is None else generator)
        steps = made.reasoning_step[made.of(rollout)]
        for index, (start, end) in enumerate(row["steps"]):
            assert ends[steps == index].max() == end and text[start:].startswith("Step")
        assert row["contexts"][2] == "" and row["contexts"][1] == row["reference"]


def test_a_probe_set_is_not_scored_twice(run, monkeypatch):
    def refuse(*_arguments: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(probe_set, "make_analysis", refuse)
    run.summary_file.unlink()
    train.train(config_from_json(run.config_file, ()))
    assert run.summary_file.exists()


def test_the_report_has_curves_of_the_analyses(run):
    panels = {panel.name: panel for panel in run_panels(run)}
    words = panels["analysis_abs_first"].alternative
    assert "from step 0 to step 3" in words


def initial(run: RunDirectory) -> tuple[Any, Any, Any]:
    config = config_from_json(run.config_file, ())
    model, roles = open_solver(config)
    model.load()
    return config, model, roles


def test_scores_of_the_first_step_are_those_that_training_stored(run):
    config, model, roles = initial(run)
    chosen = stored_rollouts(config, run, load_problems(config.problems, "train"), [0])
    shown = show(scored_conditions(["stepalign"]), chosen, None, roles)  # no critic is asked
    unknown, variables = np.full(4, -2, np.int32), model.variables()
    with use_mesh(model.mesh):
        programs = make_analysis_programs(model, token_tile=16)
        made = score_rollouts(
            model, programs, variables, variables, roles, chosen, shown, unknown, batch_size=3
        )
    rows = read_jsonl(run.rollouts_file(0))
    assert [row["tokens"] for row in rows] == chosen.tokens
    assert made.correct.tolist() == [row["correct"] for row in rows]
    compared = 0
    for rollout, row in enumerate(rows):
        assert made.rows[rollout]["contexts"] == [row["context"]]
        if row["failure"] is None:
            found = made.advantage[0, made.of(rollout)]
            # Rows are rounded to five digits; the widths of padding differ.
            np.testing.assert_allclose(found, row["advantage"], atol=1e-4, rtol=0)
            compared += 1
    assert compared


def test_scores_are_those_of_whole_distributions(run):
    """Another program, which makes all log-probabilities of one rollout."""
    _, model, roles = initial(run)
    made, variables = probe(run, 0), model.variables()
    problems = {p.text: p for p in load_problems(small_config(run.path).problems, "validation")}
    row = made.rows[0]
    problem, tokens = problems[row["problem"]], made.tokens[made.of(0)]
    prompts = [roles.solver(problem), roles.teacher(problem, row["contexts"][1])]
    with use_mesh(model.mesh):
        program = make_logprobs_program(model.module("none"))
        both = whole_logprobs(program, variables, prompts, tokens.tolist(), mesh=model.mesh)
    solver, teacher = both.astype(np.float64)
    places, part = np.arange(len(tokens)), made.of(0)

    def near(found: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)

    near(made.solver_logprobs[part], solver[places, tokens])
    near(made.teacher_logprobs[1, part], teacher[places, tokens])
    near(made.kl[1, part], (np.exp(teacher) * (teacher - solver)).sum(-1))
    near(made.solver_entropy[part], -(np.exp(solver) * solver).sum(-1))
    near(made.teacher_top_logprobs[1, part], -np.sort(-teacher, axis=-1)[:, :5])
    ids = made.teacher_top_ids[1, part]
    near(np.take_along_axis(teacher, ids, axis=-1), made.teacher_top_logprobs[1, part])


ARGUMENTS = ("--rollouts", "0-1", "--analysis.num_rollouts=6")


def test_the_command_writes_tables_arrays_and_figures(run, capsys, monkeypatch):
    analyze.main(["--run", str(run.path), *ARGUMENTS])
    first = capsys.readouterr().out
    directory = run.analysis / "rollouts_0-1_step_00003"
    found, made = read_json(directory / "analysis.json"), ScoredRollouts.load(directory)
    assert found["counts"]["rollouts"] == len(made.rows) == 6
    assert found["names"] == list(CONTEXTS) and found["step"] == 3
    assert [row["step"] for row in made.rows] == [0] * 4 + [1] * 2
    for name in CONTEXTS:
        assert f"\n{name} " in first
    assert "AUROC of error" in first and max(map(len, first.splitlines())) <= 80 + len(
        str(run.path)
    )
    drawn = {path.name for path in directory.iterdir() if path.suffix == ".png"}
    assert "localisation.png" in drawn and any(name.startswith("trace_") for name in drawn)
    assert drawn == {f"{path.stem}.png" for path in directory.glob("*.svg")}

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(results, "score_rollouts", refuse)
    analyze.main(["--run", str(run.path), *ARGUMENTS])
    assert capsys.readouterr().out == first
    with pytest.raises(AssertionError, match="scored again"):
        analyze.main(["--run", str(run.path), *ARGUMENTS, "--analysis.contexts=refsol"])


def test_refusals(run, monkeypatch, capsys):
    def refused(*arguments: str) -> str:
        return refusal(analyze.main, arguments, monkeypatch, capsys)

    directory = ("--run", str(run.path))
    assert "--to is missing" in refused("--config", "tiny")
    assert "--rollouts and --step are of a run" in refused("--config", "tiny", "--step", "3")
    assert "it takes steps such as 0,20-29" in refused(*directory, "--rollouts", "3-1")
    assert "step 2 has no checkpoint" in refused(*directory, "--step", "2")
    assert "leave it out with --rollouts" in refused(
        *directory, "--rollouts", "0", "--split", "test"
    )
    assert "must be the name of one directory" in refused(*directory, "--label", "../x")
    assert "which asks no teacher" in refused(*directory, "--analysis.contexts=grpo")
    assert "there are step_00000 to step_00002" in refused(*directory, "--rollouts", "7")


def test_steps_are_read_and_written():
    assert analyze._steps("0,20-22,21") == (0, 20, 21, 22)
    assert analyze._ranges((0, 20, 21, 22, 5)) == "0,20-22,5"
