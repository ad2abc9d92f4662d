# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Finding the final answer in a completion, and judging it.

Text decides first: equal strings are equal, and two plain integers compare as numbers.
Whatever else asks for mathematics goes to math-verify, in worker processes that are
killed at a deadline (`grading_pool`, `grading_worker`). This process never imports it.
"""

import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from stepalign_jax.grading.answers import normalize
from stepalign_jax.grading.pool import TIMEOUT, WorkerPool

JOBS_PER_WORKER = 500  # then a worker is replaced: SymPy's caches only grow
NO_ANSWER = -1  # the class of a completion without an answer
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
# By path, not with -m: the worker then needs neither our import path nor our packages.
# -P keeps its own directory off the import path, where `jsonl` would be a top-level name.
_WORKER_COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("worker.py")))


def _integer(answer: str) -> int | None:
    return int(answer) if _INTEGER.fullmatch(answer) else None


def _verdict_by_text(a: str, b: str) -> bool | None:
    """The verdict that two normalized answers need no mathematics for, else None."""
    if not a or not b:
        return False
    if a == b:
        return True
    first, second = _integer(a), _integer(b)
    return None if first is None or second is None else first == second


class _Pair(NamedTuple):
    kind: str  # grade | equivalent
    gold: str
    answer: str


class Grader:
    """Judges answers. A context manager: leaving it ends its processes.

    Threads may share one; they take turns.

    Workers start when an answer first needs one. Verdicts are remembered by pair, a
    timeout's too, so a pair is counted once however often it is asked for.

    Attributes:
      num_timeouts: pairs that ran past the deadline; they count as wrong.
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
        self._pool = WorkerPool(
            _WORKER_COMMAND,
            num_workers=num_workers,
            deadline_secs=deadline_secs,
            jobs_per_worker=jobs_per_worker,
        )
        self._turn = threading.Lock()
        self._verdicts: dict[_Pair, bool] = {}
        self._unparsable_golds: set[str] = set()
        self.num_timeouts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes. Verdicts and counts stay."""
        self._pool.close()

    @property
    def num_unparsable_golds(self) -> int:
        """Distinct gold answers that math-verify cannot read, of those that reached it.

        Only an equal string is right for them.
        """
        return len(self._unparsable_golds)

    @property
    def num_crashes(self) -> int:
        """Workers that died over an answer; it is tried again once, then it is wrong."""
        return self._pool.num_crashes

    @property
    def process_ids(self) -> list[int]:
        """The living worker processes."""
        return self._pool.process_ids

    def grade(self, answers: Sequence[str | None], golds: Sequence[str]) -> list[bool]:
        """Whether `answers[i]` is right by the expected answer `golds[i]`.

        None and an empty answer are wrong, whatever the gold answer is.
        """
        texts = ["" if answer is None else answer for answer in answers]
        pairs = zip(texts, golds, strict=True)
        return self._judge([_Pair("grade", gold, answer) for answer, gold in pairs])

    def equivalent(self, a: str, b: str) -> bool:
        """Whether either answer would be right by the other."""
        return self._judge([_Pair("equivalent", a, b)])[0]

    def equivalence_classes(self, answers: Sequence[str | None]) -> list[int]:
        """A class id for each answer of one problem: 0, 1, ... in order of first appearance.

        An answer joins the first class whose first member it is equivalent to (to be
        equivalent is not always transitive). None and empty answers get `NO_ANSWER`.
        """
        texts = [normalize(answer or "") for answer in answers]
        classes = dict.fromkeys(texts, NO_ANSWER)
        unclassified = [text for text in classes if text]
        class_id = 0
        while unclassified:
            first = unclassified[0]
            joins = self._judge([_Pair("equivalent", first, text) for text in unclassified])
            classes.update(
                (text, class_id) for text, join in zip(unclassified, joins, strict=True) if join
            )
            unclassified = [t for t, join in zip(unclassified, joins, strict=True) if not join]
            class_id += 1
        return [classes[text] for text in texts]

    def _judge(self, pairs: list[_Pair]) -> list[bool]:
        pairs = [_Pair(kind, normalize(gold), normalize(text)) for kind, gold, text in pairs]
        with self._turn:
            open_pairs = [pair for pair in dict.fromkeys(pairs) if not self._is_settled(pair)]
            for pair, verdict in zip(open_pairs, self._pool.run(open_pairs), strict=True):
                self._record(pair, verdict)
            return [self._verdicts[pair] for pair in pairs]

    def _is_settled(self, pair: _Pair) -> bool:
        """Whether the verdict is known, from before or, as of now, without mathematics."""
        if pair in self._verdicts:
            return True
        verdict = _verdict_by_text(pair.gold, pair.answer)
        if verdict is None and pair.kind == "grade" and pair.gold in self._unparsable_golds:
            verdict = False
        if verdict is None:
            return False
        self._verdicts[pair] = verdict
        return True

    def _record(self, pair: _Pair, verdict: str) -> None:
        self._verdicts[pair] = verdict == "equal"
        self.num_timeouts += verdict == TIMEOUT
        if verdict == "unparsable_gold" and pair.kind == "grade":
            self._unparsable_golds.add(pair.gold)
