# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Stop signals: at once, at a safe point, and at once again."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stepalign_jax.base.stopping import EXIT_CAN_GO_ON, Stopped, stop_signals

ROOT = Path(__file__).parents[2]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_a_loop_a_signal_stops_at_once(number):
    with pytest.raises(Stopped, match="before the command was done") as stopped, stop_signals():
        send(number)
    assert stopped.value.exit_code == 128 + number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_waits_for_the_safe_point(number, capsys):
    done = 0
    with pytest.raises(Stopped) as stopped, stop_signals() as stop, stop.deferred():
        for step in range(9):
            if step == 3:
                send(number)
            done += 1
            if stop.requested:
                stop.now(f"{done} steps are saved")
    assert done == 4 and stopped.value.exit_code == EXIT_CAN_GO_ON
    name = signal.Signals(number).name
    assert (
        str(stopped.value) == f"stopped by {name}: 4 steps are saved; the same command goes on"
    )
    assert capsys.readouterr().err.startswith(f"{name}: stops after this step")


def test_a_second_signal_is_not_deferred():
    with pytest.raises(Stopped) as stopped, stop_signals() as stop, stop.deferred():
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert stopped.value.exit_code == 128 + signal.SIGINT


def test_a_signal_is_deferred_where_the_terminal_is_gone(monkeypatch):
    reads, writes = os.pipe()
    os.close(reads)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writes, "w") as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        with stop_signals() as stop, stop.deferred():
            send(signal.SIGHUP)
    assert stop.requested == "SIGHUP"


COMMANDS = [
    "train", "evaluate", "compare", "probe", "pretrain", "generate", "export",
    "report", "planning.sizes",
]  # fmt: skip
SLOW_IMPORT = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


def heed_interrupts() -> None:
    """A process behind `&` of a shell ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_during_the_imports_is_one_line(command, tmp_path):
    (tmp_path / "jax.py").write_text(SLOW_IMPORT)
    ended = subprocess.run(
        [sys.executable, "-P", "-m", f"stepalign_jax.{command}", "--config=tiny"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        preexec_fn=heed_interrupts,
    )
    assert ended.returncode == 130
    assert (ended.stdout, ended.stderr) == ("", "interrupted before the command was done\n")


def test_importing_the_package_handles_no_signal(tmp_path):
    """Also as `-m` of a module that imports it."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("import stepalign_jax.train")
    check = "import signal; assert signal.getsignal(2) is signal.default_int_handler"
    (tmp_path / "other" / "main.py").write_text(check)
    subprocess.run(
        [sys.executable, "-m", "other.main"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        timeout=100,
        check=True,
        preexec_fn=heed_interrupts,
    )


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop.handle
        with stop_signals() as inner, inner.deferred():
            send(signal.SIGHUP)
        assert (stop.requested, inner.requested) == ("", "SIGHUP")
    assert [signal.getsignal(number) for number in SIGNALS] == before
