# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A directory appears whole or not at all, and nothing that was there is lost silently."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import atomic_directory


def fill(target: Path, text: str, overwrite: bool = False) -> None:
    with atomic_directory(target, overwrite=overwrite) as partial:
        assert list(partial.iterdir()) == []
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text(text)


def left_in(parent: Path) -> dict[str, str]:
    files = (path for path in parent.rglob("*") if path.is_file())
    return {str(path.relative_to(parent)): path.read_text() for path in files}


@pytest.mark.parametrize("target", ["new", "below/two/parents"])
def test_the_target_appears_when_the_block_ends(tmp_path, target):
    with atomic_directory(tmp_path / target, overwrite=False) as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / target).exists()
        assert partial.parent == (tmp_path / target).parent
    assert left_in(tmp_path) == {f"{target}/file": "x"}


def test_an_empty_directory_counts_as_absent(tmp_path):
    fill(tmp_path, "x")
    assert left_in(tmp_path) == {"deep/file": "x"}


def test_a_taken_target_is_refused_before_the_block_runs(tmp_path):
    fill(tmp_path / "a", "old")
    with pytest.raises(UserError, match=r"a exists and holds files.*--overwrite"):
        fill(tmp_path / "a", "new")
    (tmp_path / "b").write_text("a file")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="b is a file"):
            fill(tmp_path / "b", "new", overwrite)
    assert left_in(tmp_path) == {"a/deep/file": "old", "b": "a file"}


def test_overwrite_replaces_all_of_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "stale").write_text("old")
    fill(tmp_path / "a", "new", overwrite=True)
    assert left_in(tmp_path) == {"a/deep/file": "new"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_leaves_everything_as_it_was(tmp_path, overwrite):
    if overwrite:
        fill(tmp_path / "a", "old")
    with (
        pytest.raises(ZeroDivisionError),
        atomic_directory(tmp_path / "a", overwrite=overwrite) as partial,
    ):
        (partial / "file").write_text("half")
        _ = 1 / 0
    assert left_in(tmp_path) == ({"a/deep/file": "old"} if overwrite else {})


def test_a_target_that_appears_meanwhile_is_kept(tmp_path):
    with (
        pytest.raises(UserError, match="meanwhile"),
        atomic_directory(tmp_path / "a", overwrite=False) as partial,
    ):
        (partial / "file").write_text("ours")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "file").write_text("theirs")
    assert left_in(tmp_path) == {"a/file": "theirs"}


def test_a_killed_writer_leaves_no_target_and_does_not_stop_the_next(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from stepalign_jax.base.files import atomic_directory\n"
        "with atomic_directory(Path(sys.argv[1]), overwrite=False) as partial:\n"
        "    (partial / 'half').write_text('x'); os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")])
    assert killed.returncode == -9
    assert left_in(tmp_path) == {".a.partial/half": "x"}
    fill(tmp_path / "a", "new")
    assert left_in(tmp_path) == {"a/deep/file": "new"}


def test_a_full_disk_is_told_of_in_one_sentence(tmp_path):
    with (
        pytest.raises(UserError, match=r"no room for .*a \("),
        atomic_directory(tmp_path / "a", overwrite=False),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert left_in(tmp_path) == {}


def test_a_link_stays_a_link(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fill(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert left_in(tmp_path / "real") == {"deep/file": "new"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_cannot_be_written_to_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="choose another target"):
        fill(tmp_path / "a", "x")


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="choose another target"):
        fill(tmp_path / "file" / "a", "x")
