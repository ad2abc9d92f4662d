# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs notebooks as a user does, in a kernel that has nothing of the package."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbclient import NotebookClient
from support.runs import ROOT

_KERNEL = "of-a-test"


class Done(NamedTuple):
    """A notebook that ran from top to bottom.

    Attributes:
      outputs: of each code cell, as one text.
      seconds: by the clock.
      cpu_seconds: of the kernel and of all that it started.
    """

    outputs: list[str]
    seconds: float
    cpu_seconds: float


def interpreter(version: str) -> str | None:
    """Returns a Python of this version ("3.12"), on the path or of pyenv; None without one."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    # pyenv puts names on the path that do not run unless their version is selected.
    return next((str(python) for python in found if python and _runs(python)), None)


def _runs(python: str | Path) -> bool:
    checked = subprocess.run([python, "--version"], capture_output=True, check=False)
    return checked.returncode == 0


def make_kernel(python: str, directory: Path) -> str:
    """Makes an environment with a kernel and nothing else; returns its interpreter."""
    subprocess.run([python, "-m", "venv", directory], check=True)
    own = str(directory / "bin" / "python")
    versions = str(ROOT / "constraints.txt")
    what = ["install", "--quiet", "--disable-pip-version-check", "-c", versions, "ipykernel"]
    subprocess.run([own, "-m", "pip", *what], check=True)
    return own


def frozen(python: str) -> str:
    """Returns what `pip freeze` says of an interpreter's environment."""
    argv = [python, "-m", "pip", "--disable-pip-version-check", "freeze", "--all"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def run_notebook(name: str, python: str, scratch: Path, monkeypatch: Any) -> Done:
    """Runs a notebook of the clone; its kernel is that of `python`, its folder the notebooks'.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell fails.
    """
    spec = scratch / "kernels" / _KERNEL / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": name, "language": "python"}))
    for variable in ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(scratch))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    folder = {"metadata": {"path": str(ROOT / "notebooks")}}
    client = NotebookClient(notebook, timeout=900, kernel_name=_KERNEL, resources=folder)
    started, before = time.monotonic(), _cpu_seconds()
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return Done(
        outputs=["\n".join(map(_text, cell.outputs)) for cell in cells],
        seconds=time.monotonic() - started,
        cpu_seconds=_cpu_seconds() - before,
    )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return output.text
    return "\n".join(str(value) for value in output.data.values())
