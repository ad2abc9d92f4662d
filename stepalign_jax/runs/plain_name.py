# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A directory under a name that Orbax and TensorStore read as a name.

They take "[v2]" for a pattern, a backslash for a slash and "gs:/" for a bucket, and have no
words for bytes that are not UTF-8. Some such checkpoints are saved without their arrays, in
silence.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stepalign_jax.base.errors import UserError

_PLAIN = re.compile(r"[\w ./,+=@-]*")  # letters of any script, but no half characters


@contextlib.contextmanager
def plain_name(directory: Path) -> Iterator[Path]:
    """Yields `directory`, or a link to it where its name could be misread.

    Args:
      directory: absolute; it need not exist.

    Raises:
      UserError: the link cannot be made.
    """
    if _PLAIN.fullmatch(str(directory)):
        yield directory
        return
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="stepalign_jax-"))
            link = Path(place).absolute() / "checkpoints"
            link.symlink_to(directory, target_is_directory=True)
            reason = "" if _PLAIN.fullmatch(str(link)) else f"{place} has such a name too"
        except OSError as error:
            reason = str(error)
        if reason:
            raise UserError(
                f"{directory} has a name that Orbax takes for a pattern, and no link with "
                f"another name can be made for it ({reason}): choose another --runs_dir=..., "
                "or name a directory for links in TMPDIR"
            )
        yield link
