# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""benchmarks.mechanism and benchmarks.noise: what becomes a point, and how it is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import mechanism, noise

GAINS = {"stepalign": 0.5, "refsol": 0.3, "no_context": -0.01}


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    """Of four contexts, one of which nobody trained under; AUROC falls with the gain."""
    contexts = {
        name: {key: {"mean": value} for key in mechanism.SHOWN}
        for name, value in {"refsol": 0.9, "stepalign": 0.8, "no_context": 0.95, "x": 0}.items()
    }
    return written(tmp_path / "analysis.json", {"contexts": contexts})


def comparison(path: Path, gains: dict[str, float], *overrides: str) -> Path:
    scores = {
        name: {"avg_at_k": {"mean": gain, "low": gain - 0.01, "high": gain + 0.02}}
        for name, gain in gains.items()
    }
    return written(path, {"gains": {"equal_tokens": scores}, "overrides": overrides})


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_points_are_the_contexts_of_both_in_the_order_of_their_gain(
    tmp_path: Path, analysis: Path, capsys: pytest.CaptureFixture[str]
):
    trained = comparison(tmp_path / "a.json", {**GAINS, "random_step": 0.4})
    figure = tmp_path / "figures" / "m.png"
    mechanism.main(["--pair", str(analysis), str(trained), "--to", str(figure)])
    out = capsys.readouterr().out
    assert [line.split(" | ")[1:4] for line in out.splitlines()[2:5]] == [
        ["stepalign", "+50.0", "80.0"],
        ["refsol", "+30.0", "90.0"],
        ["no_context", "-1.0", "95.0"],
    ]
    assert "AUROC of the error: Spearman -1.00" in out
    assert figure.stat().st_size > 0


def test_critiques_spoilt_on_purpose_make_points_of_their_own(tmp_path: Path, analysis: Path):
    spoilt = ("--critiques.noise=off_topic", "--critiques.noise_share=0.50")
    trained = comparison(tmp_path / "a.json", {"stepalign": 0.1}, *spoilt)
    [point] = mechanism.points(analysis, [trained])
    assert point == ("stepalign, off_topic 0.5", dict.fromkeys(mechanism.SHOWN, 80.0), 10.0)


def test_two_contexts_are_too_few(tmp_path: Path, analysis: Path):
    trained = comparison(tmp_path / "a.json", {"stepalign": 0.1, "refsol": 0.2})
    with pytest.raises(SystemExit, match=r"only 2 condition\(s\)"):
        mechanism.main(["--pair", str(analysis), str(trained), "--to", str(tmp_path / "m.png")])


def test_points_upon_each_other_share_a_place():
    x, y = np.array([0.0, 100.0, 99.0, 3.0]), np.array([0.0, 10.0, 9.9, 5.0])
    assert mechanism._together(x, y) == {
        (0.0, 0.0): [1],
        (100.0, 10.0): [2, 3],
        (3.0, 5.0): [4],
    }


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ((), "none"),
        (("--critiques.noise=off_topic", "--runs_dir=a=b"), "none"),
        (("--critiques.noise_share=0.25",), "wrong_verdict 0.25"),
        (
            ("--critiques.noise_share=1", "--critiques.checks=quoted_error"),
            "wrong_verdict 1, checked",
        ),
    ],
)
def test_a_level_is_read_from_the_overrides(overrides: tuple[str, ...], named: str):
    assert str(noise.level_of({"overrides": overrides})) == named


def test_the_table_of_noise_begins_with_none_and_refuses_a_level_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clean = comparison(tmp_path / "clean.json", {"stepalign": 0.5})
    half = comparison(tmp_path / "half.json", {"stepalign": 0.2}, "--critiques.noise_share=0.5")
    to = ["--to", str(tmp_path / "noise.png")]
    noise.main(["--comparison", str(half), str(clean), *to])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| none | +50.0 [+49.0, +52.0] |",
        "| wrong_verdict 0.5 | +20.0 [+19.0, +22.0] |",
    ]
    with pytest.raises(SystemExit):
        noise.main(["--comparison", str(half), str(half), *to])
    assert "has the level 'wrong_verdict 0.5' of another comparison" in capsys.readouterr().err
