# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A run is its directory; this module knows where everything in it lies.

    config.json        the resolved config
    prompts.json       the prompts of all roles, as rendered for one problem
    memory.json        what each part's weights take of a device, and where the critic waits
    metrics.jsonl      one row per optimizer step, the same bits in every repetition of the run
    timings.jsonl      what differs between repetitions, kept apart for that reason
    rollouts/          step_00000.jsonl: what was sampled and critiqued in one step
    evaluations/       <label>.json; while it is under way, <label>.json.partial
    checkpoints/       see checkpoint.py
    tensorboard/       a view of the metrics; never read back
    summary.json       what the run came to
    lock.json          which process trains in it, or was the last
    report/            tables and plots made from the above

JSON files appear whole or not at all. Rows of the .jsonl files may be cut by a kill, and are
dropped when the run goes on.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl, write_json, write_jsonl
from stepalign_jax.config.schema import Config

# Where a run lies does not change what it computes: a run that was moved can go on.
_LOCATION_KEYS = ("name", "runs_dir")


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Attributes:
      path: the directory of the run; `open_run` makes it.
    """

    path: pathlib.Path

    @classmethod
    def of(cls, config: Config) -> "RunDirectory":
        """Where the run of this config lies."""
        return cls(pathlib.Path(config.runs_dir) / config.name)

    @property
    def config_file(self) -> pathlib.Path:
        return self.path / "config.json"

    @property
    def lock_file(self) -> pathlib.Path:
        return self.path / "lock.json"

    @property
    def prompts_file(self) -> pathlib.Path:
        return self.path / "prompts.json"

    @property
    def memory_file(self) -> pathlib.Path:
        return self.path / "memory.json"

    @property
    def metrics_file(self) -> pathlib.Path:
        return self.path / "metrics.jsonl"

    @property
    def timings_file(self) -> pathlib.Path:
        return self.path / "timings.jsonl"

    @property
    def summary_file(self) -> pathlib.Path:
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> pathlib.Path:
        return self.path / "tensorboard"

    @property
    def report(self) -> pathlib.Path:
        return self.path / "report"

    def rollouts_file(self, step: int) -> pathlib.Path:
        return self.path / "rollouts" / f"step_{step:05d}.jsonl"

    def evaluation_file(self, label: str) -> pathlib.Path:
        return self.path / "evaluations" / f"{label}.json"

    def validation_curve(self) -> list[list[float]]:
        """[optimizer steps done, validation Avg@k], oldest first; 0 is the start."""
        return [[step, score] for step, score in self.validation_scores("avg_at_k").items()]

    def validation_scores(self, metric: str) -> dict[int, float]:
        """Mean of a metric of `Evaluation` by optimizer steps done, oldest first."""
        files = sorted(self.path.glob("evaluations/validation_*.json"))
        scores = [read_json(file)[metric] for file in files]
        steps = [int(file.stem.removeprefix("validation_")) for file in files]
        return {n: sum(s) / len(s) for n, s in zip(steps, scores, strict=True)}

    def truncate_after(self, num_completed_steps: int) -> None:
        """Drops what was written after the checkpoint that the run goes on from.

        Rows and rollout files of steps `num_completed_steps` and later go, and with them a
        last row that a kill cut short.

        Args:
          num_completed_steps: optimizer steps in the checkpoint; 0 without one.

        Raises:
          UserError: a row other than the last is damaged.
        """
        for path in (self.metrics_file, self.timings_file):
            if path.exists():
                rows = read_jsonl(path)
                write_jsonl(path, [row for row in rows if row["step"] < num_completed_steps])
        for path in self.path.glob("rollouts/step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) >= num_completed_steps:
                path.unlink()
        if num_completed_steps == 0:
            # The steps of a run that starts anew would be drawn over those of the old one.
            shutil.rmtree(self.tensorboard, ignore_errors=True)


def open_run(config: Config) -> RunDirectory:
    """Returns the directory of a run, made if need be, for this config and no other.

    A run that has not measured anything yet takes on the config it is given.

    Raises:
      UserError: the directory cannot be written, or holds a run of another config.
    """
    run = RunDirectory.of(config)
    resolved = _as_json(config)
    _make_directories(run)
    if run.config_file.exists() and _has_results(run):
        _require_same_config(run, resolved)
    else:
        write_json(run.config_file, resolved)
    return run


def differing_keys(run: RunDirectory, config: Config, sections: Iterable[str]) -> list[str]:
    """Returns the keys of `sections` whose values are not those that the run was made with.

    Raises:
      UserError: the run's config.json cannot be read.
    """
    saved, wanted = read_json(run.config_file), set(sections) - set(_LOCATION_KEYS)
    keys = (key for key, *_ in _differences(saved, _as_json(config)))
    return [key for key in keys if key.partition(".")[0] in wanted]


def _has_results(run: RunDirectory) -> bool:
    """False where a mistake in the config stopped the run before it measured anything."""
    return run.metrics_file.exists() or any(run.path.glob("evaluations/*.json"))


def _as_json(config: Config) -> Any:
    # Through JSON, so that tuples compare with the lists that they become in the file.
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _make_directories(run: RunDirectory) -> None:
    try:
        for name in ("rollouts", "evaluations", "checkpoints", "report"):
            (run.path / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the run directory {run.path} ({error.strerror}: {error.filename}): "
            "choose a place that can be written with --runs_dir=..."
        ) from error


def _require_same_config(run: RunDirectory, resolved: dict[str, Any]) -> None:
    saved = read_json(run.config_file)
    for key, old, new in _differences(saved, resolved):
        if key not in _LOCATION_KEYS:
            raise UserError(
                f"{run.path} holds a run with {key}={old}, and this one has {key}={new}: "
                f"choose another name with --name=..., or delete {run.path}"
            )


def _differences(saved: Any, resolved: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields (dotted key, saved value, resolved value) in the order of the schema."""
    if not (isinstance(saved, dict) and isinstance(resolved, dict)):
        # 1 and 1.0 are one value; 1 and true are not.
        if saved != resolved or isinstance(saved, bool) != isinstance(resolved, bool):
            yield prefix.removesuffix("."), json.dumps(saved), json.dumps(resolved)
        return
    for key in [*resolved, *(key for key in saved if key not in resolved)]:
        if key in saved and key in resolved:
            yield from _differences(saved[key], resolved[key], f"{prefix}{key}.")
        else:
            sides = [json.dumps(d[key]) if key in d else "(absent)" for d in (saved, resolved)]
            yield prefix + key, sides[0], sides[1]
