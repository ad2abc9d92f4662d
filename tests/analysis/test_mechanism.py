# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""benchmarks.mechanism, noise and chain_length: what becomes a point, and how it is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import chain_length, gains, mechanism, noise
from benchmarks.plots import plt

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


def of_length(path: Path, gains: dict[str, float], *overrides: str) -> Path:
    """A comparison with the base's own runs, and the first condition less the second."""
    path = comparison(path, gains, *overrides)
    first, second = gains
    runs = [{"summary": {"before": {"avg_at_k": {"mean": before}}}} for before in (0.1, 0.2)]
    less = gains[first] - gains[second]
    difference = {"avg_at_k": {"mean": less, "low": less - 0.01, "high": less + 0.02}}
    return written(
        path,
        {
            **json.loads(path.read_text()),
            "labels": [*gains],
            "variants": {"equal_tokens": {first: runs[:1], second: runs[1:]}},
            "differences": {"equal_tokens": {second: difference}},
        },
    )


def exactly(steps: int) -> tuple[str, str]:
    return f"--problems.min_reasoning_steps={steps}", f"--problems.max_reasoning_steps={steps}"


def test_the_table_of_chain_lengths_is_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ten = of_length(tmp_path / "10.json", {"stepalign": 0.3, "grpo": 0.1}, *exactly(10))
    four = of_length(tmp_path / "4.json", {"stepalign": 0.4, "grpo": 0.5}, *exactly(4))
    to = ["--to", str(tmp_path / "c.png"), "--data", str(tmp_path / "c.json")]
    chain_length.main(["--comparison", str(ten), str(four), *to])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.split(" | ")[2:] == [
        "gain of stepalign",
        "gain of grpo",
        "stepalign less grpo |",
    ]
    assert rows == [
        "| 4 | 15.0 | +40.0 [+39.0, +42.0] | +50.0 [+49.0, +52.0] | -10.0 [-11.0, -8.0] |",
        "| 10 | 15.0 | +30.0 [+29.0, +32.0] | +10.0 [+9.0, +12.0] | +20.0 [+19.0, +22.0] |",
    ]
    assert json.loads((tmp_path / "c.json").read_text())["4"]["base"] == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        ((), "no single number"),
        (exactly(4)[:1], "no single number"),
        ((exactly(4)[0], exactly(6)[1]), "no single number"),
        (exactly(4), "has the 4 reasoning steps of another comparison"),
    ],
)
def test_a_length_is_one_and_comes_once(
    overrides: tuple[str, ...],
    refusal: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    gains = {"stepalign": 0.4, "grpo": 0.5}
    four = of_length(tmp_path / "4.json", gains, *exactly(4))
    other = of_length(tmp_path / "other.json", gains, *overrides)
    with pytest.raises(SystemExit):
        chain_length.main(
            ["--comparison", str(four), str(other), "--to", str(tmp_path / "c.png")]
        )
    assert refusal in capsys.readouterr().err


def test_a_line_of_gains_is_in_points_with_its_intervals():
    _, axes = plt.subplots()
    gains.draw_gains(axes, {3.0: {"mean": 0.25, "low": 0.125, "high": 0.5}}, label="grpo")
    [line] = axes.containers
    assert line.lines[0].get_xydata().tolist() == [[3.0, 25.0]]
    [bars] = line.lines[2]
    assert bars.get_segments()[0].tolist() == [[3.0, 12.5], [3.0, 50.0]]
