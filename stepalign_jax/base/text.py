# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Text that no file and no tokenizer takes."""


def surrogate_at(text: str) -> int | None:
    r"""Returns where `text` holds half a character, which JSON may spell as \ud835; or None."""
    try:
        text.encode()  # far faster than looking at each character
    except UnicodeEncodeError as error:
        return error.start
    return None
