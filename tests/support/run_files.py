# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Imitations of what a run leaves behind.

`tests/runs/test_train.py` holds them against a real run: a key that a run no longer writes may
not live on here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stepalign_jax.base.files import write_json, write_jsonl
from stepalign_jax.evaluation.evaluate import METRICS
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.tiny.tokenizer import encode


def interval(mean: float, half_width: float = 0.03) -> dict[str, float]:
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width}


def make_summary(before: float = 0.4, after: float = 0.7) -> dict[str, Any]:
    """What tables and plots read of summary.json."""

    def scores(mean: float, tokens: float) -> dict[str, Any]:
        names = ("avg_at_k", "pass_at_k", "maj_at_k", "greedy")
        return {
            **{name: interval(mean) for name in names},
            "mean_tokens": interval(tokens, 0.5),
        }

    return {
        "k": 12,
        "before": scores(before, 40.0),
        "after": scores(after, 38.5),
        "gain": scores(after - before, -1.5),
        "seconds": 1234.5,
    }


def finish(
    run: RunDirectory,
    *,
    step_seconds: Sequence[float],
    validation: Mapping[int, float] | None = None,
    critic_exact: float | None = None,
    before: Sequence[float] = (0.25, 0.55),
    after: Sequence[float] = (0.75, 0.65),
    inputs: Mapping[str, str] | None = None,
) -> None:
    """Writes what `compare` reads of a finished run.

    A validation takes 9 s, the critic a quarter of each step.
    """
    steps = range(len(step_seconds))
    timings: list[dict[str, Any]] = [
        {"step": step, "total": seconds, "critique": seconds / 4}
        for step, seconds in enumerate(step_seconds)
    ]
    for step, value in (validation or {}).items():
        write_json(run.evaluation_file(f"validation_{step:05d}"), {"avg_at_k": [value, value]})
        timings[step] |= {"validate": 9.0, "total": timings[step]["total"] + 9.0}
    tokens = {"solver_tokens": 640.0 / len(steps), "critic_tokens": 32.0}
    rows = [{"step": s, "critic_exact_on_wrong": critic_exact, **tokens} for s in steps]
    write_jsonl(run.metrics_file, rows)
    write_jsonl(run.timings_file, timings)
    sums = {"solver_tokens": 640, "step_seconds": sum(step_seconds)}
    write_json(run.summary_file, make_summary() | sums)
    for label, values in (("before", before), ("after", after)):
        write_json(run.evaluation_file(label), {key: list(values) for key in METRICS})
    found = {"test problems": "1f", "model weights": "9a"} if inputs is None else dict(inputs)
    write_json(run.inputs_file, {"fingerprints": found, "changes": []})


def rollout_row(text: str = "Step 1: 1+2=3\nAnswer: 3") -> dict[str, Any]:
    """What an export reads of a row of rollouts/."""
    return {"problem": "1+2", "answer": "3", "tokens": list(encode(text))}


def require_same_shape(imitation: Any, real: Any, where: str = "") -> None:
    """Every key of an imitation is one of the real thing, and holds the same kind of value."""
    if isinstance(imitation, dict):
        assert isinstance(real, dict) and imitation.keys() <= real.keys(), where
        for key, value in imitation.items():
            require_same_shape(value, real[key], f"{where}/{key}")
    elif isinstance(imitation, list):
        assert isinstance(real, list), where
        for entry in imitation[:1]:
            require_same_shape(entry, real[0], f"{where}[]")
    elif not (imitation is None or real is None):
        number = isinstance(imitation, (int, float)) and isinstance(real, (int, float))
        assert number or type(imitation) is type(real), where
