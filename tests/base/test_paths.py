# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.paths import check_path


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("", "--to is empty"),
        (
            "a/" + os.fsdecode(b"caf\xe9"),
            r"--to is 'a/caf\udce9', but it must be text that UTF-8",
        ),
        ("a\0b", r"--to is 'a\x00b', but it must be text that UTF-8 can spell, without a NUL"),
        ("~/a", "--to is '~/a', but ~ stands for a home directory on the command line alone"),
        ("b/" + 128 * "é" + "/a", "a name has at most 255 bytes"),
        ("a/" * 2048, "a path 4095"),
    ],
)
def test_what_can_be_no_path_is_refused(path: str, part: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_path("--to", path)
    assert part in str(refusal.value)


@pytest.mark.parametrize(
    "path", ["a b", "./~", "a/~", "[v2]/*?", "数/" + "x" * 255, "..", "a\nb", "a/" * 2047]
)
def test_what_can_be_a_path_passes(path: str) -> None:
    check_path("--to", path)
