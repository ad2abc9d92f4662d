# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How far a job has come, and what it waits for.

A bar on a terminal, and beside its description what takes longer than a moment; elsewhere a
line a minute, and a line for each such wait.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

HEARTBEAT_SECS = 60.0
# Shorter waits are not worth a word in a bar, or a line where there is none.
BAR_SECS, LINE_SECS = 1.0, 3.0

_bars: list["_Bar"] = []  # open on the terminal, the innermost last
_lock = threading.RLock()  # of `_bars`, and of what waits say


class _Bar(tqdm):
    """A bar that waits can find."""

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, description: str):
        super().__init__(iterable, total=total, desc=description, dynamic_ncols=True)
        self.description = description
        with _lock:
            _bars.append(self)

    def close(self) -> None:
        """Ends the bar; what waits is told elsewhere."""
        with _lock:
            # By identity: to tqdm two bars in one row of the terminal are equal.
            _bars[:] = [bar for bar in _bars if bar is not self]
        super().close()


class Wait:
    """Something that is waited for, which is named should it take long."""

    def __init__(self, what: str):
        """Args: `what` in words, such as "reading weights"."""
        self._what, self._over, self._bar = what, False, None
        self._timer = threading.Timer(BAR_SECS if _bars else LINE_SECS, self._say)
        self._timer.daemon = True
        self._timer.start()

    def over(self) -> None:
        """Ends it, from any thread."""
        self._timer.cancel()
        with _lock:
            self._over = True
            for bar in _bars:
                if bar is self._bar:
                    bar.set_description(bar.description)

    def _say(self) -> None:
        with _lock:
            if self._over or sys.stderr is None:
                return
            if _bars:
                self._bar = _bars[-1]
                self._bar.set_description(f"{self._bar.description} ({self._what})")
            else:
                print(f"{self._what} ...", file=sys.stderr, flush=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Names what the block waits for, should it take long."""
    wait = Wait(what)
    try:
        yield
    finally:
        wait.over()


class Heartbeat:
    """Stands for a progress bar where stderr is no terminal: a line a minute, then and there.

    The lines come from a thread of their own, so that a long compilation is no silence.
    """

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, description: str):
        self._iterable, self._total, self._description = iterable, total, description
        self.n, self._postfix, self._started = 0, "", time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def update(self, count: int = 1) -> None:
        """Counts items that are done."""
        self.n += count

    def set_postfix_str(self, text: str) -> None:
        """Words for the next line."""
        self._postfix = text

    def close(self) -> None:
        """Ends the lines."""
        self._closed.set()

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self._iterable or ():
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECS):
            of = "" if self._total is None else f"/{self._total}"
            minutes = (time.monotonic() - self._started) / 60
            line = f"{self._description}: {self.n}{of} after {minutes:.0f} min"
            if self._total and self.n:
                left = minutes * (self._total - self.n) / self.n
                line += f", about {left:.0f} min left"
            line = f"{line} {self._postfix}"
            print(line.rstrip(), file=sys.stderr, flush=True)


def progress(
    iterable: Iterable[Item] | None = None, *, total: int | None = None, description: str
) -> Any:
    """Returns a progress bar over `iterable`, or one to update by hand towards `total`.

    It has `n`, `update`, `set_postfix_str` and `close`, and is a context manager. Where
    stderr is no terminal it is a `Heartbeat`.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return Heartbeat(iterable, total, description)
    return _Bar(iterable, total, description)


def say(line: str, *, to: TextIO | None = None) -> None:
    """Prints a line at once, above the bars that are open; to stdout if to nothing else."""
    tqdm.write(line, file=to or sys.stdout)
    (to or sys.stdout).flush()


def advance(bar: Any) -> Callable[[int], None]:
    """Returns a callback that moves `bar` to the number of items done so far."""

    def move(done: int) -> None:
        bar.update(done - bar.n)

    return move


@contextmanager
def counting(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """Yields a callback that takes the number of items done so far, and shows it in a bar.

    Without a description it shows nothing.
    """
    if not description:
        yield lambda done: None
        return
    with progress(total=total, description=description) as bar:
        yield advance(bar)
