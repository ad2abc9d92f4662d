# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Critiques as data: what was asked of a critic, and what it said.

A store is a file of JSON rows that only grows, `critiques.jsonl` of a run. A directory that
several runs share holds one such file per run. A row is found by its key, which is the hash of
all that could change the answer: problem, rollout, critic, the exact prompt, decoding. It names
its question too, the hash of problem and rollout alone, by which a replay finds it.

    key, question   SHA-256, in hexadecimal
    critic          who was asked: a name, # and the hash of its settings and template
    step, sample, retry   of the rollout; of the first one that asked, if several did
    text            as the critic wrote it, thinking included; of a judged row, without
    outcome         "ok", "truncated", or why there is no answer
    judged          whether the outcome says all there is; else text is checked when it is read
    sees_answer     whether the critic was shown the answer, so that its own is checked
    prompt_tokens, tokens, seconds, cost   what it took
    shared          whether another run asked, and paid

Each row is written in one go. A kill may cut the last one; it is dropped when the store is
opened again.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import jsonl_row, read_jsonl

ANSWERED = ("ok", "truncated")  # what need not be asked again


class StoredCritique(NamedTuple):
    """A row, as the module's head explains its fields."""

    key: str
    question: str
    critic: str
    step: int
    sample: int
    retry: int
    text: str
    outcome: str
    judged: bool
    sees_answer: bool
    prompt_tokens: int
    tokens: int
    seconds: float
    cost: float
    shared: bool


def read_store(path: Path) -> list[StoredCritique]:
    """Returns the rows of a file, or of all files of a directory, in their order.

    Raises:
      UserError: it cannot be read, or holds rows of another kind.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no stores of critiques (*.jsonl): name another place.")
    return [row for file in files for row in _read_file(file)]


def _read_file(path: Path) -> list[StoredCritique]:
    rows = read_jsonl(path)
    try:
        return [StoredCritique(**row) for row in rows]
    except TypeError as error:
        raise UserError(
            f"{path} is no store of critiques of this version ({error}): name another file."
        ) from error


class CritiqueStore:
    """The store of one run, which may share what it asks with others.

    Attributes:
      files: where rows are written; none, and nothing is kept.
    """

    def __init__(self, own: Path | None, shared: Path | None = None, name: str = ""):
        """Reads what there is, and drops a row that a kill cut short.

        Args:
          own: the run's file, or None.
          shared: a directory with the files of several runs, or None.
          name: of the run's file in it, different from all others'.

        Raises:
          UserError: a store cannot be read or written.
        """
        self.files = [own] if own else []
        others = sorted(shared.glob("*.jsonl")) if shared and shared.is_dir() else []
        if shared:
            self.files.append(shared / f"{name}.jsonl")
        for file in self.files:
            _drop_cut_row(file)
        self._answers: dict[str, StoredCritique] = {}
        self._own_keys: set[str] = set()
        for file in others:
            self._take(row._replace(shared=True) for row in _read_file(file))
        if own and own.exists():
            rows = _read_file(own)
            self._own_keys = {row.key for row in rows if row.judged or row.outcome in ANSWERED}
            self._take(rows)

    def find(self, key: str) -> StoredCritique | None:
        """Returns the answer to exactly this question, if anyone has it.

        What another run asked is written down here too, so that this run can be replayed.
        """
        row = self._answers.get(key)
        if row is not None and key not in self._own_keys:
            self._own_keys.add(key)
            self._write(row, self.files[:1])
        return row

    def holds(self, key: str) -> bool:
        """Whether the run's own file has this row."""
        return key in self._own_keys

    def add(self, row: StoredCritique) -> None:
        """Appends a row; it is on its way to disk before this returns.

        Raises:
          UserError: it cannot be written.
        """
        self._take([row])
        self._own_keys.add(row.key)
        self._write(row, self.files)

    def _take(self, rows: Iterable[StoredCritique]) -> None:
        self._answers.update({row.key: row for row in rows if row.outcome in ANSWERED})

    def _write(self, row: StoredCritique, files: Sequence[Path]) -> None:
        line = jsonl_row(row._asdict()).encode("utf-8", errors="replace")
        for file in files:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("ab", buffering=0) as opened:
                    opened.write(line)
            except OSError as error:
                raise UserError(
                    f"cannot write critiques to {file}: {error.strerror}"
                ) from error


def _drop_cut_row(file: Path) -> None:
    try:
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with file.open("r+b") as opened:
                opened.truncate(whole)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read critiques from {file}: {error.strerror}") from error


def totals(rows: Iterable[StoredCritique]) -> dict[str, dict[str, float]]:
    """What each critic was asked and took; what another run paid for does not count."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.shared:
            continue
        zero = {"requests": 0, "failed": 0, "prompt_tokens": 0, "tokens": 0}
        critic = found.setdefault(row.critic, {**zero, "seconds": 0.0, "cost": 0.0})
        critic["requests"] += 1
        critic["failed"] += row.outcome not in ANSWERED
        for name in ("prompt_tokens", "tokens", "seconds", "cost"):
            critic[name] += getattr(row, name)
    return found
