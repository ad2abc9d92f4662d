# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The notebooks, from top to bottom."""

import sys
from pathlib import Path

import pytest
from support.kernels import Done, frozen, interpreter, make_kernel, run_notebook

MOST_SECONDS = 300
VERSIONS = ("3.11", "3.12", "3.13")
# What a notebook must have shown, somewhere.
SHOWN = {
    "quickstart": ["Avg@", "<iframe srcdoc="],
    "anatomy": [
        "Expected: ",
        "<th>critique</th>",
        "Advantage of ",
        "% of |A|",
        "time-figure_1",
    ],
    "small_model": ["the packaged miniature", "teacher shown", "Avg@", "<iframe srcdoc="],
    "read_a_run": ["avg_at_k", "<th>looping</th>", "problems", "validation-figure_1"],
}


def check(name: str, done: Done) -> None:
    whole = "\n".join(done.outputs)
    assert [words for words in SHOWN[name] if words not in whole] == []
    print(f"{name}: {done.seconds:.0f} s, {done.cpu_seconds:.0f} s of CPU")


def test_quickstart_reduced_in_this_environments_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPALIGN_PYTHON", sys.executable)
    monkeypatch.setenv("STEPALIGN_REDUCED", "1")
    monkeypatch.setenv("STEPALIGN_RUNS", str(tmp_path / "runs"))
    before = frozen(sys.executable)
    check("quickstart", run_notebook("quickstart", sys.executable, tmp_path, monkeypatch))
    assert frozen(sys.executable) == before


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """By version: the interpreter of a kernel, and a folder; they are made when asked for."""
    made: dict[str, tuple[str, Path]] = {}

    def kernel(version: str) -> tuple[str, Path]:
        if version not in made:
            python = interpreter(version)
            if python is None:
                pytest.skip(f"this machine has no Python {version}")
            folder = tmp_path_factory.mktemp("kernel")
            made[version] = make_kernel(python, folder / "kernel"), folder
        return made[version]

    return kernel


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_notebook_from_top_to_bottom_beside_a_bare_kernel(
    version, name, kernels, monkeypatch
):
    """The first of each version installs the package into an environment of its own."""
    python, folder = kernels(version)
    monkeypatch.delenv("STEPALIGN_PYTHON", raising=False)
    monkeypatch.delenv("STEPALIGN_REDUCED", raising=False)
    monkeypatch.setenv("STEPALIGN_ENVIRONMENT", str(folder / "beside"))
    monkeypatch.setenv("STEPALIGN_RUNS", str(folder / f"runs-{name}"))
    before = frozen(python)
    done = run_notebook(name, python, folder, monkeypatch)
    check(name, done)
    assert frozen(python) == before
    assert (folder / "beside" / "bin" / "python").exists()
    # On a machine that others use the clock says little; then the processors' time, which one
    # core would need, stands for it.
    took = min(done.seconds, done.cpu_seconds)  # a failure must not show all outputs
    assert took <= MOST_SECONDS
