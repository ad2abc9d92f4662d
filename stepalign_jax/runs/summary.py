# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run came to."""

from typing import Any

from stepalign_jax.base.files import read_jsonl
from stepalign_jax.config.schema import Config
from stepalign_jax.critics.store import read_store, totals
from stepalign_jax.evaluation.evaluate import Evaluation, gains
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.inputs import recorded_changes
from stepalign_jax.runs.stopwatch import looks


def summarise(
    config: Config, run: RunDirectory, before: Evaluation, after: Evaluation, seconds: float
) -> dict[str, Any]:
    """Returns the content of summary.json.

    Args:
      config: of the run.
      run: its metrics and timings are read.
      before: of the initial solver on the test problems.
      after: of the trained solver on the same problems.
      seconds: of this process; of a resumed run, the last part.
    """
    timings, changes = read_jsonl(run.timings_file), recorded_changes(run)
    return {
        "name": config.name,
        "condition": config.condition,
        "seed": config.seed,
        "k": config.evaluation.num_samples,
        "num_problems": len(before.per_problem["avg_at_k"]),
        "before": before.intervals(config.evaluation, config.seed),
        "after": after.intervals(config.evaluation, config.seed),
        "gain": gains(before, after, config.evaluation, config.seed),
        "solver_tokens": int(sum(row["solver_tokens"] for row in read_jsonl(run.metrics_file))),
        "step_seconds": sum(row["total"] - looks(row) for row in timings),
        "seconds": seconds,
        **({"changes": changes} if changes else {}),
        **_critics(run),
    }


def _critics(run: RunDirectory) -> dict[str, Any]:
    """What each critic took, where the run has a store."""
    if not run.critiques_file.exists():
        return {}
    return {"critics": totals(read_store(run.critiques_file))}
