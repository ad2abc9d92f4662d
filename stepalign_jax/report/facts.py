# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a report reads of a run; all of it is optional, for the run may be training or old."""

from typing import Any, NamedTuple

from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.evaluation.statistics import paired_interval
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.inputs import recorded_changes

_CONFIDENCE, _RESAMPLES = 0.95, 2_000  # where a run's config has none


class Facts(NamedTuple):
    """A run in numbers.

    Attributes:
      name: of the run.
      config: the content of config.json.
      metrics: rows of metrics.jsonl.
      timings: rows of timings.jsonl.
      summary: the content of summary.json; None while the run goes on.
      prompts: by role, as the models read them.
      preflight: the content of preflight.json.
      changes: of inputs and of length.
      validation: optimizer steps done -> Avg@k on validation problems.
      validation_gain: interval of the newest validation less the first; None without two.
    """

    name: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    summary: dict[str, Any] | None
    prompts: dict[str, Any]
    preflight: dict[str, Any]
    changes: list[dict[str, Any]]
    validation: dict[int, float]
    validation_gain: dict[str, float] | None

    def of(self, *keys: str) -> Any:
        """A value of the config by its path; None where this run's config has no such key."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def column(self, name: str) -> list[float]:
        """A metric at each step that has it."""
        return [row[name] for row in self.metrics if row.get(name) is not None]

    def total(self, name: str) -> float:
        """The sum of a metric over the steps."""
        return float(sum(self.column(name)))

    @property
    def num_rollouts(self) -> int:
        """Rollouts of the steps that are done."""
        per_step = (
            self.of("train", "problems_per_step"),
            self.of("train", "samples_per_problem"),
        )
        return len(self.metrics) * int(per_step[0] or 0) * int(per_step[1] or 0)

    @property
    def train_seconds(self) -> float:
        """Seconds of the steps, without their validations."""
        return float(sum(row["total"] - row.get("validate", 0.0) for row in self.timings))

    @property
    def critic_share(self) -> float | None:
        """Of those seconds, the critic's share."""
        seconds = self.train_seconds
        spent = sum(row.get("critique", 0.0) for row in self.timings)
        return spent / seconds if seconds else None


def read_facts(run: RunDirectory) -> Facts:
    """Reads the files of a run that there are.

    Raises:
      UserError: one of them is damaged.
    """
    config = read_json(run.config_file)
    validation = run.validation_scores("avg_at_k")
    return Facts(
        name=run.path.resolve().name,
        config=config,
        metrics=read_jsonl(run.metrics_file) if run.metrics_file.exists() else [],
        timings=read_jsonl(run.timings_file) if run.timings_file.exists() else [],
        summary=read_json(run.summary_file) if run.summary_file.exists() else None,
        prompts=read_json(run.prompts_file) if run.prompts_file.exists() else {},
        preflight=read_json(run.preflight_file) if run.preflight_file.exists() else {},
        changes=recorded_changes(run),
        validation=validation,
        validation_gain=_validation_gain(run, config),
    )


def _validation_gain(run: RunDirectory, config: dict[str, Any]) -> dict[str, float] | None:
    files = list(run.validation_files().values())
    if len(files) < 2:
        return None
    first, newest = (
        Evaluation.read(file).per_problem["avg_at_k"] for file in (files[0], files[-1])
    )
    if len(first) != len(newest):
        return None
    how = config.get("evaluation", {})
    return paired_interval(
        first,
        newest,
        num_resamples=how.get("num_resamples", _RESAMPLES),
        confidence=how.get("confidence", _CONFIDENCE),
        seed=config.get("seed", 0),
    ).as_dict()
