# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Text that no file and no tokenizer takes."""

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def surrogate_at(text: str) -> int | None:
    r"""Returns where `text` holds half a character, which JSON may spell as \ud835; or None."""
    found = _SURROGATE.search(text)
    return None if found is None else found.start()
