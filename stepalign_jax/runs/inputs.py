# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run was begun with, so that nothing changes under it in silence.

A run that goes on with other problems, weights or templates than it began with would compare
what cannot be compared. inputs.json holds a hash of each input, and what was allowed to change:

    {"fingerprints": {"test problems": "1f...", "model weights": "9a...", ...},
     "changes": [{"step": 20, "inputs": ["train problems"]}]}
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object, write_json
from stepalign_jax.base.hashing import content_hash
from stepalign_jax.config.schema import Config
from stepalign_jax.critics.engine_critic import ModelCritic
from stepalign_jax.critics.protocol import Critic, innermost
from stepalign_jax.huggingface.fingerprint import fingerprint_adapter, fingerprint_checkpoint
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory

# With another one of these, what was measured before training no longer pairs with the rest.
_ONLY_TRAINING = ("train problems", "validation problems", "critic ")


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
      critic: a second model counts, too.
      problems: by split, in their order, before the difficulty filter.
    """
    found = {
        f"{split} problems": content_hash([[p.text, p.answer, p.reference] for p in some])
        for split, some in problems.items()
    }
    found |= _of_checkpoint("model", directory)
    if adapter := getattr(config.trainable, "adapter", ""):
        found["start adapter"] = fingerprint_adapter(Path(adapter))
    critic = innermost(critic)
    if isinstance(critic, ModelCritic) and critic.model.directory != directory:
        found |= _of_checkpoint("critic", critic.model.directory)
    return found


def _of_checkpoint(role: str, directory: Path) -> dict[str, str]:
    parts = fingerprint_checkpoint(directory)
    return {f"{role} {part}": value for part, value in parts.items()}


def check_inputs(
    run: RunDirectory, found: Mapping[str, str], *, step: int, allow_changes: bool
) -> None:
    """Records the inputs of a run that begins; refuses others when it goes on.

    Changes that are allowed are recorded, and "before" is measured again where it would not
    pair with "after".

    Args:
      run: its directory, locked.
      found: from `fingerprint_inputs`.
      step: optimizer steps done.
      allow_changes: `train.allow_changed_inputs`.

    Raises:
      UserError: an input is not what it was, or nobody knows; the sentence names each.
    """
    if not run.has_results():
        write_json(run.inputs_file, {"fingerprints": dict(found), "changes": []})
        return
    saved: dict[str, Any] = {"fingerprints": {}, "changes": []}
    if run.inputs_file.exists():
        saved = _read(run.inputs_file)
    elif not allow_changes:
        raise UserError(
            f"{run.inputs_file} is missing, so nobody can tell whether {run.path} goes on with "
            "what it began with: put it back, or go on with --train.allow_changed_inputs=true."
        )
    changed = _differing(saved["fingerprints"], found)
    if not changed:
        return
    names = ", ".join(changed)
    if not allow_changes:
        raise UserError(
            f"{run.path} was begun with other inputs: {names}; put back what was there, start "
            "another run with --name=..., or go on with --train.allow_changed_inputs=true."
        )
    print(f"warning: goes on with other inputs: {names}", file=sys.stderr, flush=True)
    if not all(name.startswith(_ONLY_TRAINING) for name in changed):
        for label in ("before", "after"):
            run.evaluation_file(label).unlink(missing_ok=True)
    changes = [*saved["changes"], {"step": step, "inputs": changed}]
    write_json(run.inputs_file, {"fingerprints": dict(found), "changes": changes})


def recorded_changes(run: RunDirectory) -> list[dict[str, Any]]:
    """Returns the changes of inputs that were allowed, oldest first."""
    return _read(run.inputs_file)["changes"] if run.inputs_file.exists() else []


def warn_of_another_model(run: RunDirectory, directory: Path) -> None:
    """Names on stderr what of the model differs from what a run was begun with."""
    if not run.inputs_file.exists():
        return
    found, saved = _of_checkpoint("model", directory), _read(run.inputs_file)["fingerprints"]
    if changed := [name for name in found if saved.get(name, found[name]) != found[name]]:
        print(
            f"warning: {run.path} was trained on another base: {', '.join(changed)} in "
            f"{directory} differ",
            file=sys.stderr,
        )


def _differing(saved: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    return [name for name in {**found, **saved} if saved.get(name) != found.get(name)]


def _read(path: Path) -> dict[str, Any]:
    content = read_json_object(path)
    if not isinstance(content.get("fingerprints"), dict) or "changes" not in content:
        raise UserError(f"{path} is damaged: put a whole copy in its place.")
    return content
