# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A run is its directory; this module knows where everything in it lies.

    config.json        the resolved config
    inputs.json        hashes of problems and models, which may not change under a run
    prompts.json       the prompts of all roles, as rendered for one problem, and whether the
                       teacher reads a rollout as the solver does (alignment.py)
    preflight.json     what was known of each role before the first step (preflight.py)
    memory.json        what each part's weights take of a device, and where the critic waits
    metrics.jsonl      one row per optimizer step, the same bits in every repetition of the run
    timings.jsonl      what differs between repetitions, kept apart for that reason
    critiques.jsonl    what critics were asked and said, if it is kept (critics/store.py)
    rollouts/          step_00000.jsonl: what was sampled and critiqued in one step
    evaluations/       <label>.json; while it is under way, <label>.json.partial; see start.py
    analysis/          <label>/: tokens of some rollouts and their scores (analysis/results.py)
    checkpoints/       see checkpoint.py
    elsewhere.json     where they are instead, if `hosts.checkpoints_dir` says so
    tensorboard/       a view of the metrics; never read back
    summary.json       what the run came to
    lock.json          which process trains in it, or was the last
    report/            report.html and plots, made from the above
    set_aside/         step_00020/: what stopped to hold when inputs or length changed there

JSON files appear whole or not at all. Rows of the .jsonl files may be cut by a kill, and are
dropped when the run goes on.
"""

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Iterable

from etils import epath

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import atomic_file, read_json, read_json_object, write_json
from stepalign_jax.config.compared import config_differences, config_json
from stepalign_jax.config.learning import Constant
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.evaluate import Evaluation

# Where a run lies does not change what it computes: a run that was moved can go on.
_LOCATION_KEYS = ("name", "runs_dir")
_FREE_KEYS = (*_LOCATION_KEYS, "train.allow_changed_inputs")  # may differ when a run goes on
# Nor does on what it computes, but for the rounding of sums.
_FREE_SECTIONS = ("parallel", "hosts")

# What processes that were killed leave: of `atomic_file`, and of Orbax.
_TEMPORARY = re.compile(r".+\.\d+\.tmp")
_UNFINISHED_CHECKPOINT = ".orbax-checkpoint-tmp"


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Attributes:
      path: the directory of the run; `open_run` makes it.
      shared: where the checkpoints are, if not there: see `shared.py`.
    """

    path: pathlib.Path
    shared: pathlib.Path | None = None

    @classmethod
    def of(cls, config: Config) -> "RunDirectory":
        """Where the run of this config lies."""
        return cls(pathlib.Path(config.runs_dir) / config.name)

    @property
    def config_file(self) -> pathlib.Path:
        return self.path / "config.json"

    @property
    def inputs_file(self) -> pathlib.Path:
        return self.path / "inputs.json"

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
    def preflight_file(self) -> pathlib.Path:
        return self.path / "preflight.json"

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
    def critiques_file(self) -> pathlib.Path:
        return self.path / "critiques.jsonl"

    @property
    def checkpoints(self) -> epath.Path:
        """A directory, or a bucket's."""
        if self.elsewhere_file.exists():
            return epath.Path(read_json_object(self.elsewhere_file)["checkpoints"])
        return epath.Path(self.shared or self.path) / "checkpoints"

    @property
    def elsewhere_file(self) -> pathlib.Path:
        return self.path / "elsewhere.json"

    @property
    def tensorboard(self) -> pathlib.Path:
        return self.path / "tensorboard"

    @property
    def analysis(self) -> pathlib.Path:
        return self.path / "analysis"

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

    def validation_files(self) -> dict[int, pathlib.Path]:
        """The files of the validation curve by optimizer steps done, oldest first."""
        files = self.path.glob("evaluations/validation_*.json")
        found = [(re.fullmatch(r"validation_([0-9]+)", file.stem), file) for file in files]
        # Others are not ours, whatever they are called.
        return dict(sorted((int(step[1]), file) for step, file in found if step))

    def validation_scores(self, metric: str) -> dict[int, float]:
        """Mean of a metric of `Evaluation` by optimizer steps done, oldest first.

        Raises:
          UserError: a file holds something else.
        """
        files = self.validation_files().items()
        return {step: Evaluation.read(file).mean(metric) for step, file in files}

    def check_rows(self, num_completed_steps: int) -> None:
        """Refuses metrics and timings that do not begin with one row per completed step.

        Raises:
          UserError: a row is lost, stands twice, or is damaged; the sentence says which.
        """
        for path, number in self._row_files():
            num_whole = len(_leading_rows(path, number))
            if num_whole < num_completed_steps:
                raise UserError(
                    f"line {num_whole + 1} of {path} is not the whole row of step {num_whole}, "
                    "so that sums over the run would be wrong: put a whole copy of the file in "
                    f"its place, or {self._redo_from(num_whole)}"
                )

    def _redo_from(self, num_whole: int) -> str:
        steps = sorted(int(file.parent.name) for file in self._finished_checkpoints())
        later = ", ".join(str(step) for step in steps if step > num_whole)
        start = max((step for step in steps if step <= num_whole), default=0)
        return (
            f"delete {later} in {self.checkpoints} to go on from step {start}, which makes the "
            "rows again"
        )

    def truncate_after(self, num_completed_steps: int) -> None:
        """Drops what was written after the checkpoint that the run goes on from.

        Rows and rollout files of steps `num_completed_steps` and later go, and with them a
        last row that a kill cut short; `check_rows` comes first.

        Args:
          num_completed_steps: optimizer steps in the checkpoint; 0 without one.
        """
        for path, number in self._row_files():
            if path.exists():
                kept = _leading_rows(path, number)[:num_completed_steps]
                with atomic_file(path) as file:
                    file.write(b"".join(row + b"\n" for row in kept))
        for path in self.path.glob("rollouts/step_*.jsonl"):
            step = re.fullmatch(r"step_([0-9]+)", path.stem)
            if step and int(step[1]) >= num_completed_steps:
                path.unlink()
        if num_completed_steps == 0:
            # The steps of a run that starts anew would be drawn over those of the old one.
            shutil.rmtree(self.tensorboard, ignore_errors=True)

    def _row_files(self) -> tuple[tuple[pathlib.Path, str], ...]:
        """The files with a row per step, each with the number that `summarise` adds up."""
        return (self.metrics_file, "solver_tokens"), (self.timings_file, "total")

    def set_aside(self, step: int, paths: Iterable[pathlib.Path]) -> None:
        """Moves files of the run, where they exist, to set_aside/step_<step>/.

        Args:
          step: optimizer steps done when they stopped to hold.
          paths: of the run; the same names there are replaced.
        """
        for path in paths:
            if path.exists():
                target = self.path / "set_aside" / f"step_{step:05d}"
                target.mkdir(parents=True, exist_ok=True)
                path.replace(target / path.name)

    def has_results(self) -> bool:
        """False where a mistake in the config stopped the run before it measured anything."""
        measured = self.metrics_file.exists() or any(self.path.glob("evaluations/*.json"))
        return measured or bool(self._finished_checkpoints())

    def _finished_checkpoints(self) -> list[epath.Path]:
        files = [path / "manifest.json" for path in step_directories(self.checkpoints)]
        return [file for file in files if file.exists()]

    def sweep(self) -> None:
        """Deletes what killed processes left half written; call it under the run's lock."""
        for folder in (self.path, self.path / "evaluations", self.path / "rollouts"):
            for path in folder.glob("*.tmp"):
                if _TEMPORARY.fullmatch(path.name) and path.is_file():
                    path.unlink(missing_ok=True)
        for path in listed(self.checkpoints):
            if _UNFINISHED_CHECKPOINT in path.name:
                path.rmtree()


def step_directories(directory: epath.PathLike) -> list[epath.Path]:
    """The checkpoints of a directory, finished or not."""
    return [path for path in listed(directory) if path.name.isdecimal()]


def listed(directory: epath.PathLike) -> list[epath.Path]:
    """What a directory or a bucket's folder holds; nothing, if it is not there.

    Not by `glob`, which would take a directory's own name for a pattern.
    """
    place = epath.Path(directory)
    return list(place.iterdir()) if place.exists() else []


def open_run(config: Config) -> RunDirectory:
    """Returns the directory of a run, made if need be, for this config and no other.

    A run that has not measured anything yet takes on the config it is given. One that
    `is_longer` is let through as it is: `lengthen_run` changes it, once nothing is refused.

    Raises:
      UserError: the directory cannot be written, or holds a run of another config, or results
        without a config.
    """
    run = RunDirectory.of(config)
    _make_directories(run)
    _place_checkpoints(run, config)
    if run.has_results():
        is_longer(run, config)  # refuses what it is not
    else:
        write_json(run.config_file, config_json(config))
    return run


def _place_checkpoints(run: RunDirectory, config: Config) -> None:
    """Writes down where a run's checkpoints are, if that is elsewhere.

    Raises:
      UserError: the run has checkpoints in another place already.
    """
    if not (directory := config.hosts.checkpoints_dir):
        return
    wanted, found = epath.Path(directory) / config.name / "checkpoints", run.checkpoints
    if str(wanted) == str(found):
        return
    if run._finished_checkpoints():
        raise UserError(
            f"hosts.checkpoints_dir is {directory}, but the checkpoints of {run.path} are in "
            f"{found}: leave the key as it was, or move them and edit {run.elsewhere_file}."
        )
    write_json(run.elsewhere_file, {"checkpoints": str(wanted)})


def is_longer(run: RunDirectory, config: Config) -> bool:
    """Whether the config gives more steps to the run in `run`; else it is the run's own.

    A run gets longer only where the learning rate is constant: a cosine's values at the steps
    that were taken would have been others in the longer run.

    Raises:
      UserError: the run was made with another config, or nobody knows with which.
    """
    if not run.config_file.exists():
        raise UserError(
            f"{run.path} holds results without {run.config_file.name}, so nobody can tell what "
            "made them: put the file back, or choose another name with --name=..."
        )
    differences = config_differences(read_json(run.config_file), config_json(config))
    changed = {key: (old, new) for key, old, new in differences if not _is_free(key)}
    if not changed or _is_only_lengthened(changed, config):
        return bool(changed)
    key, (old, new) = next(iter(changed.items()))
    why = _why_not_longer(config) if key == "train.num_steps" else ""
    raise UserError(
        f"{run.path} holds a run with {key}={old}, and this one has {key}={new}{why}: "
        f"choose another name with --name=..., or delete {run.path}"
    )


def _is_free(key: str) -> bool:
    return key in _FREE_KEYS or key.partition(".")[0] in _FREE_SECTIONS


def _is_only_lengthened(changed: dict[str, tuple[str, str]], config: Config) -> bool:
    if set(changed) != {"train.num_steps"}:
        return False
    old, new = changed["train.num_steps"]
    constant = isinstance(config.optimizer.schedule, Constant)
    return constant and old.isdecimal() and int(new) > int(old)


def is_finished(config: Config) -> bool:
    """Whether the run of this config has come to its end, and not to that of a shorter one.

    Raises:
      UserError: the directory holds a run of another config.
    """
    run = RunDirectory.of(config)
    return run.summary_file.exists() and not is_longer(run, config)


def differing_keys(run: RunDirectory, config: Config, sections: Iterable[str]) -> list[str]:
    """Returns the keys of `sections` whose values are not those that the run was made with.

    Raises:
      UserError: the run's config.json cannot be read.
    """
    saved, wanted = read_json(run.config_file), set(sections) - set(_LOCATION_KEYS)
    keys = (key for key, *_ in config_differences(saved, config_json(config)))
    return [key for key in keys if key.partition(".")[0] in wanted]


def _make_directories(run: RunDirectory) -> None:
    try:
        for name in ("rollouts", "evaluations", "checkpoints", "report"):
            (run.path / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the run directory {run.path} ({error.strerror}: {error.filename}): "
            "choose a place that can be written with --runs_dir=..."
        ) from error


def _why_not_longer(config: Config) -> str:
    if isinstance(config.optimizer.schedule, Constant):
        return " (a run may only get more steps, and nothing else may change)"
    return (
        " (a run gets more steps only with optimizer.schedule=constant: with another schedule "
        "the steps it has taken would have had other learning rates)"
    )


def _leading_rows(path: pathlib.Path, number: str) -> list[bytes]:
    """The rows of steps 0, 1, 2, ..., up to the first that is lost, doubled or damaged."""
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    rows = []
    for line in lines:
        if not _is_row(line, len(rows), number):
            break
        rows.append(line)
    return rows


def _is_row(line: bytes, step: int, number: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    whole = isinstance(row, dict) and isinstance(row.get(number), int | float)
    return whole and type(row.get("step")) is int and row["step"] == step
