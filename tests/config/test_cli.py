# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.progress import progress
from stepalign_jax.base.stopping import EXIT_CAN_GO_ON, EXIT_INTERRUPTED
from stepalign_jax.config.cli import (
    EXIT_NOBODY_READS,
    EXIT_USER_ERROR,
    parse_arguments,
    read_config,
)
from stepalign_jax.config.comments import comments, summary
from stepalign_jax.config.fields import all_keys, leaves
from stepalign_jax.config.load import load_config
from stepalign_jax.config.schema import Config

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


SECTIONS = ("seed", "train", "critic", "objective")


def parse(*argv: str, sections: Sequence[str] | None = SECTIONS, **keywords):
    return parse_arguments(
        argv,
        description="Trains.",
        example="python -m stepalign_jax.train",
        sections=sections,
        **keywords,
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


def test_readme_lists_the_exit_statuses() -> None:
    table = re.findall(r"^\| (\d[\d, ]*) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    listed = [int(status) for row in table for status in row.split(",")]
    signals = [128 + signal.SIGHUP, EXIT_INTERRUPTED, 128 + signal.SIGTERM]
    assert listed == [0, 1, EXIT_USER_ERROR, EXIT_CAN_GO_ON, *signals, EXIT_NOBODY_READS]


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


def test_a_config_comes_from_a_file_or_from_a_run(tmp_path: Path) -> None:
    run = {"--run": {"help": "a run directory"}}
    both = parse("--config=tiny", "--seed=3", options=run, config="optional")
    assert read_config(both).seed == 3
    values = dataclasses.asdict(load_config("tiny")) | {"problems": {"kind": "elsewhere"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for config in ("optional", "of_run"):
        arguments = parse("--run", str(tmp_path), "--seed=4", options=run, config=config)
        assert read_config(arguments).seed == 4
    with pytest.raises(UserError, match="with --config, or a run with --run"):
        read_config(parse(options=run, config="optional"))
    for argv in (("--config=tiny",), ("--config", "tiny")):
        with pytest.raises(UserError, match=r"--config is not read here: a run has its own"):
            parse(*argv, options=run, config="of_run")


def test_without_sections_there_is_no_config() -> None:
    for argument in ("--config=tiny", "--seed=1", "--print_config"):
        with pytest.raises(UserError, match=f"unrecognized arguments: {argument}"):
            parse(argument, sections=None)
    assert parse("--to=x", sections=None, options={"--to": {}}).to == "x"


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


def test_options_that_are_paths_are_checked_and_expanded(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    options = {"--to": {"metavar": "DIR"}, "--split": {"metavar": "NAME"}}
    for argv in (("--to=~/a", "--split=~/a"), ("--to", "~/a", "--split", "~/a")):
        arguments = parse(*argv, sections=None, options=options)
        assert (arguments.to, arguments.split) == ("/home/me/a", "~/a")
    for value in ("", "~of_nobody/a", "x" * 256, "caf\udce9"):
        with pytest.raises(UserError, match=r"--to is "):
            parse(f"--to={value}", sections=None, options=options)


def help_text(capsys: pytest.CaptureFixture[str], **keywords) -> str:
    with pytest.raises(SystemExit) as exit_info:
        parse("--help", **keywords)
    assert exit_info.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_keys_that_are_read_with_their_comments(capsys) -> None:
    text = help_text(capsys)
    for part in ("Trains.", "python -m stepalign_jax.train", "--config CONFIG[:VARIANT]"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for part in (
        "--seed=INT [0, 4294967296)",
        "train: The loop.",
        "--train.num_steps=INT [1, inf)",
        "--train.validate_every_steps=INT [0, inf); 0 is off",
        "[1, inf); gradient accumulation: parts one step's sequences are cut into",
        "critic: Who rewrites a rollout. One of:",
        "--critic=oracle A program; for problems that check their own reasoning steps.",
        "of jsd: --objective.beta=FLOAT (0, 1); the teacher's share in the mixture",
        "of forward_kl, reverse_kl, jsd: --objective.element_clip=FLOAT [0, inf); largest",
        "--critic.sees=question|answer|reference each shows the ones before it too",
        "critic.placement: Which devices a second model takes. One of:",
        "of own: --critic.placement.num_devices=INT [1, inf)",
    ):
        assert part in words
    listed = set(re.findall(r"--([a-z_.0-9]+)=", text.partition("keys of the config")[2]))
    sections = {key.partition(".")[0] for key in listed}
    assert sections == set(SECTIONS)
    ours = {key for key in all_keys(Config) if key.partition(".")[0] in sections}
    assert {key for key in ours if not key.endswith(".kind")} <= listed


def test_help_may_list_single_keys_of_a_section(capsys) -> None:
    text = help_text(capsys, sections=("prompts.answer_pattern", "parallel"))
    assert "--prompts.answer_pattern=TEXT" in text and "prompts: User messages" in text
    assert "--prompts.solver" not in text and "--parallel.fsdp=INT" in text
    assert "--train" not in text


def test_help_without_a_config_lists_no_key(capsys) -> None:
    text = help_text(capsys, sections=None)
    assert "--config" not in text and "keys of the config" not in text
    assert "python -m stepalign_jax.train" in text


def test_print_config_shows_every_key_and_ends_the_command(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--config=tiny", "--print_config", "--objective=jsd", "--objective.beta=0.25")
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        'model.path = "packaged:tiny"  # a Hugging Face directory, a hub id, or packaged:tiny '
        "(in this package)",
        'objective.kind = "jsd"  # The divergence of both from their mixture.',
        "objective.beta = 0.25  # the teacher's share in the mixture",
        'optimizer.schedule.kind = "cosine"  # It falls along half a cosine.',
        "prompts.solver_thinking = false",
        "objective.token_weights = []  # names from objectives/token_weights.py, multiplied",
    ):
        assert line in lines
    config = load_config("tiny", ["--objective=jsd", "--objective.beta=0.25"])
    shown = {key: json.loads(json.dumps(value)) for key, _, _, value in leaves(config)}
    assert {line.partition(" = ")[0] for line in lines} == set(shown)
    assert len(lines) == len(shown)


def test_print_config_refuses_what_the_command_would(capsys) -> None:
    with pytest.raises(UserError, match="num_steps is 0"):
        parse("--config=tiny", "--print_config", "--train.num_steps=0")
    assert capsys.readouterr().out == ""


@dataclasses.dataclass
class Commented:
    """First line.

    Second.
    """

    bare: int
    beside: int  # beside it
    # above it,
    # in two lines
    above: "dict[str, int]"  # and beside

    # not above anything

    long: dict[
        str,
        int,  # within
    ]
    text: str = "# no comment"


def test_comments_are_those_above_and_beside_a_field() -> None:
    assert comments(Commented) == {
        "bare": "",
        "beside": "beside it",
        "above": "above it, in two lines and beside",
        "long": "within",
        "text": "",
    }
    assert summary(Commented) == "First line."


def test_progress_yields_every_item() -> None:
    assert list(progress(iter("abc"), description="letters")) == ["a", "b", "c"]
    with progress(total=2, description="by hand") as bar:
        bar.update(2)
