# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run was begun with, so that nothing changes under it in silence.

A run that goes on with other problems, weights or templates than it began with would compare
what cannot be compared. inputs.json holds a hash of each input, and what was allowed to change:

    {"fingerprints": {"test problems": "1f...", "model weights": "9a...", ...},
     "changes": [{"step": 20, "inputs": ["train problems"]},
                 {"step": 60, "num_steps": [60, 90]}]}
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object, write_json
from stepalign_jax.base.hashing import content_hash
from stepalign_jax.config.schema import Config
from stepalign_jax.critics.engine_critic import ModelCritic
from stepalign_jax.critics.protocol import Critic, innermost
from stepalign_jax.critics.replay import Replay
from stepalign_jax.huggingface.fingerprint import fingerprint_adapter, fingerprint_checkpoint
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory, is_longer

KEPT_BY_FILTER = "kept by the difficulty filter"
_EVALUATED = ("model ", "start adapter")  # with another one of these no evaluation holds


def fingerprint_inputs(
    config: Config,
    directory: Path,
    critic: Critic | None,
    problems: Mapping[str, Sequence[Problem]],
) -> dict[str, str]:
    """Returns a hash of each input that decides what a run computes, by name.

    Args:
      config: of the run.
      directory: of the model that is trained.
      critic: a second model, or a store of critiques, counts too.
      problems: by split, in their order, before the difficulty filter.
    """
    found = fingerprint_problems(problems, "problems")
    found |= _of_checkpoint("model", directory)
    if adapter := getattr(config.trainable, "adapter", ""):
        found["start adapter"] = fingerprint_adapter(Path(adapter))
    critic = innermost(critic)
    if isinstance(critic, ModelCritic) and critic.model.directory != directory:
        found |= _of_checkpoint("critic", critic.model.directory)
    if isinstance(critic, Replay):
        found["critic store"] = critic.fingerprint()
    return found


def fingerprint_problems(
    problems: Mapping[str, Sequence[Problem]], what: str
) -> dict[str, str]:
    """Returns a hash of the problems of each split, in their order, as "<split> <what>"."""
    return {
        f"{split} {what}": content_hash(
            [[p.text, p.answer, p.reference, *filter(None, [p.scorer])] for p in some]
        )
        for split, some in problems.items()
    }


def _of_checkpoint(role: str, directory: Path) -> dict[str, str]:
    parts = fingerprint_checkpoint(directory)
    return {f"{role} {part}": value for part, value in parts.items()}


class Inputs:
    """What a run reads: recorded when it begins, and compared when it goes on."""

    def __init__(self, run: RunDirectory, *, step: int, allow_changes: bool):
        """Nothing is written yet.

        Args:
          run: its directory, locked.
          step: optimizer steps done.
          allow_changes: `train.allow_changed_inputs`.
        """
        self._run, self._step, self._allow_changes = run, step, allow_changes
        self._begins, self._found = not run.has_results(), {}

    def check(self, found: Mapping[str, str]) -> None:
        """Records inputs of a run that begins; refuses others than its own when it goes on.

        Changes that are allowed are recorded, and evaluations that no longer hold are set
        aside: those with which "after" would not pair, and those of steps that come again.

        Args:
          found: hashes by name; those of an earlier call count too.

        Raises:
          UserError: an input is not what it was, or nobody knows; the sentence names each.
        """
        self._found |= found
        run, saved = self._run, {"fingerprints": {}, "changes": []}
        if self._begins:
            write_json(run.inputs_file, saved | {"fingerprints": self._found})
            return
        if run.inputs_file.exists():
            saved = _read(run.inputs_file)
        elif not self._allow_changes:
            raise UserError(
                f"{run.inputs_file} is missing, so nobody can tell whether {run.path} goes on "
                "with what it began with: put it back, or go on with "
                "--train.allow_changed_inputs=true."
            )
        known = saved["fingerprints"]
        changed = [name for name in found if known.get(name) != found[name]]
        if not changed:
            return
        names = ", ".join(changed)
        if not self._allow_changes:
            raise UserError(
                f"{run.path} was begun with other inputs: {names}; put back what was there, "
                "start another run with --name=..., or go on with "
                "--train.allow_changed_inputs=true."
            )
        print(f"warning: goes on with other inputs: {names}", file=sys.stderr, flush=True)
        run.set_aside(self._step, _stale_evaluations(run, changed, self._step))
        changes = _with_change(saved["changes"], {"step": self._step, "inputs": changed})
        write_json(run.inputs_file, {"fingerprints": known | self._found, "changes": changes})


def _stale_evaluations(run: RunDirectory, changed: Sequence[str], step: int) -> Iterator[Path]:
    """Yields the files of evaluations that other inputs, or the steps to come, make wrong."""
    every = any(name.startswith(_EVALUATED) for name in changed)
    yield run.evaluation_file("after")
    if step == 0:
        yield run.preflight_file
    if every or any(name.startswith("test ") for name in changed):
        yield run.evaluation_file("before")
    asked = every or any(name.startswith("validation ") for name in changed)
    for measured_at, file in run.validation_files().items():
        if asked or measured_at > step:
            yield file


def lengthen_run(run: RunDirectory, config: Config, *, step: int) -> None:
    """Gives a run more steps, if the config has more; what it came to before is set aside.

    Args:
      run: its directory, locked.
      config: which `open_run` let through.
      step: optimizer steps done.
    """
    if not is_longer(run, config):
        return
    saved, num_steps = read_json_object(run.config_file), config.train.num_steps
    change = {"step": step, "num_steps": [saved["train"]["num_steps"], num_steps]}
    # A kill in between leaves the shorter run without its end, which either command mends.
    run.set_aside(step, (run.summary_file, run.evaluation_file("after")))
    inputs = _read(run.inputs_file)
    changes = _with_change(inputs["changes"], change)
    write_json(run.inputs_file, inputs | {"changes": changes})
    write_json(run.config_file, saved | {"train": saved["train"] | {"num_steps": num_steps}})


def _with_change(changes: list[dict[str, Any]], change: dict[str, Any]) -> list[dict[str, Any]]:
    return changes if change in changes[-1:] else [*changes, change]


def recorded_changes(run: RunDirectory) -> list[dict[str, Any]]:
    """Returns the changes of inputs and of length that were allowed, oldest first."""
    return _read(run.inputs_file)["changes"] if run.inputs_file.exists() else []


def was_begun_with(
    run: RunDirectory, config: Config, directory: Path, test: Sequence[Problem]
) -> bool:
    """Whether a run began with this model, and is tested on these; False if nobody knows.

    Args:
      run: its directory.
      config: has the adapter that the run starts from, if any.
      directory: of the model.
      test: the test problems, behind the difficulty filter.
    """
    if not run.inputs_file.exists():
        return False
    saved = _read(run.inputs_file)["fingerprints"]
    found = fingerprint_inputs(config, directory, None, {})
    filtered = f"test {KEPT_BY_FILTER}" in saved
    found |= fingerprint_problems({"test": test}, KEPT_BY_FILTER if filtered else "problems")
    return all(saved.get(name) == value for name, value in found.items())


def warn_of_another_model(run: RunDirectory, directory: Path) -> None:
    """Names on stderr what of the model differs from what a run was begun with."""
    if changed := _others(run, _of_checkpoint("model", directory)):
        words = f"{', '.join(changed)} in {directory} differ"
        print(f"warning: {run.path} was trained on another base: {words}", file=sys.stderr)


def warn_of_other_problems(run: RunDirectory, split: str, problems: Sequence[Problem]) -> None:
    """Names on stderr a split whose problems are not those that a run was begun with."""
    for name in _others(run, fingerprint_problems({split: problems}, "problems")):
        words = f"the {name} are not those that {run.path} was begun with"
        print(f"warning: {words}: results do not pair with its own", file=sys.stderr)


def _others(run: RunDirectory, found: Mapping[str, str]) -> list[str]:
    if not run.inputs_file.exists():
        return []
    saved = _read(run.inputs_file)["fingerprints"]
    return [name for name in found if saved.get(name, found[name]) != found[name]]


def _read(path: Path) -> dict[str, Any]:
    content = read_json_object(path)
    fingerprints, changes = content.get("fingerprints"), content.get("changes")
    if not (isinstance(fingerprints, dict) and isinstance(changes, list)):
        raise UserError(f"{path} is damaged: put a whole copy in its place.")
    return content
