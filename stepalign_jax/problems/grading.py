# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Finding the final answer in a completion, and judging it.

Text decides first: equal strings are equal, and two plain integers compare as numbers.
Whatever else asks for mathematics goes to math-verify, in worker processes that are
killed at a deadline (`grading_pool`, `grading_worker`). This process never imports it.
"""

import functools
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from stepalign_jax.base.errors import UserError
from stepalign_jax.problems.grading_pool import TIMEOUT, WorkerPool

JOBS_PER_WORKER = 500  # then a worker is replaced: SymPy's caches only grow
MAX_WRAPPERS = 4  # of an answer, as in `$\\boxed{$7$}$`
NO_ANSWER = -1  # the class of a completion without an answer
_BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_MATH_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
# By path, not with -m: the worker then needs neither our import path nor our packages.
# -P keeps its own directory off the import path, where `jsonl` would be a top-level name.
_WORKER_COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("grading_worker.py")))


def extract_answer(text: str, pattern: str) -> str | None:
    r"""The final answer that `text` states, or None.

    It is group 1 of the last match of `pattern`, stripped. Where that is missing or
    empty it is the content of the last `\boxed{...}` whose braces balance and which is
    not empty. Matching is linear in the length of the text but for `pattern` itself.

    Raises:
      UserError: `pattern` is not a regular expression with a group.
    """
    answer = None
    for match in _compile(pattern).finditer(text):
        answer = match.group(1)
    return (answer or "").strip() or _last_boxed(text)


@functools.lru_cache
def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"prompts.answer_pattern {pattern!r} is no regex: {error}") from error
    if compiled.groups < 1:
        raise UserError(
            f"prompts.answer_pattern {pattern!r} needs a group (...) around the answer"
        )
    return compiled


def _last_boxed(text: str) -> str | None:
    """Content of the `\\boxed{...}` that opens last among the closed, non-empty ones."""
    boxes = [box for box in _boxes(text) if text[box.start : box.end].strip()]
    last = max(boxes, key=lambda box: box.start, default=None)
    return None if last is None else text[last.start : last.end].strip()


class _Box(NamedTuple):
    opens: int  # of the backslash
    start: int  # of the content
    end: int  # of the content, exclusive


def _boxes(text: str) -> list[_Box]:
    """All `\\boxed{...}` with balanced braces, in one pass; escaped braces do not count."""
    open_braces: list[re.Match[str]] = []
    boxes = []
    for brace in _BRACES.finditer(text):
        token = brace.group()
        if token == "{" or token.startswith("\\boxed"):
            open_braces.append(brace)
        elif token == "}" and open_braces:
            opening = open_braces.pop()
            if opening.group() != "{":
                boxes.append(_Box(opening.start(), opening.end(), brace.start()))
    return boxes


def normalize(answer: str) -> str:
    """`answer` out of its math delimiters and `\\boxed{}`, with single spaces, none outside."""
    answer = " ".join(answer.split())
    for _ in range(MAX_WRAPPERS):
        answer = _peel(answer).strip()
    return answer


def _peel(answer: str) -> str:
    for left, right in _MATH_DELIMITERS:
        inner = answer[len(left) : -len(right)]
        is_wrapped = answer.startswith(left) and answer.endswith(right)
        if is_wrapped and inner and left not in inner and right not in inner:
            return inner
    if answer.startswith("\\boxed") and answer.endswith("}"):
        for box in _boxes(answer):
            if box.opens == 0 and box.end == len(answer) - 1:
                return answer[box.start : box.end]
    return answer


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
