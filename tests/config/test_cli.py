# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.progress import progress
from stepalign_jax.config.cli import parse_arguments

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from stepalign_jax.base.progress import progress
from stepalign_jax.config.cli import run_command
from stepalign_jax.base.errors import UserError

def main(argv):
    if argv == ["user"]:
        raise UserError("the dish is empty; fill it")
    if argv == ["interrupt"]:
        raise KeyboardInterrupt
    if argv == ["bug"]:
        raise ValueError("a bug")
    print("sum", sum(progress([1, 2, 3], description="adding")))

if __name__ == "__main__":
    run_command(main)
"""


def run_script(tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, str(script), *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )


def parse(*argv: str, **keywords):
    return parse_arguments(
        argv, description="Trains.", example="python -m stepalign_jax.train", **keywords
    )


def test_success_exits_0_and_progress_is_quiet_without_a_terminal(tmp_path: Path) -> None:
    result = run_script(tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "sum 6\n", "")


def test_user_error_is_one_line_and_exit_2(tmp_path: Path) -> None:
    result = run_script(tmp_path, "user")
    assert result.returncode == 2
    assert result.stderr == "error: the dish is empty; fill it\n"


def test_interrupt_is_one_line_and_exit_130(tmp_path: Path) -> None:
    result = run_script(tmp_path, "interrupt")
    assert result.returncode == 130
    assert result.stderr == "interrupted before the command was done\n"


def test_bug_keeps_its_traceback(tmp_path: Path) -> None:
    result = run_script(tmp_path, "bug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "ValueError: a bug" in result.stderr


def test_config_options_and_overrides_are_told_apart() -> None:
    arguments = parse(
        "--train.num_steps=5",
        "--config",
        "configs/tiny.py:refsol",
        "--run=runs/a",
        "--prompts.solver=two words",
        options={"--run": {"help": "a run directory"}},
    )
    assert arguments.config == "configs/tiny.py:refsol"
    assert arguments.run == "runs/a"
    assert arguments.overrides == ("--train.num_steps=5", "--prompts.solver=two words")


def test_config_may_be_optional() -> None:
    assert parse(config_required=False).config is None


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ((), "required: --config"),
        (("--config",), "expected one argument"),
        (("--config=a.py", "--train.num_steps", "5"), "--section.key=value"),
        (("--config=a.py", "b.py"), "unexpected argument 'b.py'"),
        # No guessing: an abbreviation is not the option.
        (("--config=a.py", "--conf"), "unknown option --conf"),
    ],
)
def test_malformed_arguments_are_user_errors(argv: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=".*" + sentence):
        parse(*argv)


def test_help_shows_overrides_and_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse("--help")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for part in ("Trains.", "--train.num_steps=30", "python -m stepalign_jax.train"):
        assert part in text


def test_progress_yields_every_item() -> None:
    assert list(progress(iter("abc"), description="letters")) == ["a", "b", "c"]
    with progress(total=2, description="by hand") as bar:
        bar.update(2)
