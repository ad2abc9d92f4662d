# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Stop signals: acted on at once, or at the next safe point of a loop.

with stop_signals() as stop:             SIGINT, SIGTERM and SIGHUP raise Stopped
    with stop.deferred():                the first one is remembered instead
        for ...:
            one step of the loop
            if stop.requested: save, then stop.now(...)

Until a command has imported what it needs, `end_on_interrupt` stands in.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
INTERRUPTED = "interrupted before the command was done"
EXIT_CAN_GO_ON = 75  # EX_TEMPFAIL: all is saved, and the same command goes on
_STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """A signal asked the process to stop.

    Attributes:
      exit_code: 128 + the signal's number as shells report it, or EXIT_CAN_GO_ON.
    """

    def __init__(self, words: str, exit_code: int):
        super().__init__(words)
        self.exit_code = exit_code


class Stop:
    """What signals have asked for; made by `stop_signals`.

    Attributes:
      requested: the name of the signal that waits for a safe point, or "".
    """

    def __init__(self) -> None:
        self.requested = ""
        self._defers = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it the first signal waits until the caller looks at `requested`."""
        self._defers = True
        try:
            yield
        finally:
            self._defers = False

    def now(self, saved: str) -> None:
        """Stops at a safe point; `saved` says what is on disk.

        Raises:
          Stopped: always.
        """
        words = f"stopped by {self.requested}: {saved}; the same command goes on"
        raise Stopped(words, EXIT_CAN_GO_ON)

    def handle(self, number: int, _frame: Any) -> None:
        """The signal handler.

        Raises:
          Stopped: nothing defers the signal, or it is the second one.
        """
        name = signal.Signals(number).name
        if not self._defers or self.requested:
            raise Stopped(f"stopped by {name} before the command was done", 128 + number)
        self.requested = name
        words = f"{name}: stops after this step, with a checkpoint; again to stop at once"
        with contextlib.suppress(OSError):  # the terminal may be what is gone
            print(words, file=sys.stderr, flush=True)


def end_on_interrupt() -> None:
    """Makes SIGINT end the process with one line, for the seconds of a command's imports.

    An exception would end in a traceback, or be lost in the code that it interrupts; and
    nothing has been begun that would need one.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _end)


def _end(_number: int, _frame: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Within it stop signals go to the `Stop`; only the main thread can ask for that."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name) for name in _STOP_SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
