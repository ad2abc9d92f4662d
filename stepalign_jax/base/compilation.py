# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs: kept on disk between processes, and counted within one."""

import os
from pathlib import Path

import jax

# Tracing, lowering and XLA, one after another; a program from the cache counts as one too.
_EVENTS = "/jax/core/compile/"
_LAST_EVENT = _EVENTS + "backend_compile_duration"


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
        self._count, self._seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def take(self) -> dict[str, float]:
        """Returns how many there were since the last call, and the seconds they took."""
        taken = {"compilations": self._count, "compile_seconds": self._seconds}
        self._count, self._seconds = 0, 0.0
        return taken

    def close(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith(_EVENTS):
            self._count += event == _LAST_EVENT
            self._seconds += duration_secs
