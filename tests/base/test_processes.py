# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Processes that run one command together: what they tell each other, and how they end."""

import ast
import os
import signal
import time

import pytest
from support.processes import Ended, run, start, wait

from stepalign_jax.base import processes
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.stopping import EXIT_CAN_GO_ON
from stepalign_jax.base.watch import Patience
from stepalign_jax.config.cli import EXIT_USER_ERROR

HEAD = """
import sys, threading, time
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.processes import agreed, is_first, joined, told_by_first
from stepalign_jax.base.watch import Patience
from stepalign_jax.base import processes, watch
from stepalign_jax.config.cli import run_command

watch.GRACE_SECS = processes.GRACE_SECS = 2
processes._DECIDE_SECS = 3

def command(body, beat=60, progress=600):
    def main(_):
        with joined(HOSTS, Patience(beat, progress)):
            body()
    run_command(main)
"""


def together(body: str, *, num_processes: int = 2) -> list[Ended]:
    return run(HEAD + body, num_processes=num_processes)


def sentence(ended: Ended) -> str:
    """The last line on stderr; what JAX or gloo wrote before it is not ours."""
    return ended.err.splitlines()[-1]


def test_alone_nothing_is_asked_of_anyone():
    with processes.joined(None, Patience(1, 1)):
        assert processes.is_first() and processes.is_alone()
        assert processes.told_by_first(lambda: 3) == 3
        assert processes.agreed("SIGTERM") == "SIGTERM"
        with pytest.raises(UserError, match="no"):
            processes.told_by_first(_refuse)


def _refuse() -> None:
    raise UserError("no")


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[07-08],login",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_slurm_says_which_process_this_is(monkeypatch, capsys):
    assert processes.platform_hosts() is None
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    found = processes.platform_hosts()
    assert found is not None and found[1:] == (2, 1)
    assert found.coordinator.startswith("gpu07:")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert processes.platform_hosts() is None
    monkeypatch.setenv("SLURM_NTASKS", "two")
    assert processes.platform_hosts() is None
    assert "slurm does not say which processes there are" in capsys.readouterr().err


def test_the_first_tells_values_of_any_size_from_each_thread():
    found = together("""
def body():
    seen = [told_by_first(lambda: (INDEX, "x" * 3_000_000))[0]]
    def beside():
        seen.append([told_by_first(lambda i=i: INDEX + i) for i in range(20)])
    thread = threading.Thread(target=beside, name="beside")
    thread.start()
    seen.append([told_by_first(lambda i=i: 100 * (INDEX + 1) + i) for i in range(20)])
    thread.join()
    seen.append(agreed("SIGTERM" if INDEX == 2 else ""))
    seen.append(agreed(""))
    open(f"/dev/fd/{1}", "w").write(repr(seen))  # the others' stdout goes nowhere
command(body)
""", num_processes=3)  # fmt: skip
    assert [ended.status for ended in found] == [0, 0, 0], found
    numbers = list(range(20))
    for ended in found:
        first, *lists, word, nothing = ast.literal_eval(ended.out)
        assert first == 0
        assert sorted(lists) == [numbers, [100 + n for n in numbers]]
        assert (word, nothing) == ("SIGTERM", "")


def test_a_refusal_by_the_first_is_one_by_all_and_only_the_first_is_heard():
    found = together("""
def refuse():
    raise UserError("the run is in use")
def body():
    print("hello")
    told_by_first(refuse)
command(body)
""")
    assert [ended.status for ended in found] == [EXIT_USER_ERROR] * 2
    assert [sentence(ended) for ended in found] == ["error: the run is in use"] * 2
    assert [ended.out for ended in found] == ["hello\n", ""]


@pytest.mark.parametrize("dies", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_dies_or_stops_ends_the_other_within_the_bound(dies, number):
    code = HEAD + """
def body():
    agreed("")
    print("ready", file=sys.__stdout__, flush=True)
    time.sleep(600)
command(body, beat=4)
"""  # fmt: skip
    both = start(code, num_processes=2)
    try:
        for process in both:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.kill(both[dies].pid, number)
        began = time.monotonic()
        [ended] = wait([both[1 - dies]], 60)
        seconds = time.monotonic() - began
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert ended.status == EXIT_CAN_GO_ON
    assert sentence(ended).startswith(f"stopped: process {dies} of 2 ")
    assert sentence(ended).endswith("the same command in every process goes on")
    assert seconds < 4 + 8  # the bound, and a busy machine


def test_one_that_ends_by_itself_says_so_first():
    found = together("""
def body():
    agreed("")
    if INDEX == 1:
        raise UserError("no room for checkpoints")
    time.sleep(600)
command(body)
""")
    assert [ended.status for ended in found] == [EXIT_CAN_GO_ON, EXIT_USER_ERROR]
    assert "process 1 of 2 has ended: no room for checkpoints" in sentence(found[0])


def test_a_bug_keeps_its_traceback_and_ends_the_others():
    found = together("""
def body():
    agreed("")
    if INDEX == 0:
        raise ZeroDivisionError("a bug")
    time.sleep(600)
command(body)
""")
    assert [ended.status for ended in found] == [1, EXIT_CAN_GO_ON]
    assert "Traceback" in found[0].err and sentence(found[0]) == "ZeroDivisionError: a bug"
    assert "process 0 of 2 has ended: a bug" in sentence(found[1])


def test_one_that_beats_and_gets_nowhere_ends_itself():
    found = together("""
def body():
    while INDEX == 0:
        time.sleep(0.2)
        from stepalign_jax.base.watch import moved
        moved()
    time.sleep(600)
command(body, progress=3)
""")
    assert [ended.status for ended in found] == [EXIT_CAN_GO_ON] * 2
    assert "process 1 of 2 beats, but has got nowhere for 3 s" in sentence(found[1])


def test_one_that_does_not_come_is_named():
    code = HEAD + "processes.JOIN_SECS = 2\ncommand(lambda: None)\n"
    [ended] = wait(start(code, num_processes=2, only=[1]), 60)
    assert ended.status == EXIT_CAN_GO_ON
    words = "stopped: process 1 of 2 waited 2 s for the others at 127.0.0.1:"
    assert sentence(ended).startswith(words)
