# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A browser, and the report of a small run; both end with their module."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.chromium import chromium
from support.report_runs import add_analysis, make_run, random_steps

from stepalign_jax.report.run_page import write_run_report


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with 60 rollouts, and an analysis of four."""
    counts = {"context_failed/wrong_answer": 1.0, "critic_exact_on_wrong": 0.75}
    steps = random_steps(2, 30)
    failed = {"failure": "wrong_answer", "advantage": None, "loss": None}
    steps[0][0] |= failed
    run = make_run(tmp_path_factory.mktemp("runs") / "small", steps, **counts)
    add_analysis(run, "step_00002", steps[1][:4])
    return write_run_report(run)
