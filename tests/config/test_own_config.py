# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A user's config outside the repository, and configs of this package by name."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import ROOT

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.load import find_config_file, load_config, split_spec

OWN = """\
from dataclasses import replace

from stepalign_jax.config.schema import OracleCritic
from stepalign_jax.configs import tiny


def get_config(variant):
    base = tiny.get_config(variant)
    train = replace(base.train, num_steps=12)
    return replace(base, name="mine", critic=OracleCritic(), train=train)
"""

WITH_A_CLASS = """\
from dataclasses import replace
from typing import Literal

from stepalign_jax.config.schema import CriticConfig
from stepalign_jax.config.sections import Count, section
from stepalign_jax.configs import tiny


@section
class Parrot(CriticConfig):
    kind: Literal["parrot"] = "parrot"
    repeats: Count  # how often it says it


def get_config(variant):
    return replace(tiny.get_config(variant), critic=Parrot(repeats=2))
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "spec", ["tiny", "tiny:hard-refsol", "tiny:natural", "small", "stepalign", "refsol", "grpo"]
)
def test_a_shipped_config_by_name_from_any_directory(elsewhere: Path, spec: str) -> None:
    name, variant = split_spec(spec)
    path = f"{ROOT / 'configs' / name}.py"
    assert load_config(spec) == load_config(f"{path}:{variant}" if variant else path)
    assert not list(elsewhere.iterdir())


def test_a_derived_config_of_ten_lines(elsewhere: Path) -> None:
    assert len(OWN.splitlines()) == 10
    (elsewhere / "mine.py").write_text(OWN)
    base = load_config("tiny:refsol")
    for spec in ("mine.py:refsol", f"{elsewhere}/mine.py:refsol"):
        mine = load_config(spec)
        assert (mine.name, mine.train.num_steps, mine.condition) == ("mine", 12, "refsol")
        assert mine.model == base.model
        assert mine.train == dataclasses.replace(base.train, num_steps=12)


def test_a_home_directory_is_expanded(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    (elsewhere / "mine.py").write_text(OWN)
    assert load_config("~/mine.py").name == "mine"
    with pytest.raises(UserError, match="--config is '~of_nobody/mine"):
        load_config("~of_nobody/mine.py")
    assert load_config("tiny", ["--runs_dir=~/runs"]).runs_dir == f"{elsewhere}/runs"
    assert load_config("tiny", ["--prompts.solver=~/{problem}"]).prompts.solver == "~/{problem}"


def test_a_config_file_writes_whole_paths(elsewhere: Path) -> None:
    (elsewhere / "mine.py").write_text(OWN.replace("name=", 'runs_dir="~/r", name=', 1))
    with pytest.raises(UserError, match="runs_dir is '~/r', but ~ stands for a home"):
        load_config("mine.py")


def test_a_file_of_a_shipped_name_is_meant_by_its_path(elsewhere: Path) -> None:
    (elsewhere / "tiny.py").write_text(OWN)
    assert load_config("tiny").name == "tiny-stepalign"
    assert load_config("tiny.py").name == load_config("./tiny.py").name == "mine"


def test_of_the_classes_of_a_file_that_was_edited_and_run_again_the_last_counts(
    elsewhere: Path,
) -> None:
    for key in ("repeats", "echoes"):
        (elsewhere / "mine.py").write_text(WITH_A_CLASS.replace("repeats", key))
        critic = load_config("mine.py", [f"--critic.{key}=3"]).critic
        assert dataclasses.asdict(critic) == {"kind": "parrot", key: 3}
        with pytest.raises(UserError, match=f"critic.{key} is 0, but it must be at least 1"):
            load_config("mine.py", [f"--critic.{key}=0"])


def test_an_unknown_name_lists_what_ships(elsewhere: Path) -> None:
    with pytest.raises(UserError) as error:
        load_config("tyni")
    assert str(error.value) == (
        "there is no config 'tyni': this package has grpo, refsol, small, stepalign, tiny, and "
        "your own is named by its path, such as ./tyni.py; did you mean 'tiny'?"
    )


@pytest.mark.parametrize(
    ("spec", "name", "variant"),
    [
        ("tiny", "tiny", ""),
        ("tiny:refsol", "tiny", "refsol"),
        ("configs/tiny.py:refsol", "configs/tiny.py", "refsol"),
        ("configs/tiny.py", "configs/tiny.py", ""),
        ("a:b/tiny.py", "a:b/tiny.py", ""),
        ("C:/tiny.py", "C:/tiny.py", ""),
    ],
)
def test_split_spec(spec: str, name: str, variant: str) -> None:
    assert split_spec(spec) == (name, variant)


def test_a_name_finds_the_file_of_the_package() -> None:
    assert find_config_file("tiny").resolve() == ROOT / "configs" / "tiny.py"


def test_a_command_reads_a_config_by_name_from_another_directory(tmp_path: Path) -> None:
    """In a process of its own, which has never seen the repository's directory."""
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "stepalign_jax.pretrain", "--to", "nowhere"),
            *("--config", "tiny:refsol", "--seed=7", "--print_config"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith('name = "tiny-refsol"') and "seed = 7" in finished.stdout
    assert not list(tmp_path.iterdir())
