# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Cells of a comparison: what one finished run came to, in one small JSON.

A comparison's tables are made from its cells alone, `cells/<label>-seed<k>-<variant>.json`, so
a cell may be copied in from another machine, and its run may be deleted. It names what it was
made from: the config, the hashes of problems and models, the version of this package. Cells
that were made from unlike things are refused, not averaged.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_json_object, read_jsonl, write_json
from stepalign_jax.base.version import package_version
from stepalign_jax.config.compared import config_differences, config_json
from stepalign_jax.config.schema import Config
from stepalign_jax.evaluation.evaluate import Evaluation
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.inputs import recorded_changes
from stepalign_jax.runs.stopwatch import looks

EQUAL_TOKENS, EQUAL_WALL_CLOCK = "equal_tokens", "equal_wall_clock"
VARIANTS = (EQUAL_TOKENS, EQUAL_WALL_CLOCK)

# Where things lie; for the models and the problems there, their hashes speak. On how many
# devices and hosts a run was made changes nothing but the last digits.
_PLACES = (
    *("name", "runs_dir", "model.path", "trainable.adapter", "problems.path", "critic.path"),
    *("critic.store", "critiques.shared_store", "train.allow_changed_inputs"),
)
_PLACED = ("parallel", "hosts")
_KEYS = ("command", "config", "inputs", "before", "after", "curve", "critic_exactness", "costs")

Cell = dict[str, Any]


class CellName(NamedTuple):
    """Which cell: one config, one seed, one variant."""

    label: str
    seed: int
    variant: str

    @property
    def file(self) -> str:
        """Its file in `cells/`."""
        return f"{self.label}-seed{self.seed}-{self.variant}.json"

    def __str__(self) -> str:
        return f"{self.label}:{self.seed}:{self.variant}"


def parse_cell_names(text: str, labels: Sequence[str], num_seeds: int) -> list[CellName]:
    """Returns the cells that "stepalign:0,grpo:2:equal_wall_clock" names.

    A cell without a variant is that of equal tokens.

    Raises:
      UserError: one is no cell of the comparison.
    """
    return [_parse(entry, labels, num_seeds) for entry in text.split(",")]


def _parse(entry: str, labels: Sequence[str], num_seeds: int) -> CellName:
    rest, _, variant = entry.rpartition(":")
    if variant not in VARIANTS:
        rest, variant = entry, EQUAL_TOKENS
    label, _, seed = rest.rpartition(":")
    if label not in labels or not seed.isdecimal() or int(seed) >= num_seeds:
        raise UserError(
            f"{entry!r} is no cell of this comparison: name one as LABEL:SEED, with a label of "
            f"{', '.join(labels)} and a seed from 0 to {num_seeds - 1}, and "
            f":{EQUAL_WALL_CLOCK} behind it for the other variant."
        )
    return CellName(label, int(seed), variant)


def make_cell(
    name: CellName, config: Config, arguments: Sequence[str], run: RunDirectory
) -> Cell:
    """Returns the cell of a finished run.

    Args:
      name: which cell it is.
      config: of the run.
      arguments: of its `train` command.
      run: its directory.

    Raises:
      UserError: a file of the run is missing or damaged.
    """
    timings, rows = read_jsonl(run.timings_file), read_jsonl(run.metrics_file)
    seconds = [row["total"] - looks(row) for row in timings]
    before, after = (
        Evaluation.read(run.evaluation_file(label)).as_lists() for label in ("before", "after")
    )
    return {
        **name._asdict(),
        "command": ["train", *arguments],
        "config": config_json(config),
        "inputs": read_json_object(run.inputs_file)["fingerprints"],
        "changes": recorded_changes(run),
        "version": package_version(),
        "machine": read_json(run.lock_file).get("host") if run.lock_file.exists() else None,
        "before": before,
        "after": after,
        "curve": run.validation_curve(),
        "curve_by_problem": [
            [step, Evaluation.read(file).per_problem["avg_at_k"].tolist()]
            for step, file in run.validation_files().items()
        ],
        "critic_exactness": [[r["step"] + 1, r["critic_exact_on_wrong"]] for r in rows],
        "costs": {
            "solver_tokens": int(sum(row["solver_tokens"] for row in rows)),
            "critic_tokens": int(sum(row["critic_tokens"] for row in rows)),
            "train_seconds": sum(seconds),
            "seconds_per_step": float(np.median(seconds)),
            "critic_share": sum(row.get("critique", 0.0) for row in timings) / sum(seconds),
        },
    }


class CellFiles:
    """The cells of one comparison on disk, checked against each other.

    Attributes:
      directory: of the comparison.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._cells: dict[CellName, tuple[Cell, Config]] = {}

    def path(self, name: CellName) -> Path:
        """Where a cell lies, or would."""
        return self.directory / "cells" / name.file

    def read(self, name: CellName, config: Config) -> Cell | None:
        """Returns a cell; None if there is none.

        Args:
          name: which.
          config: of its run, as this comparison would make it.

        Raises:
          UserError: the file holds something else, or a cell of another config or of other
            inputs than the cells that were read before.
        """
        if name in self._cells:
            return self._cells[name][0]
        path = self.path(name)
        if not path.exists():
            return None
        cell = read_json_object(path)
        whole = all(key in cell for key in _KEYS)
        if not whole or any(cell.get(key) != value for key, value in name._asdict().items()):
            raise UserError(f"{path} is not the cell {name}: delete it to make that again.")
        self._check(name, cell, config)
        self._cells[name] = cell, config
        return cell

    def write(self, name: CellName, cell: Cell, config: Config) -> None:
        """Keeps the cell of a run that is finished.

        Raises:
          UserError: as `read`; nothing is written then.
        """
        self._check(name, cell, config)
        write_json(self.path(name), cell)
        self._cells[name] = cell, config

    def forget(self, name: CellName) -> None:
        """Takes a cell out of the comparison; its file is the caller's affair."""
        self._cells.pop(name, None)

    def __getitem__(self, name: CellName) -> Cell:
        return self._cells[name][0]

    def __contains__(self, name: CellName) -> bool:
        return name in self._cells

    def _check(self, name: CellName, cell: Cell, config: Config) -> None:
        free = _PLACES + (("train.num_steps",) if name.variant == EQUAL_WALL_CLOCK else ())
        for key, old, new in config_differences(cell["config"], config_json(config)):
            if key not in free and key.partition(".")[0] not in _PLACED:
                raise UserError(
                    f"{self.path(name)} was made with {key}={old}, and this comparison has "
                    f"{key}={new}: give the command that it was made with, or delete it to "
                    "make it again."
                )
        own = _comparable(name, cell, config)
        for other, (theirs, their_config) in self._cells.items():
            known = _comparable(other, theirs, their_config)
            unlike = [key[0] for key, value in own.items() if known.get(key, value) != value]
            if unlike:
                raise UserError(
                    f"{self.path(name)} was made from other inputs than "
                    f"{self.path(other)}: {', '.join(unlike)}; delete the one that is wrong, "
                    "and give the command again where its inputs are right."
                )


def _comparable(name: CellName, cell: Cell, config: Config) -> dict[tuple[str, str], str]:
    """Returns hashes by (input, what it has to be equal within).

    Gains pair on the test problems, so these are equal in all cells. Other inputs are equal
    where configs do not differ on purpose: the model within one model.path, training problems
    within one section of problems, and a critic or a start adapter within one label.
    """

    def within(what: str) -> str:
        if what.startswith("test "):
            return ""
        if what.startswith(("critic ", "start adapter")):
            return name.label
        return config.model.path if what.startswith("model ") else repr(config.problems)

    return {(what, within(what)): value for what, value in cell["inputs"].items()}


def differing_digits(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns, in words, where two cells of one run have other digits; [] if nowhere."""
    words = []
    for side in ("before", "after"):
        for metric, values in old[side].items():
            ours = np.asarray(values), np.asarray(new[side].get(metric, []))
            if ours[0].shape != ours[1].shape:
                words.append(f"{side} {metric}: other problems")
            elif number := int((ours[0] != ours[1]).sum()):
                means = " and ".join(f"{part.mean():.4f}" for part in ours)
                words.append(
                    f"{side} {metric}: {number} of {len(values)} problems (means {means})"
                )
    if old["curve"] != new["curve"]:
        words.append("validation curve")
    return words
