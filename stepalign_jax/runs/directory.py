# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A run is its directory; this module knows where everything in it lies.

    config.json        the resolved config
    inputs.json        hashes of problems and models, which may not change under a run
    prompts.json       the prompts of all roles, as rendered for one problem
    memory.json        what each part's weights take of a device, and where the critic waits
    metrics.jsonl      one row per optimizer step, the same bits in every repetition of the run
    timings.jsonl      what differs between repetitions, kept apart for that reason
    critiques.jsonl    what critics were asked and said, if it is kept (critics/store.py)
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
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import (
    read_json,
    read_json_object,
    read_jsonl,
    write_json,
    write_jsonl,
)
from stepalign_jax.config.schema import Config, Constant
from stepalign_jax.evaluation.evaluate import Evaluation

# Where a run lies does not change what it computes: a run that was moved can go on.
_LOCATION_KEYS = ("name", "runs_dir")
_FREE_KEYS = (*_LOCATION_KEYS, "train.allow_changed_inputs")  # may differ when a run goes on
_WHY_NOT_LONGER = " (a run gets more steps only with optimizer.schedule=constant)"
_TEMPORARY = re.compile(r".+\.\d+\.tmp|.+orbax-checkpoint-tmp.*")


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
        scores = {}
        for file in files:  # others are not ours, whatever they are called
            if step := re.fullmatch(r"validation_(\d+)", file.stem):
                values = Evaluation.from_lists(read_json_object(file)).per_problem[metric]
                scores[int(step[1])] = float(values.sum() / len(values))
        return scores

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
                kept = [row for row in rows if row.get("step", -1) < num_completed_steps]
                write_jsonl(path, kept)
        for path in self.path.glob("rollouts/step_*.jsonl"):
            step = re.fullmatch(r"step_(\d+)", path.stem)
            if step and int(step[1]) >= num_completed_steps:
                path.unlink()
        if num_completed_steps == 0:
            # The steps of a run that starts anew would be drawn over those of the old one.
            shutil.rmtree(self.tensorboard, ignore_errors=True)

    def check_rows(self, num_completed_steps: int) -> None:
        """Refuses a metrics.jsonl without exactly one row for each completed step.

        Raises:
          UserError: a row is missing, stands twice, or is damaged; the sentence says which.
        """
        rows = read_jsonl(self.metrics_file) if self.metrics_file.exists() else []
        counts = Counter(row.get("step") for row in rows)
        for step in range(num_completed_steps):
            if counts[step] != 1:
                kept = "lacks the row" if counts[step] == 0 else f"has {counts[step]} rows"
                raise UserError(
                    f"{self.metrics_file} {kept} of step {step}, so that sums over the run "
                    "would be wrong: put a whole copy in its place, or delete the checkpoints "
                    f"after step {step} in {self.checkpoints} to do these steps again"
                )

    def has_results(self) -> bool:
        """False where a mistake in the config stopped the run before it measured anything."""
        measured = self.metrics_file.exists() or any(self.path.glob("evaluations/*.json"))
        return measured or any(self.checkpoints.glob("[0-9]*/manifest.json"))

    def sweep(self) -> None:
        """Deletes temporary files that killed processes left; call it under the run's lock."""
        for path in sorted(self.path.rglob("*.tmp*"), reverse=True):
            if _TEMPORARY.fullmatch(path.name) or "orbax-checkpoint-tmp" in path.name:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def open_run(config: Config) -> RunDirectory:
    """Returns the directory of a run, made if need be, for this config and no other.

    A run that has not measured anything yet takes on the config it is given. One whose learning
    rate stays constant may be given more steps: it then goes on, finished or not.

    Raises:
      UserError: the directory cannot be written, or holds a run of another config, or results
        without a config.
    """
    run = RunDirectory.of(config)
    resolved = _as_json(config)
    _make_directories(run)
    if not run.has_results():
        write_json(run.config_file, resolved)
        return run
    if not run.config_file.exists():
        raise UserError(
            f"{run.path} holds results without {run.config_file.name}, so nobody can tell what "
            "made them: put the file back, or choose another name with --name=..."
        )
    if is_longer(run, config):
        # The end of the shorter run is no end any more.
        for path in (run.summary_file, run.evaluation_file("after")):
            path.unlink(missing_ok=True)
        write_json(run.config_file, resolved)
    else:
        _require_same_config(run, resolved)
    return run


def is_longer(run: RunDirectory, config: Config) -> bool:
    """Whether the config gives more steps to the run in `run`, and changes nothing else.

    Only where the learning rate is constant: a cosine's values at the steps that were taken
    would have been others in the longer run.
    """
    if not run.config_file.exists() or not isinstance(config.optimizer.schedule, Constant):
        return False
    differences = _differences(read_json(run.config_file), _as_json(config))
    changed = {key: (old, new) for key, old, new in differences if key not in _FREE_KEYS}
    if set(changed) != {"train.num_steps"}:
        return False
    old, new = changed["train.num_steps"]
    return old.isdecimal() and int(new) > int(old)


def differing_keys(run: RunDirectory, config: Config, sections: Iterable[str]) -> list[str]:
    """Returns the keys of `sections` whose values are not those that the run was made with.

    Raises:
      UserError: the run's config.json cannot be read.
    """
    saved, wanted = read_json(run.config_file), set(sections) - set(_LOCATION_KEYS)
    keys = (key for key, *_ in _differences(saved, _as_json(config)))
    return [key for key in keys if key.partition(".")[0] in wanted]


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
        if key not in _FREE_KEYS:
            why = _WHY_NOT_LONGER if key == "train.num_steps" else ""
            raise UserError(
                f"{run.path} holds a run with {key}={old}, and this one has {key}={new}{why}: "
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
