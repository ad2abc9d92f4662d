# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Seconds by phase, tokens per second, and shares of padding, worked by hand."""

import pytest

from stepalign_jax.runs import stopwatch
from stepalign_jax.runs.stopwatch import Stopwatch, padding_shares, remaining, token_rates


def test_a_phase_adds_up_over_its_visits(monkeypatch):
    moments = iter([1.0, 3.0, 10.0, 10.5, 20.0, 24.0])
    monkeypatch.setattr(stopwatch, "moved", lambda: None)  # looks at the clock, too
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: next(moments))
    watch = Stopwatch()
    for name in ("sample", "host", "sample"):
        with watch.phase(name):
            pass
    assert watch.seconds == {"sample": 2.0 + 4.0, "host": 0.5}


def test_rates_are_tokens_over_seconds_and_devices():
    seconds = {"sample": 4.0, "critique": 0.0, "update": 0.5, "host": 9.0}
    num_tokens = {"sample": 80, "critique": 7, "score": 0, "update": 30}
    assert token_rates(seconds, num_tokens, 2) == {
        "tokens_per_second_per_device/sample": 10.0,
        "tokens_per_second_per_device/update": 30.0,
    }


def test_padding_is_the_share_that_is_not_used():
    found = padding_shares({"update": (30, 40), "head": (8, 8), "score": (1, 8)})
    assert found == pytest.approx(
        {"padding/update": 0.25, "padding/head": 0, "padding/score": 0.875}
    )


def test_what_remains_is_a_step_without_compilation_validation_and_analysis():
    seconds = {"sample": 30.0, "update": 40.0, "validate": 500.0, "analyze": 70.0}
    words = remaining(seconds, 10.0, 3)
    assert words == "3 steps remain: about 3 min, evaluation not counted"
    assert remaining(seconds, 10.0, 1) == "1 step remains: about 60 s, evaluation not counted"
    assert remaining(seconds, 90.0, 3).startswith("3 steps remain: about 0 s")
    assert remaining(seconds, 10.0, 200).startswith("200 steps remain: about 3.3 h")
