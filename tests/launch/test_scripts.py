# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""All of launch/: clean for shellcheck; sky.yaml's two blocks; README's command at the end."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.launching import LAUNCH, STAND_IN

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
SKY = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
SCRIPTS = [
    *LAUNCH.glob("*.sh"),
    LAUNCH / "slurm.sbatch",
    STAND_IN / "gcloud",
    STAND_IN / "squeue",
]


def shellcheck(*arguments: str, script: str | None = None) -> str:
    program = shutil.which("shellcheck", path=PATH)
    assert program, "shellcheck is missing: the extra `test` brings it (make test installs it)"
    done = subprocess.run(
        [program, *arguments], input=script, capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_clean_for_shellcheck(script):
    assert shellcheck("--external-sources", str(script)) == ""


@pytest.mark.parametrize("block", ["setup", "run"])
def test_the_blocks_of_sky_yaml_are_clean_for_shellcheck(block):
    assert shellcheck("--shell=bash", "--exclude=SC1091", "-", script=SKY[block]) == ""


def test_sky_yaml_needs_a_name_a_config_and_a_bucket_and_resumes_on_75():
    assert [key for key, value in SKY["envs"].items() if value is None] == [
        "NAME", "CONFIG", "BUCKET",
    ]  # fmt: skip
    assert SKY["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert SKY["file_mounts"]["/results"]["source"] == "${BUCKET}"


def test_sky_yamls_run_block_trains_by_readmes_command_and_keeps_results(tmp_path):
    tree, bucket = tmp_path / "tree", tmp_path / "bucket"
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / "launch").mkdir()
    shutil.copy(LAUNCH / "worker.sh", tree / "launch")
    programs = tree / ".venv" / "bin"
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    (programs / "python").write_text(
        '#!/bin/sh\nmkdir -p runs; echo "$*" >runs/called; exit 75\n'
    )
    (programs / "python").chmod(0o755)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "NAME": "mine", "CONFIG": "tiny",
        "ARGUMENTS": "--train.num_steps=30 --seed=1",
    }  # fmt: skip
    block = SKY["run"].replace("/results/", f"{bucket}/")
    done = subprocess.run(["bash", "-c", block], cwd=tree, env=environment, timeout=60)
    assert done.returncode == 75
    called = "-m stepalign_jax.train --config tiny --train.num_steps=30 --seed=1\n"
    assert (tree / "runs" / "called").read_text() == called
    assert (bucket / "mine" / "stepalign-runs.tar").exists()


STAND_IN_FLAGS = re.findall(
    r"^(flags=|  '[a-z-]+ [a-z]+'\) flags\+=)'([a-z -]+)'",
    (STAND_IN / "gcloud").read_text(),
    re.M,
)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="Google's Cloud SDK is not installed")
def test_gcloud_has_the_flags_that_the_stand_in_takes(tmp_path):
    (_, everywhere), *groups = STAND_IN_FLAGS
    assert len(groups) == 4
    for words, flags in groups:
        call = re.findall(r"'(.*)'", words)[0].split()
        page = subprocess.run(
            ["gcloud", "compute", "tpus", *call, "--help"],
            env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        for flag in [*everywhere.split(), *flags.split()]:
            assert f"--{flag}" in page.stdout, (call, flag, page.stderr)


@pytest.mark.parametrize("name", ["worker.sh", "slurm.sbatch", "sky.yaml"])
def test_each_way_ends_in_readmes_command(name):
    assert "python -m stepalign_jax.train" in (LAUNCH / name).read_text()
