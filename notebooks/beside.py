# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What the notebooks share: an environment beside the kernel's, commands in it, and pictures.

The kernel imports nothing of stepalign_jax, and needs nothing but Python 3.11 and IPython: what
it shows, it reads from a run's directory. So nothing that is installed for the kernel changes,
and no kernel restarts.

    STEPALIGN_PYTHON        an interpreter that has the package: nothing is installed
    STEPALIGN_ENVIRONMENT   where the environment lies (default: .venv-notebook in the clone)
    STEPALIGN_RUNS          where runs lie (default: runs)
    STEPALIGN_REDUCED       1: the quickstart's run takes seconds, and shows less
"""

import codecs
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from pathlib import Path
from typing import Any

# What makes a run of the miniature take seconds, for a test: the values of the tests' own runs,
# so that they share compiled programs.
_SECONDS = (
    *("--problems.num_train=16", "--problems.num_validation=2", "--problems.num_test=4"),
    *("--problems.min_reasoning_steps=3", "--problems.max_reasoning_steps=3"),
    *("--sampling.max_new_tokens=40", "--sampling.batch_size=4"),
    *("--critic.max_new_tokens=40", "--critic.batch_size=4", "--optimizer.warmup_steps=1"),
    *("--train.num_steps=4", "--train.problems_per_step=2", "--train.samples_per_problem=2"),
    *("--train.checkpoint_every_steps=2", "--train.validate_every_steps=2"),
    *("--train.sample_texts_every_steps=2", "--train.preflight_problems=0"),
    *("--evaluation.max_new_tokens=40", "--evaluation.batch_size=4"),
    *("--evaluation.num_samples=2", "--evaluation.num_validation_samples=2"),
    "--evaluation.num_resamples=50",
)
REDUCED = _SECONDS if os.environ.get("STEPALIGN_REDUCED") == "1" else ()
RUNS = Path(os.environ.get("STEPALIGN_RUNS", "runs"))

# Of the kernel: its plots, its modules and its interpreter are not those of the environment.
_NOT_PASSED_ON = ("MPLBACKEND", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_ROWS, _COLUMNS = 24, 100  # of the terminal that commands see


class Environment:
    """An environment of its own, made from a clone.

    Attributes:
      python: its interpreter.
    """

    def __init__(self, clone: Path):
        self._clone = clone
        place = os.environ.get("STEPALIGN_ENVIRONMENT", clone / ".venv-notebook")
        self._directory = Path(place).absolute()
        self._given = os.environ.get("STEPALIGN_PYTHON")
        self.python = self._given or str(self._directory / "bin" / "python")

    def install(self, *extras: str) -> None:
        """Makes the environment and installs the clone into it, unless that is done.

        Args:
          *extras: of pyproject.toml, such as "gym"; that of an accelerator is found.
        """
        if self._given:
            print(f"uses {self._given}")
            return
        started, wanted = time.monotonic(), sorted({*accelerator_extras(), *extras})
        stamp, state = self._directory / "installed.txt", self._state(wanted)
        if stamp.exists() and stamp.read_text() == state:
            print(f"{self._directory} is installed")
            return
        # pip of the kernel installs into the other environment, which so needs none: Colab's
        # Python cannot make an environment that has one.
        make = [sys.executable, "-m", "venv", "--without-pip", str(self._directory)]
        subprocess.run(make, check=True)
        what = str(self._clone) + (f"[{','.join(wanted)}]" if wanted else "")
        versions = str(self._clone / "constraints.txt")
        self._follow([*self._installer(), "--constraint", versions, "--editable", what])
        stamp.write_text(state)
        seconds = time.monotonic() - started
        print(f"installed {what} into {self._directory} in {seconds:.0f} s")

    def _installer(self) -> list[str]:
        if uv := shutil.which("uv"):
            return [uv, "pip", "install", "--quiet", "--python", self.python]
        return [
            *(sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet"),
            *("--disable-pip-version-check", "--no-warn-script-location"),
        ]

    def _state(self, extras: list[str]) -> str:
        files = [self._clone / name for name in ("pyproject.toml", "constraints.txt")]
        content = b"".join(file.read_bytes() for file in files)
        return " ".join([hashlib.sha256(content).hexdigest(), *extras])

    def run(self, command: str, *arguments: object) -> None:
        """Runs a command of the package; what it prints appears as it comes, bars included.

        Raises:
          RuntimeError: it fails; the sentence has its exit status and its last line.
        """
        argv = [self.python, "-m", f"stepalign_jax.{command}", *map(str, arguments)]
        print("$ python", shlex.join(argv[1:]))
        self._follow(argv)

    def _follow(self, argv: list[str]) -> None:
        """Runs a process in a terminal of its own, so that it draws its bars."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", _ROWS, _COLUMNS, 0, 0))
        variables = {k: v for k, v in os.environ.items() if k not in _NOT_PASSED_ON}
        variables |= {"TERM": "dumb", "TQDM_MININTERVAL": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, env=variables,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(theirs)
        try:
            last = _copy(ours)
            status = process.wait()
        except KeyboardInterrupt:
            # A command ends with a checkpoint, from which the same command goes on.
            process.send_signal(signal.SIGINT)
            _copy(ours)
            process.wait()
            raise
        finally:
            os.close(ours)
        if status:
            raise RuntimeError(f"exit status {status}: {last}")

    def has_accelerator(self) -> bool:
        """Whether JAX finds more than a CPU."""
        code = "import jax; print(jax.default_backend())"
        found = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, check=False,
            env={k: v for k, v in os.environ.items() if k not in _NOT_PASSED_ON},
        )  # fmt: skip
        return found.stdout.strip() not in ("", "cpu")


def _take_terminal() -> None:
    """Makes standard input the process's own terminal, whose hanging up ends it.

    It hangs up when the kernel ends. A kernel that was started with nohup ignores that, and so
    would its children.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.login_tty(0)


def _copy(descriptor: int) -> str:
    """Prints what comes from a terminal until nobody writes to it; returns the last line."""
    decoder, end = codecs.getincrementaldecoder("utf-8")("replace"), ""
    while True:
        try:
            content = os.read(descriptor, 4096)
        except OSError:  # what Linux says at the end
            content = b""
        if not content:
            return end.strip().split("\n")[-1]
        text = decoder.decode(content).replace("\r\n", "\n")
        print(text, end="", flush=True)
        end = (end + text)[-1000:]


def accelerator_extras() -> list[str]:
    """The extra of this machine's accelerator: ["cuda"], ["tpu"], or []."""
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False)
        if listed.returncode == 0 and listed.stdout:
            return ["cuda"]
    return ["tpu"] if "TPU_NAME" in os.environ or Path("/dev/accel0").exists() else []


def is_t4() -> bool:
    """Whether the GPU is a T4, which multiplies float16 fast and bfloat16 not."""
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return "T4" in listed.stdout


def is_reachable(model: str) -> bool:
    """Whether a model of the Hugging Face hub can be downloaded from here."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return False
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    address = f"{base}/{model}/resolve/main/config.json"
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=10):
        return True
    return False


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; one that is being written is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
