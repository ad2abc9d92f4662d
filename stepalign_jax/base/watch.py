# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The others are watched: a process that dies or stands still ends them all.

    dead (SIGKILL), or stopped (SIGSTOP)    no beat for `Patience.beat`
    ended by itself                         says so first, under "left"
    beats, but gets nowhere                 ends itself after `Patience.progress`
    the first, which has JAX's service      JAX aborts the others, or they hear nothing of it

All of them end with EXIT_CAN_GO_ON and one sentence, so that a launcher starts them again.
"""

import contextlib
import ctypes
import os
import signal
import threading
import time
from typing import Any, NamedTuple, NoReturn

from stepalign_jax.base.stopping import EXIT_CAN_GO_ON

BEAT_SECS = 1.0
GRACE_SECS = 5.0  # for a process to end by itself, once another one has said that it does
ROOT = "stepalign_jax"  # of our keys in the service's store

_moved = 0.0  # when this process last got anywhere


class Hosts(NamedTuple):
    """How the processes of one command find each other.

    Attributes:
      coordinator: host:port on which the first one listens.
      num_processes: of the command.
      process: number of this one, from 0 on.
    """

    coordinator: str
    num_processes: int
    process: int


class Patience(NamedTuple):
    """How long a process is waited for, in seconds.

    Attributes:
      beat: without a beat; then it counts as dead.
      progress: without a step forward, although it beats.
    """

    beat: float
    progress: float


def moved() -> None:
    """Says that this process got somewhere: a chunk is decoded, a phase is over."""
    global _moved
    _moved = time.monotonic()


class Watch(threading.Thread):
    """Writes this process's beats, and ends it with EXIT_CAN_GO_ON where another one ended.

    One thread talks to the service and another one looks at the clock: should the process that
    has the service stand still, the first waits for it.
    """

    def __init__(self, client: Any, hosts: Hosts, patience: Patience):
        super().__init__(name="beats", daemon=True)
        self._client, self._patience, self._over = client, patience, threading.Event()
        self._index, self._count = hosts.process, hosts.num_processes
        now = time.monotonic()
        self._beats: dict[int, tuple[str, float]] = dict.fromkeys(range(self._count), ("", now))
        self._contact = now
        self.left: dict[int, tuple[str, float]] = {}  # who has said so: words, and when

    def run(self) -> None:
        threading.Thread(target=self._look, name="clock", daemon=True).start()
        number = 0
        while not self._over.wait(BEAT_SECS):
            number += 1
            # Should the service be gone there is no contact, and so no beat, from here on.
            with contextlib.suppress(Exception):
                self._beat(number)

    def stop(self) -> None:
        self._over.set()

    def silent(self, secs: float) -> int | None:
        """The first other process whose last beat is older than `secs`; None if all beat."""
        now = time.monotonic()
        if now - self._contact > secs and self._index:
            return 0  # which has the service
        others = ((p, seen) for p, (_, seen) in self._beats.items() if p != self._index)
        return next((process for process, seen in others if now - seen > secs), None)

    def alone(self, secs: float) -> bool:
        """Whether each of the others has left, or has no beat younger than `secs`."""
        now = time.monotonic()
        others = set(range(self._count)) - {self._index}
        return all(p in self.left or now - self._beats[p][1] > secs for p in others)

    def say_left(self, words: str) -> None:
        """Tells the others that this process ends, and why."""
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{ROOT}/left/{self._index}", words.splitlines()[0])

    def _beat(self, number: int) -> None:
        key = f"{ROOT}/beat/{self._index}"
        self._client.key_value_set(key, str(number), allow_overwrite=True)
        found = self._client.key_value_dir_get(f"{ROOT}/beat/")
        left = self._client.key_value_dir_get(f"{ROOT}/left/")
        self._contact = now = time.monotonic()
        for name, beat in found:
            process = _process(name)
            if self._beats[process][0] != beat:
                self._beats[process] = (beat, now)
        for name, words in left:
            self.left.setdefault(_process(name), (words, now))

    def _look(self) -> None:
        last = time.monotonic()
        while not self._over.wait(BEAT_SECS):
            now = time.monotonic()
            stood_still, last = now - last > self._patience.beat / 2, now
            if stood_still:  # this process did: what it last saw is old for that reason
                continue
            if (process := self.silent(self._patience.beat)) is not None:
                words = f"has not been heard of for {self._patience.beat:.0f} s"
                self._end(process, words)
            for process, (words, since) in list(self.left.items()):
                if process != self._index and now - since > GRACE_SECS:
                    self._end(process, f"has ended: {words}")
            if now - _moved > self._patience.progress:
                words = f"beats, but has got nowhere for {self._patience.progress:.0f} s"
                # In a thread: the service may be what stands still.
                say = threading.Thread(target=self.say_left, args=(words,), daemon=True)
                say.start()
                say.join(2 * BEAT_SECS)
                self._end(self._index, words)

    def _end(self, process: int, words: str) -> NoReturn:
        end_process(f"process {process} of {self._count} {words}")


def _process(key: str) -> int:
    return int(key.rpartition("/")[2])


def end_process(words: str) -> NoReturn:
    """Ends this process from any thread: the main one may wait for a program of the others."""
    line = f"stopped: {words}; the same command in every process goes on\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(EXIT_CAN_GO_ON)


# Kept for the life of the process: C calls it.
_handler: Any = None


def abort_can_go_on(words: str) -> None:
    """Makes SIGABRT exit with EXIT_CAN_GO_ON, and say `words`.

    JAX aborts a process whose coordination service does not answer, from a thread of its own
    and with no way to ask for anything else.
    """
    global _handler

    def aborted(_number: int) -> None:
        end_process(words)

    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(ctypes.c_int(signal.SIGABRT), _handler)


def aborts_can_go_on() -> bool:
    """Whether this process has run together with others."""
    return _handler is not None
