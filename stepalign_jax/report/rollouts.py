# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The rollouts of a run, as columns to search and sort and as blocks to open.

Rollouts of training come from rollouts/step_*.jsonl under one context each; those of an
analysis, under several, from analysis/*/ (`analysis/scored.py`). Each is two records: what was
written, and the numbers of its tokens. Records of a few dozen rollouts make a chunk, and a
chunk two blocks, so that a search reads no numbers.

    block `index`   {"sources": [...], "problems": [...], "columns": {name: [...]}, ...}
    block `t7`      of each rollout: problem, answer, rollout, [context], [failure], reasoning
                    steps, [reasoning steps of the context], first error
    block `n7`      of each: tokens, ends, logprobs, [advantage], [loss], entropy of the solver,
                    [entropy of the teacher]

What stands in brackets has one entry per context. Numbers are in thousandths of a nat, which is
what is shown. Places are in UTF-16 units, which is what JavaScript counts; `ends` are
differences. Where all blocks would be larger than `_ROOM`, every second chunk is left out, then
every second of the rest, and so on: memory is bounded, and what is left is spread over the run.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.report.page import compressed
from stepalign_jax.runs.directory import RunDirectory

_ROOM = 8_000_000  # characters of all blocks together
_CHUNK = 48  # rollouts of a chunk, at most
_CHUNK_CHARACTERS = 200_000  # of JSON; a chunk that has more is closed
_LONGEST_TITLE = 100  # characters of a problem in the list

_COLUMNS = (
    "source",
    "place",
    "step",
    "problem",
    "correct",
    "tokens",
    "cut",
    "failure",
    "mean",
    "low",
)


class Opened(NamedTuple):
    """One rollout, ready to be written.

    Attributes:
      columns: its row of the list, in the order of `_COLUMNS`; problem and failure as text.
      texts: see the module's head.
      numbers: see the module's head.
      largest: |advantage| of its tokens, the largest.
    """

    columns: list[Any]
    texts: list[Any]
    numbers: list[Any]
    largest: float | None


class Packed(NamedTuple):
    """All rollouts of a report.

    Attributes:
      blocks: id -> content.
      number: of rollouts that the list has.
      opened: of those whose texts are in the file.
      faults: sentences on what could not be read.
      examples: a few rows of rollouts/*.jsonl, each with "step", for a reader without a script.
    """

    blocks: dict[str, str]
    number: int
    opened: int
    faults: list[str]
    examples: list[dict[str, Any]]


class _Chunks:
    """Blocks of texts and numbers within `room` characters."""

    def __init__(self, room: int):
        self._room, self._stride, self._next = room, 1, 0
        self._kept: dict[int, tuple[str, str]] = {}
        self._open: tuple[list[Any], list[Any]] = ([], [])
        self._characters = 0

    def add(self, rollout: Opened) -> tuple[int, int]:
        """Returns the chunk of a rollout, and its place in it."""
        texts, numbers = self._open
        place = len(texts)
        texts.append(rollout.texts)
        numbers.append(rollout.numbers)
        self._characters += _length(rollout)
        found = self._next, place
        if place + 1 == _CHUNK or self._characters >= _CHUNK_CHARACTERS:
            self.close()
        return found

    def close(self) -> None:
        """Ends a chunk, which is compressed if it is kept."""
        texts, numbers = self._open
        if texts and self._next % self._stride == 0:
            self._kept[self._next] = (compressed(texts), compressed(numbers))
        self._next += bool(texts)
        self._open, self._characters = ([], []), 0
        while self._taken() > self._room and len(self._kept) > 1:
            self._stride *= 2
            self._kept = {i: b for i, b in self._kept.items() if i % self._stride == 0}

    def _taken(self) -> int:
        return sum(len(text) + len(numbers) for text, numbers in self._kept.values())

    @property
    def kept(self) -> frozenset[int]:
        return frozenset(self._kept)

    def blocks(self) -> Iterator[tuple[str, str]]:
        for index, (texts, numbers) in self._kept.items():
            yield f"t{index}", texts
            yield f"n{index}", numbers


def _length(rollout: Opened) -> int:
    text = sum(len(part) for part in rollout.texts if isinstance(part, str))
    text += sum(map(len, rollout.texts[3]))
    return text + 5 * len(rollout.numbers[0]) * (3 + 3 * len(rollout.numbers[3]))


def pack_rollouts(run: RunDirectory, config: dict[str, Any], room: int = _ROOM) -> Packed:
    """Reads the rollouts of a run and its analyses.

    Args:
      run: its directory; it may be training.
      config: the content of config.json, of this version or an older one.
      room: characters of all blocks together.

    Raises:
      UserError: a file of rollouts is damaged.
    """
    trace = _trace(config)
    chunks, faults = _Chunks(room), []
    sources: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    largest: list[float] = []
    examples = _Examples()

    def take(name: str, contexts: Sequence[str], rollouts: Iterable[Opened]) -> None:
        sources.append({"name": name, "contexts": list(contexts)})
        for rollout in rollouts:
            rows.append([len(sources) - 1, *rollout.columns, *chunks.add(rollout)])
            if rollout.largest is not None:
                largest.append(rollout.largest)

    condition = str(config.get("condition", ""))
    take("training", [condition], _of_training(run, trace, examples))
    for directory in sorted(run.path.glob("analysis/*/rollouts.jsonl")):
        try:
            scored = ScoredRollouts.load(directory.parent)
            take(
                f"analysis {directory.parent.name}",
                scored.contexts,
                list(_of_analysis(scored, trace)),
            )
        except UserError as error:
            faults.append(str(error))
    chunks.close()
    index, opened = _index(sources, rows, chunks.kept, largest)
    blocks = {"index": compressed(index), **dict(chunks.blocks())}
    return Packed(blocks, len(rows), opened, faults, examples.rows())


def _trace(config: dict[str, Any]) -> TraceFormat | None:
    prompts = config.get("prompts", {})
    names = ("reasoning_step_pattern", "answer_pattern")
    known = [prompts[name] for name in names if isinstance(prompts.get(name), str)]
    return TraceFormat(*known) if len(known) == len(names) else None


def _index(
    sources: list[dict[str, Any]],
    rows: list[list[Any]],
    kept: frozenset[int],
    largest: list[float],
) -> tuple[dict[str, Any], int]:
    """The content of the block `index`, and how many rollouts can be opened."""
    names = [*_COLUMNS, "chunk", "at"]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    columns = {name: columns.get(name, []) for name in names}
    columns["chunk"] = [c if c in kept else -1 for c in columns["chunk"]]
    texts: dict[str, list[str]] = {}
    for name in ("problem", "failure"):
        numbers = {text: i for i, text in enumerate(dict.fromkeys(columns[name]))}
        columns[name], texts[name] = [numbers[text] for text in columns[name]], list(numbers)
    opened = sum(chunk >= 0 for chunk in columns["chunk"])
    # One scale of colour for all, that of a rollout among the strongest.
    scale = float(np.quantile(largest, 0.8)) if largest else 1.0
    index = {
        "sources": sources,
        "problems": texts["problem"],
        "failures": texts["failure"],
        "columns": columns,
        "scale": max(scale, 0.1),
    }
    return index, opened


class _Examples:
    """The first wrong rollout of the first step, and a wrong and a right one of the newest."""

    def __init__(self) -> None:
        self._first: dict[str, Any] | None = None
        self._newest: list[dict[str, Any]] = []

    def see(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        usable = [row for row in rows if not row.get("failure") and row.get("context")]
        chosen = [
            {**row, "step": step}
            for right in (False, True)
            for row in [r for r in usable if r.get("correct") is right][:1]
        ]
        if self._first is None and chosen:
            self._first = chosen[0]
        self._newest = chosen

    def rows(self) -> list[dict[str, Any]]:
        first = [] if self._first is None else [self._first]
        return first + [row for row in self._newest if row != self._first]


def _of_training(
    run: RunDirectory, trace: TraceFormat | None, examples: _Examples
) -> Iterator[Opened]:
    for path in sorted(run.path.glob("rollouts/step_*.jsonl")):
        digits = path.stem.removeprefix("step_")
        if not digits.isdecimal():
            continue
        rows = read_jsonl(path)
        examples.see(int(digits), rows)
        for place, row in enumerate(rows):
            yield _of_row(row, int(digits), place, trace)


def _of_row(row: dict[str, Any], step: int, place: int, trace: TraceFormat | None) -> Opened:
    """A row of rollouts/; rows of older versions know less of their tokens."""
    text, context = str(row.get("rollout", "")), str(row.get("context") or "")
    failure, advantage = row.get("failure"), row.get("advantage")
    tokens = row.get("tokens") or []
    strength = np.abs(advantage) if advantage else np.zeros(0)
    columns = [
        place, step, _title(row), int(bool(row.get("correct"))), len(tokens),
        int(row.get("finished") is False), failure or "",
        _thousandths([strength.mean()])[0] if strength.size else None,
        _thousandths([min(advantage)])[0] if advantage else None,
    ]  # fmt: skip
    ends = _differences(text, row.get("ends"))
    return Opened(
        columns,
        [
            str(row.get("problem", "")), str(row.get("answer", "")), text, [context], [failure],
            _steps(text, trace), [_steps(context, trace)], None,
        ],
        [
            tokens, ends, _thousandths(row.get("logprobs")), [_thousandths(advantage)],
            [_thousandths(row.get("loss"))], None, [None],
        ],
        float(strength.max()) if strength.size else None,
    )  # fmt: skip


def _of_analysis(scored: ScoredRollouts, trace: TraceFormat | None) -> Iterator[Opened]:
    advantages = scored.advantage
    for number, row in enumerate(scored.rows):
        at, text = scored.of(number), row["rollout"]
        usable = scored.usable[:, number]
        strength = np.abs(advantages[usable, at])

        def by_context(values: np.ndarray) -> list[Any]:
            return [
                _thousandths(line[at]) if fine else None  # noqa: B023
                for line, fine in zip(values, usable, strict=True)  # noqa: B023
            ]

        failures = [name for name in row["failures"] if name]
        columns = [
            number, row["step"], _title(row), int(scored.correct[number]), at.stop - at.start,
            0, failures[0] if failures else "",
            _thousandths([strength.mean()])[0] if strength.size else None,
            _thousandths([advantages[usable, at].min()])[0] if strength.size else None,
        ]  # fmt: skip
        texts = [
            row["problem"], row["answer"], text, row["contexts"], row["failures"],
            _units(text, [end for pair in row["steps"] for end in pair]),
            [_steps(context, trace) for context in row["contexts"]],
            int(scored.first_error[number]),
        ]  # fmt: skip
        numbers = [
            scored.tokens[at].tolist(), _differences(text, scored.ends[at].tolist()),
            _thousandths(scored.solver_logprobs[at]), by_context(advantages),
            by_context(scored.kl), _thousandths(scored.solver_entropy[at]),
            by_context(scored.teacher_entropy),
        ]  # fmt: skip
        yield Opened(columns, texts, numbers, float(strength.max()) if strength.size else None)


def _title(row: dict[str, Any]) -> str:
    text = " ".join(str(row.get("problem", "")).split())
    return text if len(text) <= _LONGEST_TITLE else f"{text[: _LONGEST_TITLE - 1]}…"


def _thousandths(values: Any) -> Any:
    """Whole thousandths; None of nothing."""
    return (
        None
        if values is None
        else np.rint(1000 * np.asarray(values, float)).astype(int).tolist()
    )


def _steps(text: str, trace: TraceFormat | None) -> list[int]:
    """Starts and ends of the reasoning steps, in turn."""
    if trace is None:
        return []
    return _units(text, [end for step in trace.steps(text) for end in (step.start, step.end)])


def _units(text: str, places: Sequence[int]) -> list[int]:
    """Places in characters as places in UTF-16 units."""
    if text.isascii() or all(character <= "\uffff" for character in text):
        return [int(place) for place in places]
    units = np.cumsum([0, *(1 + (character > "\uffff") for character in text)])
    return units[np.clip(places, 0, len(text))].tolist()


def _differences(text: str, ends: Sequence[int] | None) -> list[int] | None:
    return None if ends is None else np.diff(_units(text, ends), prepend=0).tolist()
