# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs are kept between commands, and a broken cache never stops one."""

import os
import pwd
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from stepalign_jax.base import compilation
from stepalign_jax.base.compilation import CompilationCounter, use_compilation_cache

ROOT = Path(__file__).parents[2]
COMMAND = """
from stepalign_jax.config.cli import run_command

def main(argv):
    import jax
    events = []
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
    print(float(jax.jit(lambda x: x * 2)(3.0)), "/jax/compilation_cache/cache_hits" in events)

run_command(main)
"""


def run(home: Path, **variables: str) -> tuple[str, str]:
    """Returns what a command printed, on stdout and on stderr."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
    finished = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env={**kept, "JAX_PLATFORMS": "cpu", "HOME": str(home), **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return finished.stdout.strip(), finished.stderr


def test_the_second_command_finds_what_the_first_compiled(tmp_path):
    assert run(tmp_path)[0] == "6.0 False"
    assert run(tmp_path)[0] == "6.0 True"
    assert list((tmp_path / ".cache" / "stepalign_jax" / "xla").iterdir())


@pytest.mark.parametrize(
    ("variable", "where"),
    [("XDG_CACHE_HOME", "mine/stepalign_jax/xla"), ("JAX_COMPILATION_CACHE_DIR", "mine")],
)
def test_the_directory_is_the_users_choice(variable, where, tmp_path):
    run(tmp_path, **{variable: str(tmp_path / "mine")})
    assert list((tmp_path / where).iterdir()) and not (tmp_path / ".cache").exists()


def test_the_cache_can_be_switched_off(tmp_path):
    run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert not (tmp_path / ".cache").exists()


def test_a_directory_that_cannot_be_made_stops_nothing(tmp_path):
    (tmp_path / ".cache").write_text("a file, where a directory should be")
    assert run(tmp_path)[0] == "6.0 False"


def test_without_a_home_directory_nothing_is_kept(monkeypatch):
    """As in a container whose user has no entry in /etc/passwd."""
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    updates: dict[str, object] = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    use_compilation_cache()
    assert "jax_compilation_cache_dir" not in updates
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    use_compilation_cache()
    assert updates["jax_compilation_cache_dir"] == "/caches/stepalign_jax/xla"


def test_a_damaged_entry_is_compiled_again(tmp_path):
    run(tmp_path)
    for entry in (tmp_path / ".cache" / "stepalign_jax" / "xla").iterdir():
        entry.write_bytes(entry.read_bytes()[:20])
    assert run(tmp_path)[0].startswith("6.0")


def test_the_counter_counts_programs_and_not_calls():
    double = jax.jit(lambda x: x * 2)
    with closing(CompilationCounter()) as counter:
        vector = jnp.ones(3)
        counter.take()
        for _ in range(3):
            double(vector)
        taken = counter.take()
        assert taken["compilations"] == 1 and taken["compile_seconds"] > 0
        double(vector)
        assert counter.take() == {"compilations": 0, "compile_seconds": 0}
    double(jnp.ones(4))
    assert counter.take()["compilations"] == 0


@pytest.mark.parametrize(
    ("ends", "seconds"),
    [
        ([10.5, 12.5], 2.5),  # one after another
        ([10.5, 12.0], 2.0),  # one within the other
        ([10.5, 12.25], 2.25),  # partly at once, in two threads
    ],
)
def test_the_seconds_of_the_clock_count_once(ends, seconds, monkeypatch):
    moments = iter([*ends, 20.0])
    with closing(CompilationCounter()) as counter:
        counter.take()
        monkeypatch.setattr(compilation.time, "monotonic", lambda: next(moments))
        for event, own in (("jaxpr_trace", 0.5), ("backend_compile", 2.0)):
            jax.monitoring.record_event_duration_secs(
                f"/jax/core/compile/{event}_duration", own
            )
        jax.monitoring.record_event_duration_secs("/jax/another/event", 9.0)
        assert counter.take() == {"compilations": 1, "compile_seconds": seconds}
