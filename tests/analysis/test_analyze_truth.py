# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""`analyze --truth`, from the command to its tables, files and figure."""

import json

import numpy as np
import pytest
from support.runs import refusal, small_config, write_config

from stepalign_jax import analyze
from stepalign_jax.analysis import continuations
from stepalign_jax.analysis.continuations import Continuations
from stepalign_jax.base.files import read_json
from stepalign_jax.report.truth import truth_tables
from stepalign_jax.sampling.engine import Engine

CONTEXTS = ("stepalign", "no_context")
ANALYSIS = {"num_rollouts": 4, "contexts": CONTEXTS, "batch_size": 4}


@pytest.mark.long
def test_the_command(tmp_path, capsys, monkeypatch):
    config = small_config(
        tmp_path,
        analysis=ANALYSIS,
        problems={"num_validation": 4},
        model={"path": "no/such"},  # --model takes its place
    )
    to, spec = tmp_path / "made", write_config(tmp_path / "c.py", config)
    arguments = ["--model", "packaged:tiny", "--config", spec, "--to", str(to)]
    analyze.main([*arguments, "--truth", "3"])
    first, truth = capsys.readouterr().out, read_json(to / "truth.json")
    found = Continuations.load(to / "continuations.npz")
    assert truth["continuations"] == found.right.shape[1] == 3
    assert truth["reasoning_steps"] == len(found.rollout) == len(found.before)
    assert truth["drop"] == 0.25 and truth["rollouts"] == 4
    for name in CONTEXTS:
        assert f"\n{name}, mean A" in first
    assert max(map(len, truth_tables(truth).splitlines())) <= 80
    drawn = (to / "truth.svg").read_text()
    assert (to / "truth.png").is_file() and "stepalign, mean A" in drawn
    assert "| stepalign, mean A |" in (to / "truth.md").read_text()

    def refuse(*_arguments, **_options):
        raise AssertionError("sampled again")

    monkeypatch.setattr(Engine, "sample", refuse)
    analyze.main([*arguments, "--truth", "3"])
    assert capsys.readouterr().out == first
    analyze.main([*arguments, "--truth", "3", "--drop", "0.5"])
    other = read_json(to / "truth.json")
    assert other["drop"] == 0.5 and other["lowered"] <= truth["lowered"]
    with pytest.raises(AssertionError, match="sampled again"):
        analyze.main([*arguments, "--truth", "4"])


def test_refusals(monkeypatch, capsys, tmp_path):
    def refused(*arguments):
        begin = ["--config", "tiny", "--to", str(tmp_path / "x")]
        return refusal(analyze.main, [*begin, *arguments], monkeypatch, capsys)

    assert "--drop goes with --truth" in refused("--drop", "0.5")
    assert "--drop is 0" in refused("--truth", "--drop", "0")
    assert "--truth is 1" in refused("--truth", "1")


@pytest.mark.long
def test_a_stopped_call_goes_on_where_it_was(tmp_path, monkeypatch):
    """What was drawn before a stop is not drawn again, and the outcomes are the same."""
    config = small_config(tmp_path, analysis=ANALYSIS, problems={"num_validation": 4})
    begin = ["--config", write_config(tmp_path / "c.py", config)]
    analyze.main([*begin, "--to", str(tmp_path / "whole"), "--truth", "3"])
    grade = continuations._grade

    def stop(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(continuations, "_grade", stop)
    with pytest.raises(KeyboardInterrupt):
        analyze.main([*begin, "--to", str(tmp_path / "cut"), "--truth", "3"])
    kept = tmp_path / "cut" / "continuations.npz.partial"
    lines = kept.read_text().splitlines()
    assert all(json.loads(line) for line in lines)
    kept.write_text("".join(f"{line}\n" for line in lines[: len(lines) // 2]))
    monkeypatch.setattr(continuations, "_grade", grade)
    analyze.main([*begin, "--to", str(tmp_path / "cut"), "--truth", "3"])
    assert not kept.exists()
    whole, cut = (
        Continuations.load(tmp_path / name / "continuations.npz") for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(whole.right, cut.right)
    assert whole.key == cut.key
