# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs: kept on disk between processes, counted within one, and waited for."""

import os
import threading
import time
from pathlib import Path

import jax

from stepalign_jax.base.progress import Wait

# Tracing, lowering and XLA, one after another; a program from the cache counts as one too.
_EVENTS = "/jax/core/compile/"
_LOWERED_EVENT = _EVENTS + "jaxpr_to_mlir_module_duration"
_LAST_EVENT = _EVENTS + "backend_compile_duration"

# What the functions that take long to compile do, by their names.
_WORDS = {
    "prefill": "the program that reads prompts",
    "decode_chunk": "the decode program",
    "teacher_hidden": "the teacher's forward pass",
    "whole": "the update",
    "accumulate": "the update",
    "finish": "the optimizer",
}


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache directory; call it before any compilation.

    JAX's own variables win: JAX_COMPILATION_CACHE_DIR names another directory, and
    JAX_ENABLE_COMPILATION_CACHE=false switches the cache off. A directory that cannot be
    used costs a warning from JAX and the time to compile, not the run; without a home
    directory nothing is kept.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if not caches.startswith("~"):
            directory = Path(caches) / "stepalign_jax" / "xla"
            jax.config.update("jax_compilation_cache_dir", str(directory))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # The many small programs of a start take as long together as the few large ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class CompilationCounter:
    """Counts the programs that this process compiles, or takes from the cache."""

    def __init__(self) -> None:
        """Counts from now on."""
        self._count, self._lock = 0, threading.Lock()
        self._spans: list[tuple[float, float]] = []  # from, to; disjoint, in their order
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def take(self) -> dict[str, float]:
        """Returns how many there were since the last call, and the seconds they took.

        Seconds of the clock: what threads compile at once, or one trace within another, counts
        once.
        """
        with self._lock:
            seconds = sum(end - start for start, end in self._spans)
            taken = {"compilations": self._count, "compile_seconds": seconds}
            self._count, self._spans = 0, []
        return taken

    def close(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if not event.startswith(_EVENTS):
            return
        end = time.monotonic()
        start = end - duration_secs
        with self._lock:
            self._count += event == _LAST_EVENT
            while self._spans and self._spans[-1][1] > start:
                start = min(start, self._spans.pop()[0])
            self._spans.append((start, end))


class CompilationNotices:
    """Says which program is being compiled, should it take long.

    XLA works on a program between the event that ends its lowering and the last one, in the
    thread that called it.
    """

    def __init__(self) -> None:
        """Watches from now on."""
        self._waits: dict[int, Wait] = {}
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def close(self) -> None:
        """Says nothing any more."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
        for wait in self._waits.values():
            wait.over()

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs
        if event not in (_LOWERED_EVENT, _LAST_EVENT):
            return
        thread = threading.get_ident()
        if (wait := self._waits.pop(thread, None)) is not None:
            wait.over()
        if event == _LOWERED_EVENT:
            name = str(kwargs.get("fun_name", "")).removeprefix("jit(").removesuffix(")")
            self._waits[thread] = Wait(f"compiling {_WORDS.get(name, name)}")
