# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The one writer of metrics: JSON lines are the record, and TensorBoard is a view of it."""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import TextIO

import tensorboardX

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import jsonl_row
from stepalign_jax.config.schema import Config
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.tensorboard import add_verbatim, metric_tag, start_session, timing_tag


class NonFiniteError(UserError, RuntimeError):
    """A metric is NaN or infinite: the run has diverged, and going on would waste it."""


def require_finite(step: int, metrics: Mapping[str, float | None]) -> None:
    """Passes metrics that are finite or None.

    Raises:
      NonFiniteError: one is NaN or infinite; the sentence names the first by name.
    """
    for name, value in sorted(metrics.items()):
        if value is not None and not math.isfinite(value):
            raise NonFiniteError(
                f"{name} is {float(value)} at step {step}: training has diverged; start "
                "again under another --name=... with a lower optimizer.learning_rate or "
                "optimizer.clip_norm"
            )


class MetricsWriter:
    """Appends one row per optimizer step; a row is on its way to disk before `write` returns.

    `RunDirectory.truncate_after` comes first, so that the files end at the last kept row.
    """

    def __init__(self, run: RunDirectory, *, num_completed_steps: int) -> None:
        """Opens the files of a run.

        Args:
          run: the directory of the run.
          num_completed_steps: TensorBoard hides what it holds of this step and later ones.

        Raises:
          UserError: the files cannot be opened.
        """
        try:
            self._metrics = _open_to_append(run.metrics_file)
            self._timings = _open_to_append(run.timings_file)
            self._tensorboard = tensorboardX.SummaryWriter(
                logdir=str(run.tensorboard), purge_step=num_completed_steps
            )
        except OSError as error:
            raise UserError(f"cannot write metrics to {run.path}: {error.strerror}") from error

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Writes the metrics of a step. None stands for "nothing to measure", not for 0.

        Raises:
          NonFiniteError: a metric is NaN or infinite; then nothing is written.
          ValueError: a metric is called "step", as the row's number is.
        """
        require_finite(step, metrics)
        self._append(self._metrics, step, metrics, metric_tag)

    def write_timings(self, step: int, timings: Mapping[str, float | None]) -> None:
        """Writes seconds and rates, which no two runs share, to a file of their own."""
        require_finite(step, timings)
        self._append(self._timings, step, timings, timing_tag)

    def add_text(self, step: int, tag: str, text: str) -> None:
        """Shows a text in TensorBoard, verbatim: a rollout with its critique, or the config."""
        add_verbatim(self._tensorboard, tag, text, step)

    def start_session(self, config: Config) -> None:
        """Gives a run that begins its row in TensorBoard's HParams."""
        start_session(self._tensorboard, config)

    def close(self) -> None:
        self._metrics.close()
        self._timings.close()
        self._tensorboard.close()

    def _append(
        self,
        file: TextIO,
        step: int,
        values: Mapping[str, float | None],
        tag: Callable[[str], str],
    ) -> None:
        if "step" in values:
            raise ValueError("'step' is the row's optimizer step: name the value otherwise")
        # float() also unwraps NumPy and JAX scalars; its repr is the shortest that reads back.
        row = {name: None if value is None else float(value) for name, value in values.items()}
        file.write(jsonl_row({**row, "step": step}))
        file.flush()
        for name, value in sorted(row.items()):
            if value is not None:
                self._tensorboard.add_scalar(tag(name), value, step)
        self._tensorboard.flush()


def _open_to_append(path: pathlib.Path) -> TextIO:
    return path.open("a", encoding="utf-8", newline="\n")
