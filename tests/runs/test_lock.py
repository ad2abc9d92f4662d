# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One process at a time trains in a run's directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import ROOT

from stepalign_jax.base.errors import UserError
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.lock import lock_run

HOLDS = """
import sys, time
from pathlib import Path
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.lock import lock_run
with lock_run(RunDirectory(Path(sys.argv[1]))):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_has_the_run_until_that_one_dies(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run.path)],
        env=environment, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError) as refusal, lock_run(run):
            pass
        holder.kill()
    sentence = rf"in use by process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\dT\S+: wait"
    assert re.search(sentence, str(refusal.value))
    with lock_run(run):  # nothing has to be cleaned up
        pass


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = RunDirectory(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="cannot make the run directory"), lock_run(run):
        pass
