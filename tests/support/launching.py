# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/ run against stand-ins for the programs that it calls (tests/launch/stand_in)."""

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

LAUNCH = Path(__file__).parents[2] / "launch"
STAND_IN = Path(__file__).parents[1] / "launch" / "stand_in"
WHERE = ("--project", "my-project", "--zone", "my-zone", "--name", "mine")
TYPE = ("--type", "v5litepod-8", "--poll-secs", "0")
TRAINING = ("--", "--config", "tiny")


class Ended(NamedTuple):
    """How a launcher ended: exit status (negative: the signal), its two streams."""

    code: int
    out: str
    err: str


class Place:
    """A directory with launch/ beside a package of nothing, and a cloud of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cloud = path / "cloud"
        self.cloud.mkdir(parents=True)
        repository = path / "repository"
        shutil.copytree(LAUNCH, repository / "launch")
        for name in ("configs", "stepalign_jax"):
            (repository / name).mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
            (repository / name).touch()
        self.results = path / "runs" / "on-mine"

    def begin(self, events: Sequence[str] = (), **state: str) -> None:
        """Sets what the cloud holds, and what happens from here on."""
        lines = [f"{key}={shlex.quote(value)}\n" for key, value in state.items()]
        (self.cloud / "state").write_text("".join(lines))
        self.events(events)

    def events(self, events: Sequence[str]) -> None:
        (self.cloud / "events").write_text("".join(f"{event}\n" for event in events))

    @contextlib.contextmanager
    def another_future(self) -> Iterator["Place"]:
        """Within it nothing more happens to the cloud by chance; after it all is as before."""
        kept = self.path / "kept"
        shutil.copytree(self.cloud, kept)
        self.events([])
        yield self
        shutil.rmtree(self.cloud)
        kept.rename(self.cloud)

    def run(self, program: str | Path, *arguments: str) -> Ended:
        """Runs a program with the stand-ins in front; a path is one of launch/."""
        if isinstance(program, Path):
            program = str(self.path / "repository" / "launch" / program)
        done = subprocess.run(
            [program, *arguments],
            cwd=self.path,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def environment(self) -> Mapping[str, str]:
        path = os.pathsep.join([str(STAND_IN), os.environ["PATH"]])
        scratch = self.path / "scratch"
        scratch.mkdir(exist_ok=True)
        return {
            "PATH": path,
            "HOME": str(self.path),
            "CLOUD": str(self.cloud),
            "TMPDIR": str(scratch),
        }

    def train(self, *options: str) -> Ended:
        return self.run(Path("tpu.sh"), "train", *WHERE, *TYPE, *options, *TRAINING)

    def state(self) -> dict[str, str]:
        words = shlex.split((self.cloud / "state").read_text())
        return dict(word.split("=", 1) for word in words)

    def left(self) -> bool:
        """Whether something exists that is billed or holds quota."""
        state = self.state()
        return (state.get("request", "none"), state.get("vm", "none")) != ("none", "none")

    def lines(self, name: str) -> list[str]:
        file = self.cloud / name
        return file.read_text().splitlines() if file.exists() else []


def printed_commands(err: str) -> list[list[str]]:
    """The commands of a launcher's last words; all that it printed, if it had none."""
    lines = err.splitlines()
    shown = [n for n, line in enumerate(lines) if line.startswith("  gcloud ")]
    last = [n for n in shown if all(m in shown for m in range(n, len(lines)))]
    return [shlex.split(lines[n]) for n in last or shown]
