# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A mistake ends a command with one sentence that says what, where, and how to mend it."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.runs import ROOT, TINY, refusal, small_config, write_config

from stepalign_jax import compare, evaluate, export, generate, pretrain, probe, train
from stepalign_jax.config.cli import run_command
from stepalign_jax.config.load import load_config

COMMANDS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "compare": compare.main,
    "probe": probe.main,
}
ALL_COMMANDS = {
    **COMMANDS,
    "export": export.main,
    "generate": generate.main,
    "pretrain": pretrain.main,
}


@pytest.fixture
def refuse(monkeypatch, capsys, tmp_path):
    """Returns the sentence on stderr of a command with a small config and overrides."""

    def run(command: str, *argv: str, config: str | None = None, **sections: Any) -> str:
        path = config or write_config(
            tmp_path / "config.py", small_config(tmp_path / "runs", **sections)
        )
        if command == "compare" and "--conditions" not in argv:
            argv = ("--conditions", "grpo,refsol", "--seeds", "1", *argv)
        return refusal(COMMANDS[command], ["--config", path, *argv], monkeypatch, capsys)

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_config_key_names_the_nearest(refuse, command):
    error = refuse(command, "--train.num_step=3")
    assert error == "the config has no key 'train.num_step'; did you mean 'train.num_steps'?"


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_config_file_names_the_nearest(refuse, command):
    error = refuse(command, config=str(ROOT / "configs" / "tyni.py"))
    assert "there is no config file" in error and "did you mean" in error and TINY in error


def test_unknown_condition(refuse):
    assert "the nearest valid name is 'refsol'" in refuse("train", "--condition=refsl")
    assert "no variant 'refsl'; it knows stepalign, refsol" in refuse(
        "train", config=f"{TINY}:refsl"
    )
    error = refuse("compare", "--conditions", "grpo,refsl", "--seeds", "1", config=TINY)
    assert "condition 'refsl' is unknown; the nearest valid name is 'refsol'" in error


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/no/such/directory", "is not a directory, nor a hub id"),
        ("no/such", "run `hf download no/such --local-dir DIRECTORY`"),
        ("packaged:tinny", "choose one of packaged:tiny"),
    ],
)
def test_missing_checkpoint(refuse, command, path, part):
    assert part in refuse(command, f"--model.path={path}")


def test_a_checkpoint_directory_without_a_checkpoint(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json" in refuse("train", f"--model.path={tmp_path / 'empty'}")


def test_a_corrected_command_may_take_the_name_of_the_mistaken_one(refuse):
    refuse("train", "--model.path=/no/such/directory")
    error = refuse("train", "--model.path=/still/no/directory")
    assert "'/still/no/directory' is not a directory" in error


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_problem_over_its_budget(refuse, command):
    error = refuse(command, "--prompts.max_problem_tokens=3")
    assert "tokens, over prompts.max_problem_tokens=3; raise the budget" in error


def test_prompt_that_leaves_no_room_in_the_model(refuse):
    error = refuse("evaluate", "--evaluation.max_new_tokens=600")
    assert "problem 1 of test, " in error and "evaluation.max_new_tokens=600" in error


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_no_problems(refuse, command, tmp_path):
    error = refuse(command, "--problems.num_test=0")
    assert error == "the test set has no problems; give problems.num_test a number above 0."
    jsonl = ("--problems=jsonl", f"--problems.path={tmp_path}")
    assert f"there is no problem file {tmp_path}" in refuse(command, *jsonl)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n")
    assert "is empty; it needs one problem per line" in refuse(command, *jsonl)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_runs_directory_that_cannot_be_written(refuse, command, tmp_path):
    file = tmp_path / "file"
    file.write_text("not a directory")
    config = TINY if command == "compare" else None
    error = refuse(command, f"--runs_dir={file}/runs", config=config)
    assert "Not a directory" in error and "--runs_dir=" in error


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("evaluate", "--run"),
        ("evaluate", "--to"),
        ("evaluate", "--model"),
        ("evaluate", "--adapter"),
        ("probe", "--to"),
        ("export", "--run"),
        ("export", "--to"),
        ("pretrain", "--to"),
        ("generate", "--run"),
        ("generate", "--model"),
        ("generate", "--adapter"),
    ],
)
def test_an_option_that_can_be_no_path(command, option, monkeypatch, capsys):
    error = refusal(ALL_COMMANDS[command], [f"{option}=~of_nobody/a"], monkeypatch, capsys)
    assert error.startswith(f"{option} is '~of_nobody/a', but ~ stands for a home directory")


def test_a_working_directory_that_is_gone(monkeypatch, capsys, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    argv = ["--model", "packaged:tiny", "--prompt", "1"]
    error = refusal(generate.main, argv, monkeypatch, capsys)
    assert error == "the working directory is gone: change to one that exists"


def test_evaluating_a_run_that_is_not_there(refuse, tmp_path):
    error = refuse("evaluate", "--run", str(tmp_path / "missing"))
    assert "holds no finished checkpoint; train first" in error


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--conditions", "grpo"], "required: --seeds"),
        (["--conditions", "grpo", "--seeds", "0"], "--seeds and --workers must be 1 or more"),
        (["--conditions", "grpo", "--seeds", "one"], "invalid int value: 'one'"),
        (["--conditions", "grpo,grpo", "--seeds", "1"], "--conditions names grpo twice"),
        (["--conditions", "grpo", "--seeds", "1", "--name=x"], "--name"),
        (["--conditions", "grpo", "--seeds", "1", "--condition=refsol"], "--condition"),
    ],
)
def test_comparisons_that_make_no_sense(refuse, argv, part):
    assert part in refuse("compare", *argv, config=TINY)


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_help_shows_an_example_that_parses(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as stop:
        run_command(ALL_COMMANDS[command])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    example = shlex.split(printed.rpartition("example:\n")[2])
    assert example[:3] == ["python", "-m", f"stepalign_jax.{command}"]
    if command in ("evaluate", "export", "generate"):
        return  # their config is a run's own, or none
    monkeypatch.chdir(ROOT)
    spec = example[example.index("--config") + 1]
    load_config(spec, [argument for argument in example if "." in argument and "=" in argument])


def test_the_papers_config_says_first_that_its_problems_are_missing(
    refuse, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = refuse("train", config=str(ROOT / "configs" / "stepalign.py"))
    assert "no problem file data/openmath/train.jsonl: make it" in said


def test_the_papers_config_stops_at_once_where_its_weights_are_missing(tmp_path):
    """As a command of its own: no traceback, no waiting for a network."""
    started = time.monotonic()
    for split in ("train", "validation", "test"):
        line = json.dumps({"problem": "1+1", "answer": "2", "reference": "It is 2."})
        (tmp_path / f"{split}.jsonl").write_text(line)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "stepalign_jax.train"),
            *("--config", str(ROOT / "configs" / "stepalign.py"), f"--runs_dir={tmp_path}"),
            f"--problems.path={tmp_path}",
        ],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(
        "error: model.path 'Qwen/Qwen3-1.7B' is not a local directory"
    )
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "hf download Qwen/Qwen3-1.7B" in done.stderr
    assert time.monotonic() - started < 200  # seconds, were the machine ours alone
    assert not list(Path(tmp_path).rglob("*.safetensors"))
