# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A bar that is told how many items are done so far, and what long waits say."""

import io
import sys
import time
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from stepalign_jax.base import progress as module
from stepalign_jax.base.compilation import CompilationNotices
from stepalign_jax.base.progress import advance, progress, say, waiting


class Terminal(io.StringIO):
    """Keeps what is written to a screen."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "BAR_SECS", 0.02)
    monkeypatch.setattr(module, "LINE_SECS", 0.02)


def until(found: Any) -> None:
    """Waits until `found()` holds; ten seconds mean that it never will."""
    deadline = time.monotonic() + 10
    while not found():
        assert time.monotonic() < deadline, [bar.desc for bar in module._bars]
        time.sleep(0.005)


def test_a_bar_stands_at_the_number_that_is_done():
    bar: Any = SimpleNamespace(n=0)
    bar.update = lambda more: setattr(bar, "n", bar.n + more)
    move = advance(bar)
    seen = []
    for done in (3, 3, 10):
        move(done)
        seen.append(bar.n)
    assert seen == [3, 3, 10]


def test_a_long_wait_is_a_line_where_there_is_no_bar(impatient, capsys):
    with waiting("reading weights"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "reading weights ...\n"


def test_a_short_wait_says_nothing(capsys):
    with waiting("reading weights"):
        pass
    assert capsys.readouterr().err == ""


def test_a_long_wait_stands_in_the_bar_of_a_terminal_until_it_is_over(impatient, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with progress(total=3, description="training") as bar:
        with waiting("reading weights"):
            until(lambda: bar.desc == "training (reading weights): ")
        assert bar.desc == "training: "
    assert not module._bars


def test_without_a_terminal_there_is_a_line_a_minute(monkeypatch, capsys):
    monkeypatch.setattr(module, "HEARTBEAT_SECS", 0.02)
    with progress(total=4, description="training") as bar:
        bar.update()
        bar.set_postfix_str("loss=1")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert set(lines) == {"training: 1/4 after 0 min, about 0 min left loss=1"}


def test_what_is_said_is_written_at_once_beside_a_bar(monkeypatch, capsys):
    flushed: list[str] = []
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr("sys.stdout", out := Terminal())
    monkeypatch.setattr(out, "flush", lambda: flushed.append(out.getvalue()))
    with progress(total=3, description="training"):
        say("first result")
        assert flushed[-1] == "first result\n"
        say("a warning", to=sys.stderr)
    assert "a warning\n" in sys.stderr.getvalue() and "warning" not in out.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_program_that_is_compiled_is_named_until_it_is_there(impatient, monkeypatch):
    """The events are JAX's own, in its order; `tests/base/test_compilation.py` meets them."""
    monkeypatch.setattr("sys.stderr", Terminal())

    def event(name: str, function: str) -> None:
        jax.monitoring.record_event_duration_secs(
            f"/jax/core/compile/{name}_duration", 0.1, fun_name=function
        )

    with progress(total=3, description="training") as bar, closing(CompilationNotices()):
        event("jaxpr_trace", "decode_chunk")
        event("jaxpr_to_mlir_module", "jit(decode_chunk)")
        until(lambda: bar.desc == "training (compiling the decode program): ")
        event("backend_compile", "jit(decode_chunk)")
        assert bar.desc == "training: "


def test_jax_still_says_which_program_it_compiles(monkeypatch):
    said: list[str] = []
    wait = SimpleNamespace(over=lambda: said.append("over"))
    monkeypatch.setattr(
        "stepalign_jax.base.compilation.Wait", lambda what: (said.append(what), wait)[1]
    )

    def decode_chunk(x):
        return x * 3

    number = jax.numpy.float32(2.0)
    with closing(CompilationNotices()):
        jax.jit(decode_chunk)(number)
    assert said == ["compiling the decode program", "over"]
