# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What `pip install` finds for each extra, and what an installed wheel can do.

The slow tests ask the package index, as an installation does. Nothing is installed from it.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

from stepalign_jax.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def output(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        command, cwd=cwd, env={**environment, **variables},
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    output(*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT)
    return next(directory.glob("*.whl"))


def test_without_a_command_the_commands_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stepalign"])
    main()
    assert capsys.readouterr().out.endswith(f"{', '.join(COMMANDS)}\n")
    readme = (ROOT / "README.md").read_text()
    documented = re.findall(r"^\| `python -m stepalign_jax\.(\w+)", readme, re.M)
    assert sorted(documented) == COMMANDS


def test_an_unknown_command_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stepalign", "fly"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no command 'fly'; the commands are analyze, compare,")


def test_a_command_gets_the_arguments_behind_its_name():
    printed = output(sys.executable, "-m", "stepalign_jax", "pretrain", "--help", cwd=ROOT)
    assert printed.startswith("usage: python -m stepalign_jax.pretrain ")


def test_the_table_of_versions_has_the_pinned_ones():
    page = (ROOT / "docs" / "install.md").read_text()
    names = ["jax", "flax", "transformers"]
    row = " | ".join(PINNED[name] for name in names)
    assert f"| 3.11.7 | {row} |" in page
    libtpu = re.findall(r"`libtpu` ([\d.]+)", page)
    assert libtpu[0] == PINNED["libtpu"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pinned", [True, False], ids=["constraints", "newest"])
@pytest.mark.parametrize("extra", ["test", "tpu", "cuda", "slow"])  # each includes no extra
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_pip_finds_versions_that_go_together(
    wheel: Path, tmp_path: Path, python: str, extra: str, pinned: bool
):
    report = tmp_path / "report.json"
    output(
        *PIP, "install", "--quiet", "--dry-run", "--ignore-installed", "--report", report,
        "--python-version", python, "--only-binary=:all:", "--target", tmp_path / "unused",
        *(["--constraint", ROOT / "constraints.txt"] if pinned else []),
        f"{wheel}[{extra}]",
    )  # fmt: skip
    found = versions(json.loads(report.read_text()))
    if pinned:
        assert {name: PINNED[name] for name in found if name in PINNED}.items() <= found.items()
        assert extra == "cuda" or found.keys() - {"stepalign_jax"} <= PINNED.keys()
    # One compiler for a TPU's user and for the tests that compile for TPUs.
    assert ("libtpu" in found) == (extra in ("tpu", "slow"))
    assert any("cuda12" in name for name in found) == (extra == "cuda")


def versions(report: dict[str, Any]) -> dict[str, str]:
    """Name, as constraints.txt spells it, to version."""
    spelled = {canonical(name): name for name in PINNED}
    packages = [item["metadata"] for item in report["install"]]
    return {
        spelled.get(canonical(package["name"]), package["name"]): package["version"]
        for package in packages
    }


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_brings_the_command_the_configs_and_the_model(wheel: Path, tmp_path: Path):
    venv.create(tmp_path / "env", with_pip=True)
    scripts = tmp_path / "env" / "bin"
    python = scripts / "python"
    output(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    # The dependencies are those of the environment that runs the tests.
    site = output(python, "-c", "import site; print(site.getsitepackages()[0])").strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    command = scripts / "stepalign"
    config = output(command, "train", "--config", "tiny:refsol", "--print_config", cwd=tmp_path)
    assert "refsol" in config
    prompt = ("--prompt", "47+3*8-12", "--max-new-tokens", "4")
    answer = output(command, "generate", "--model", "packaged:tiny", *prompt, cwd=tmp_path)
    assert answer.strip()
    file_of_it = "import stepalign_jax.train as command; print(command.__file__)"
    where = output(python, "-c", file_of_it, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
