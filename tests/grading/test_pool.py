# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Worker processes: killed, starved, endless, and gone with their parent."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.grading import worker as grading_worker
from stepalign_jax.grading.grader import JOBS_PER_WORKER, Grader
from stepalign_jax.grading.pool import CRASH, TIMEOUT, WorkerPool

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = "9^{9^{9^{9}}}"


def is_alive(pid: int) -> bool:
    """False too for a zombie that only the system's first process can reap."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until_gone(pids: list[int], secs: float = 20.0) -> bool:
    limit = time.monotonic() + secs
    while any(is_alive(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    return not any(is_alive(pid) for pid in pids)


def test_endless_answer_is_killed_and_the_others_are_graded():
    answers = ["0.5", ENDLESS, "2/4", "0.25"]
    with Grader(deadline_secs=2.0, num_workers=2) as grader:
        started = time.monotonic()
        assert grader.grade(answers, ["1/2"] * 4) == [True, False, True, False]
        assert time.monotonic() - started < 60.0
        assert grader.counts().timeouts == 1
        assert grader.grade([ENDLESS, "3/6"], ["1/2", "1/2"]) == [False, True]
        assert grader.counts().timeouts == 1  # remembered, so not waited for again
        pids = grader.process_ids
        assert pids
    assert grader.process_ids == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):  # a zombie would still have an entry
            os.kill(pid, 0)


def test_killed_idle_workers_are_replaced():
    with Grader(deadline_secs=30.0, num_workers=1) as grader:
        assert grader.grade(["2^{1/2}"], [r"\sqrt{2}"]) == [True]
        (pid,) = grader.process_ids
        os.kill(pid, signal.SIGKILL)
        assert grader.grade(["3^{1/2}"], [r"\sqrt{3}"]) == [True]
        assert grader.process_ids != [pid]


def test_workers_need_neither_our_main_nor_jax_and_end_with_their_parent(tmp_path):
    script = tmp_path / "run.py"  # without a main guard: a second import would print again
    script.write_text(
        "import os, sys\n"
        "from stepalign_jax.grading.grader import Grader\n"
        "grader = Grader(deadline_secs=30.0, num_workers=1)\n"
        "assert grader.grade(['2^(1/2)'], ['sqrt(2)']) == [True]\n"
        "loaded = {'jax', 'sympy', 'math_verify'} & set(sys.modules)\n"
        "print(loaded or 'nothing', *grader.process_ids, flush=True)\n"
        "os._exit(0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    loaded, *pids = run.stdout.split()
    assert loaded == "nothing"
    assert len(pids) == 1 and wait_until_gone([int(pid) for pid in pids])


def test_worker_file_runs_without_jax():
    code = (
        "import runpy, sys\n"
        f"sys.path.append({str(ROOT)!r})\n"
        f"worker = runpy.run_path({str(grading_worker.__file__)!r}, run_name='worker')\n"
        "assert worker['judge']('grade', '1/2', '0.5') == 'equal'\n"
        "assert 'sympy' in sys.modules\n"
        "assert 'jax' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/"
    )
    assert run.returncode == 0, run.stderr


FAKE_WORKER = """
import json, os, pathlib, signal, sys, time
print(json.dumps({"error": None}), flush=True)
for line in sys.stdin:
    kind, gold, answer, deadline = json.loads(line)
    if kind == "die":
        os._exit(1)
    if kind == "die once" and not pathlib.Path(gold).exists():
        pathlib.Path(gold).touch()
        os._exit(1)
    if kind == "ignore SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    print(json.dumps(str(os.getpid())), flush=True)
"""


@pytest.fixture
def make_pool(tmp_path):
    """Makes a pool of workers that behave as each request asks; a verdict is their pid."""
    script = tmp_path / "fake_worker.py"
    script.write_text(FAKE_WORKER)
    pools = []

    def make(*, num_workers=1, deadline_secs=30.0, jobs_per_worker=JOBS_PER_WORKER):
        pools.append(
            WorkerPool(
                [sys.executable, "-S", str(script)],
                num_workers=num_workers,
                deadline_secs=deadline_secs,
                jobs_per_worker=jobs_per_worker,
            )
        )
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_job_whose_worker_dies_is_tried_once_more(make_pool, tmp_path):
    pool = make_pool()
    verdicts = pool.run([("die once", str(tmp_path / "died"), ""), ("", "", "")])
    assert CRASH not in verdicts
    assert pool.num_crashes == 1


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_killed_as_it_starts_is_replaced_once(num_workers, tmp_path):
    """As the kernel kills where memory is short: each place once, also at a later start."""
    places = [f"{tmp_path}/{n}" for n in range(num_workers)]
    killed = f"""
import os, signal
for place in {places}:
    try:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        continue
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with contextlib.closing(
        WorkerPool(
            [sys.executable, "-S", "-c", killed + FAKE_WORKER],
            num_workers=num_workers,
            deadline_secs=30.0,
            jobs_per_worker=1,
        )
    ) as pool:
        for _ in range(2):
            verdicts = pool.run([("", "", "")] * 3)
            assert CRASH not in verdicts and pool.num_crashes == 0
            for place in places:
                os.unlink(place)


def test_job_that_kills_every_worker_is_given_up(make_pool):
    pool = make_pool(num_workers=2)
    verdicts = pool.run([("", "", ""), ("die", "", ""), ("", "", "")])
    assert [verdict == CRASH for verdict in verdicts] == [False, True, False]
    assert pool.num_crashes == 2


def test_overrun_worker_that_ignores_sigterm_is_killed(make_pool):
    pool = make_pool(deadline_secs=1.0)
    (pid,) = pool.run([("", "", "")])
    assert pool.run([("ignore SIGTERM", "", "")]) == [TIMEOUT]
    assert not is_alive(int(pid))


def test_workers_are_recycled(make_pool):
    pids = make_pool(jobs_per_worker=2).run([("", "", "")] * 5)
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 1]


def test_interrupt_stops_all_workers(make_pool):
    pool = make_pool(deadline_secs=60.0)
    (pid,) = pool.run([("", "", "")])
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            pool.run([("ignore SIGTERM", "", "")])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert pool.process_ids == [] and not is_alive(int(pid))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(3)", "the last with status 3: free some memory"),
        ("import os; os.kill(os.getpid(), 9)", "the last by SIGKILL: free some memory"),
        ("""print('{"error": "no math_verify"}')""", "(no math_verify): install this package"),
    ],
)
def test_workers_that_cannot_start_end_the_command_with_a_sentence(code, reason):
    pool = WorkerPool(
        [sys.executable, "-S", "-c", code],
        num_workers=2,
        deadline_secs=1.0,
        jobs_per_worker=JOBS_PER_WORKER,
    )
    with pytest.raises(UserError, match=re.escape(reason)):
        pool.run([("", "", "")])
    assert pool.process_ids == []
