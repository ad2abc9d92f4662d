# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What README says about `make demo`, measured again at full size."""

from pathlib import Path
from typing import Any

import pytest

from stepalign_jax.config.load import load_config
from stepalign_jax.train import train

TINY = str(Path(__file__).parents[1] / "configs" / "tiny.py")


@pytest.fixture(scope="module")
def gains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    runs = tmp_path_factory.mktemp("runs")

    def gain(condition: str) -> Any:
        config = load_config(f"{TINY}:{condition}", [f"--runs_dir={runs}"])
        summary = train(config)
        assert summary["num_problems"] >= 200
        return summary["gain"]["avg_at_k"]

    return {name: gain(name) for name in ("stepalign", "no_context", "other_problem")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_gains_at_least_thirty_points(gains):
    assert gains["stepalign"]["low"] >= 0.30


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("control", ["no_context", "other_problem"])
def test_controls_gain_less_than_a_quarter_of_it(gains, control):
    assert gains[control]["mean"] < gains["stepalign"]["mean"] / 4
