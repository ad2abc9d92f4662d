# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Killable worker processes with a deadline for each job.

A worker is a fresh interpreter behind two pipes. `multiprocessing` is not used: it would
import the parent's main module again (a training run) or fork a process that runs JAX.
"""

import collections
import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from stepalign_jax.base.errors import UserError

START_SECS = 120.0  # for an interpreter and its imports, on a machine that is busy
STOP_SECS = 1.0  # between SIGTERM and SIGKILL
MAX_ATTEMPTS = 2  # a worker may die by no fault of its job, but a job may also kill it
MAX_FAILED_STARTS = 2  # in a row, for each worker that may be alive

TIMEOUT, CRASH = "timeout", "crash"  # verdicts that the pool itself gives


class _Worker:
    """One child process. `job` is the index of its job, or None while it is idle."""

    def __init__(self, command: Sequence[str]):
        # A session of its own: the terminal's Ctrl-C is for the parent to handle.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._requests, self.replies = self.process.stdin, self.process.stdout
        self._buffer = b""
        self.is_ready = False
        self.job: int | None = None
        self.num_jobs = 0
        self.expires = time.monotonic() + START_SECS

    def send(self, request: Any) -> bool:
        """Writes one request; False if the process is gone."""
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        except OSError:
            return False
        return True

    def receive(self) -> tuple[bool, Any]:
        """(alive, reply), once the pipe is readable; the reply is None until its line is whole.

        One request is out at a time, so no more than one line ever waits.
        """
        chunk = os.read(self.replies.fileno(), 65536)
        self._buffer += chunk
        if not self._buffer.endswith(b"\n"):
            return bool(chunk), None
        line, self._buffer = self._buffer, b""
        return True, json.loads(line)

    def stop(self) -> None:
        """Ends the process and reaps it: SIGTERM, then SIGKILL."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self._requests, self.replies):
            with contextlib.suppress(OSError):  # bytes that the process never read
                pipe.close()


class WorkerPool:
    """Runs jobs on at most `num_workers` processes, which start when jobs need them.

    Attributes:
      num_crashes: worker processes that ended while they had a job.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        num_workers: int,
        deadline_secs: float,
        jobs_per_worker: int,
    ):
        """Starts nothing yet.

        Args:
          command: starts a worker that speaks the protocol of `grading_worker`.
          num_workers: the most processes alive at once.
          deadline_secs: for one job, from the moment a ready worker has it.
          jobs_per_worker: jobs after which a worker is replaced.
        """
        self._command = tuple(command)
        self._num_workers = num_workers
        self._deadline_secs = deadline_secs
        self._jobs_per_worker = jobs_per_worker
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self.num_crashes = 0

    @property
    def process_ids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def run(self, requests: Sequence[Sequence[Any]]) -> list[str]:
        """The verdicts of `requests`, in order; `timeout` or `crash` where none was reached.

        A job whose worker dies is tried once more, on another worker. If anything is
        raised, an interrupt too, all workers are stopped, so no late reply can be taken
        for an answer to a later request.

        A worker that dies as it starts is replaced once.

        Raises:
          UserError: no worker can start.
        """
        batch = _Batch(requests)
        try:
            while batch.num_open:
                self._dispatch(batch)
                for worker in self._wait():
                    self._collect(worker, batch)
                self._expire(batch)
        except BaseException:
            self.close()
            raise
        return batch.verdicts

    def close(self) -> None:
        """Stops all workers; a later `run` starts new ones."""
        while self._workers:
            self._workers.pop().stop()

    def _dispatch(self, batch: "_Batch") -> None:
        """Hands the waiting jobs to idle workers, and starts workers for the others."""
        for worker in [w for w in self._workers if w.is_ready and w.job is None]:
            if not batch.waiting:
                return
            if worker.process.poll() is not None:  # killed while idle: no job's fault
                self._remove(worker)
                continue
            worker.job = batch.waiting.popleft()
            worker.num_jobs += 1
            worker.expires = time.monotonic() + self._deadline_secs
            if not worker.send([*batch.requests[worker.job], self._deadline_secs]):
                self._lose(worker, batch)
        num_starting = sum(not worker.is_ready for worker in self._workers)
        num_free = self._num_workers - len(self._workers)
        for _ in range(min(num_free, len(batch.waiting) - num_starting)):
            self._workers.append(_Worker(self._command))

    def _wait(self) -> list[_Worker]:
        """The workers with something to read, at the latest when the next one expires."""
        engaged = [w for w in self._workers if w.job is not None or not w.is_ready]
        if not engaged:
            return []  # the last worker was just lost; the next dispatch starts another
        with selectors.DefaultSelector() as selector:
            for worker in engaged:
                selector.register(worker.replies, selectors.EVENT_READ, worker)
            next_expiry = min(worker.expires for worker in engaged)
            ready = selector.select(max(0.0, next_expiry - time.monotonic()))
        return [key.data for key, _ in ready]

    def _collect(self, worker: _Worker, batch: "_Batch") -> None:
        alive, reply = worker.receive()
        if not alive:
            self._lose(worker, batch)
        elif reply is None:
            return
        elif worker.job is None:
            if reply["error"] is not None:
                raise UserError(
                    f"no grading worker can start ({reply['error']}): install this package "
                    "again with all that it needs"
                )
            worker.is_ready, self._failed_starts = True, 0
        else:
            batch.settle(worker.job, reply)
            worker.job = None
            if worker.num_jobs >= self._jobs_per_worker:
                self._remove(worker)

    def _expire(self, batch: "_Batch") -> None:
        now = time.monotonic()
        for worker in [w for w in self._workers if w.expires <= now]:
            if not worker.is_ready:
                raise UserError(
                    f"a grading worker did not start within {START_SECS:g} s: the machine is "
                    "too busy; give the same command again"
                )
            if worker.job is not None:
                self._remove(worker)
                batch.settle(worker.job, TIMEOUT)

    def _lose(self, worker: _Worker, batch: "_Batch") -> None:
        """Takes note of a worker that died by itself."""
        self._remove(worker)
        if worker.job is None:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS * self._num_workers:
                raise UserError(
                    f"grading workers end as they start, the last {_ended(worker.process)}: "
                    "free some memory, and give the same command again"
                )
            return
        self.num_crashes += 1
        batch.retry(worker.job)

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.stop()


def _ended(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"with status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


class _Batch:
    """The jobs of one `run`: which wait, how often each was tried, what came out."""

    def __init__(self, requests: Sequence[Sequence[Any]]):
        self.requests = requests
        self.waiting: collections.deque[int] = collections.deque(range(len(requests)))
        self.verdicts = [""] * len(requests)
        self.num_open = len(requests)
        self._num_failures = [0] * len(requests)

    def settle(self, job: int, verdict: str) -> None:
        self.verdicts[job] = verdict
        self.num_open -= 1

    def retry(self, job: int) -> None:
        self._num_failures[job] += 1
        if self._num_failures[job] < MAX_ATTEMPTS:
            self.waiting.appendleft(job)
        else:
            self.settle(job, CRASH)
