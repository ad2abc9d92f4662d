# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A run is its directory; this module knows where everything in it lies.

    config.json        the resolved config
    prompts.json       the prompts of all roles, as rendered for one problem
    memory.json        what each part's weights take of a device, and where the critic waits
    metrics.jsonl      one row per optimizer step, the same bits in every repetition of the run
    timings.jsonl      what differs between repetitions, kept apart for that reason
    rollouts/          step_00000.jsonl: what was sampled and critiqued in one step
    evaluations/       <label>.json
    checkpoints/       see checkpoint.py
    tensorboard/       a view of the metrics; never read back
    summary.json       what the run came to
    report/            tables and plots made from the above

JSON files appear whole or not at all. Rows of the .jsonl files may be cut by a kill, and are
dropped when the run goes on.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stepalign_jax.base.config import Config
from stepalign_jax.base.errors import UserError

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

    def write_prompts(self, prompts: Mapping[str, Any]) -> None:
        write_json(self.prompts_file, prompts)

    def write_memory(self, memory: Mapping[str, Any]) -> None:
        write_json(self.memory_file, memory)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.summary_file, summary)

    def write_evaluation(self, label: str, evaluation: Mapping[str, Any]) -> None:
        write_json(self.evaluation_file(label), evaluation)

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        write_jsonl(self.rollouts_file(step), rows)

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
    if (
        not config.name
        or config.name in (".", "..")
        or pathlib.Path(config.name).name != config.name
    ):
        raise UserError(
            f"name={config.name!r} cannot be the name of a run: it names a directory inside "
            "runs_dir, so give a plain word such as --name=first"
        )
    run = RunDirectory.of(config)
    # Through JSON, so that tuples compare with the lists that they become in the file.
    resolved = json.loads(json.dumps(dataclasses.asdict(config)))
    _make_directories(run)
    if run.config_file.exists() and _has_results(run):
        _require_same_config(run, resolved)
    else:
        write_json(run.config_file, resolved)
    return run


def _has_results(run: RunDirectory) -> bool:
    """False where a mistake in the config stopped the run before it measured anything."""
    return run.metrics_file.exists() or any(run.path.glob("evaluations/*.json"))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes one JSON file, whole or not at all, with sorted keys.

    Raises:
      UserError: the file cannot be written.
      ValueError: a number is not finite.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    _replace_text(path, text + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Returns the value in a JSON file.

    Raises:
      UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): delete it, or put a copy back"
        ) from error


def jsonl_row(row: Mapping[str, Any]) -> str:
    """Returns one row with its newline; equal rows give equal text (sorted keys).

    Raises:
      ValueError: a number is not finite.
    """
    return json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_jsonl(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of one JSON object per line, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    _replace_text(path, "".join(jsonl_row(row) for row in rows))


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a file; a last row that a kill cut short is left out.

    Raises:
      UserError: the file cannot be read, or a row before the last is damaged.
    """
    try:
        # A kill may cut a character in two; that row fails to parse like any other cut row.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):  # only what follows the last newline may be half a row
                raise UserError(
                    f"{path} is damaged at line {number}: delete that line to go on"
                ) from error
    return rows


def _replace_text(path: pathlib.Path, text: str) -> None:
    # Named by process: runs of one comparison may write the same shared file at once.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the name and lose the content
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}: {error.filename})") from error


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
