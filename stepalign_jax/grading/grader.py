# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Judging final answers.

Text decides first: equal spellings are equal, and plain numbers compare as fractions.
Whatever else asks for mathematics goes to SymPy, in worker processes that are killed at a
deadline (`pool.py`, `worker.py`). This process never imports it. docs/grading.md says
what is equal. A task's own scorer judges what is `Scored`, in other processes (`tasks.py`).
"""

import collections
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from stepalign_jax.base.processes import told_by_first
from stepalign_jax.grading.normalise import normalize
from stepalign_jax.grading.pool import TIMEOUT, WorkerPool
from stepalign_jax.grading.spelling import rational
from stepalign_jax.grading.tasks import ScoredAnswer, TaskScorers
from stepalign_jax.grading.units import word
from stepalign_jax.problems.problem import Expected, Scored

JOBS_PER_WORKER = 500  # then a worker is replaced: SymPy's caches only grow
NO_ANSWER = -1  # the class of a completion without an answer
NUM_NAMED = 3  # unparsable golds that the line on them shows
MAX_TIMEOUTS = 2  # pairs of one text that may run out of time before none is tried
# By path, not with -m: the worker then needs neither our import path nor our packages.
# -P keeps its own directory off the import path, where `pool` would be a top-level name.
_WORKER_COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("worker.py")))


def _verdict_by_text(a: str, b: str) -> bool | None:
    """The verdict that two normalized answers need no mathematics for, else None."""
    if not a or not b:
        return False
    if a == b:
        return True
    first, second = rational(a), rational(b)
    if first is not None and second is not None:
        return first == second
    words = word(a), word(b)
    return None if None in words else words[0] == words[1]


class _Pair(NamedTuple):
    gold: str
    answer: str


class Counts(NamedTuple):
    """What could not be judged; each counts as wrong."""

    unparsable_golds: int  # distinct; only the same text is right by them
    timeouts: int  # texts and pairs that ran past the deadline
    crashes: int  # worker processes that ended over an answer


class Grader:
    """Judges answers. A context manager: leaving it ends its processes.

    Threads may share one; they take turns. Of several processes the first judges for all:
    whether an answer is read within its deadline may differ between them.

    Workers start when an answer first needs one. A text is read alone before it is
    compared: one whose value never comes is known from then on, so k such answers cost k
    deadlines, not one for each pair. Verdicts are remembered, a timeout's too.
    """

    def __init__(
        self,
        *,
        deadline_secs: float,
        num_workers: int,
        jobs_per_worker: int = JOBS_PER_WORKER,
    ):
        """Starts nothing yet.

        Args:
          deadline_secs: for one answer; a worker that overruns it is killed and replaced.
          num_workers: processes that judge side by side.
          jobs_per_worker: answers after which a worker is replaced.
        """
        self._values, self._scorers = (
            WorkerPool(
                (*_WORKER_COMMAND, judge),
                num_workers=num_workers,
                deadline_secs=deadline_secs,
                jobs_per_worker=jobs_per_worker,
            )
            for judge in ("values", "scorers")
        )
        self._tasks = TaskScorers(self._scorers)
        self._turn = threading.Lock()
        self._verdicts: dict[_Pair, bool] = {}
        self._readings: dict[str, str] = {}  # by text: readable, unreadable, timeout, crash
        self._golds: set[str] = set()
        self._timeouts: collections.Counter[str] = collections.Counter()
        self._num_timeouts = 0
        self._taken = Counts(0, 0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes. Verdicts and counts stay."""
        self._values.close()
        self._scorers.close()

    def counts(self) -> Counts:
        """The counts so far."""
        golds = sum(self._readings.get(gold) == "unreadable" for gold in self._golds)
        crashes = self._values.num_crashes + self._scorers.num_crashes
        return Counts(golds, self._num_timeouts + self._tasks.num_timeouts, crashes)

    def take_failures(self) -> dict[str, int]:
        """`grading_timeouts` and `grading_crashes` since this was last asked."""
        before, self._taken = self._taken, self.counts()
        return {
            "grading_timeouts": self._taken.timeouts - before.timeouts,
            "grading_crashes": self._taken.crashes - before.crashes,
        }

    @property
    def process_ids(self) -> list[int]:
        """The living worker processes."""
        return self._values.process_ids + self._scorers.process_ids

    def grade(self, answers: Sequence[str | None], golds: Sequence[Expected]) -> list[bool]:
        """Whether `answers[i]` is right by the expected answer `golds[i]`.

        None and an empty answer are wrong, whatever the gold answer is.

        Raises:
          UserError: a gold answer has a scorer, whose package is not installed.
        """
        return told_by_first(lambda: self._grade(answers, golds))

    def _grade(self, answers: Sequence[str | None], golds: Sequence[Expected]) -> list[bool]:
        self._golds.update(normalize(gold) for gold in golds if isinstance(gold, str))
        asked = list(zip(golds, [answer or "" for answer in answers], strict=True))
        scored = [ScoredAnswer(gold, a) for gold, a in asked if isinstance(gold, Scored)]
        pairs = [_Pair(normalize(g), normalize(a)) for g, a in asked if isinstance(g, str)]
        with self._turn:
            by_task = iter(self._tasks.judge(scored))
        by_value = iter(self._judge(pairs))
        return [next(by_value if isinstance(gold, str) else by_task) for gold in golds]

    def check_scorers(self, golds: Iterable[Expected]) -> None:
        """Tries the first expected answer of each task on the task's own scorer.

        Raises:
          UserError: the scorer cannot be had, or does not find the answer right.
        """
        scored = [gold for gold in golds if isinstance(gold, Scored)]
        with self._turn:
            told_by_first(lambda: self._tasks.check(scored))

    def unparsable(self, golds: Sequence[str]) -> list[str]:
        """Those of the expected answers that cannot be read as a whole, without repeats.

        Only the same text is right by them. One that is not read within the deadline is
        among them.
        """
        return told_by_first(lambda: self._unparsable(golds))

    def _unparsable(self, golds: Sequence[str]) -> list[str]:
        texts = {gold: normalize(gold) for gold in golds}
        with self._turn:
            self._golds.update(texts.values())
            self._read([text for text in texts.values() if _is_formula(text)])
            return [gold for gold, text in texts.items() if not self._is_readable(text)]

    def equivalence_classes(
        self, answers: Sequence[str | None], *, by_text: bool = False
    ) -> list[int]:
        """A class id for each answer of one problem: 0, 1, ... in order of first appearance.

        An answer joins the first class whose first member it is equivalent to (to be
        equivalent is not always transitive). None and empty answers get `NO_ANSWER`. With
        `by_text`, for answers that are no mathematics, only the same text is equivalent.
        """
        if by_text:
            ids = {text: i for i, text in enumerate(dict.fromkeys(filter(None, answers)))}
            return [ids.get(answer or "", NO_ANSWER) for answer in answers]
        return told_by_first(lambda: self._classes(answers))

    def _classes(self, answers: Sequence[str | None]) -> list[int]:
        texts = [normalize(answer or "") for answer in answers]
        classes = dict.fromkeys(texts, NO_ANSWER)
        unclassified = [text for text in classes if text]
        class_id = 0
        while unclassified:
            first = unclassified[0]
            joins = self._judge([_Pair(first, text) for text in unclassified])
            classes.update(
                (text, class_id) for text, join in zip(unclassified, joins, strict=True) if join
            )
            unclassified = [t for t, join in zip(unclassified, joins, strict=True) if not join]
            class_id += 1
        return [classes[text] for text in texts]

    def _judge(self, pairs: list[_Pair]) -> list[bool]:
        """The verdicts on pairs of normalized texts."""
        with self._turn:
            new = [pair for pair in dict.fromkeys(pairs) if pair not in self._verdicts]
            by_text = {pair: _verdict_by_text(*pair) for pair in new}
            self._verdicts.update((p, v) for p, v in by_text.items() if v is not None)
            open_pairs = [pair for pair, verdict in by_text.items() if verdict is None]
            self._read([text for pair in open_pairs for text in pair])
            hopeful = [pair for pair in open_pairs if all(map(self._is_readable, pair))]
            self._verdicts.update(dict.fromkeys(open_pairs, False))
            requests = [("grade", *pair) for pair in hopeful]
            for pair, verdict in zip(hopeful, self._values.run(requests), strict=True):
                self._record(pair, verdict)
            return [self._verdicts[pair] for pair in pairs]

    def _read(self, texts: Sequence[str]) -> None:
        """Learns of texts, each alone, whether they can be read within the deadline."""
        new = [text for text in dict.fromkeys(texts) if text not in self._readings]
        found = self._values.run([("read", text, "") for text in new])
        self._readings.update(zip(new, found, strict=True))
        self._num_timeouts += found.count(TIMEOUT)

    def _is_readable(self, text: str) -> bool:
        reading = self._readings.get(text, "readable")  # text alone decided, so far
        return reading == "readable" and self._timeouts[text] < MAX_TIMEOUTS

    def _record(self, pair: _Pair, verdict: str) -> None:
        self._verdicts[pair] = verdict == "equal"
        if verdict == TIMEOUT:
            self._num_timeouts += 1
            self._timeouts.update(pair)


def _is_formula(text: str) -> bool:
    return bool(text) and rational(text) is None and word(text) is None


def describe_unparsable(found: Sequence[str], num_golds: int) -> str:
    """One line on expected answers that cannot be read; `found` is not empty."""
    named = ", ".join(repr(gold[:60]) for gold in found[:NUM_NAMED])
    more = ", ..." if len(found) > NUM_NAMED else ""
    return (
        f"{len(found)} of {num_golds} expected answers cannot be read as mathematics, so only "
        f"the same text is right by them: {named}{more}"
    )
