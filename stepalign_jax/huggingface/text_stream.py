# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Text of a completion whose tokens arrive bit by bit."""

from collections.abc import Sequence
from typing import Any

from stepalign_jax.huggingface.tokenizer import UNFINISHED, decode

_WINDOW, _CONTEXT = 64, 8


class TextStream:
    """Turns tokens into text, and never gives half a character away.

    The pieces put together are the decoded text of all tokens. Each call decodes the last
    tokens only, with a few before them, for a tokenizer may write a token differently at
    the beginning of a text.
    """

    def __init__(self, tokenizer: Any):
        """Args: see `tokenizer.load_tokenizer`."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the window; text before it is out
        self._num_shown = 0  # characters of the window's text that are out

    def push(self, ids: Sequence[int]) -> str:
        """Text that is certain now that `ids` have arrived too; it may be empty."""
        self._ids += ids
        text = decode(self._tokenizer, self._ids).rstrip(UNFINISHED)
        new, self._num_shown = text[self._num_shown :], max(len(text), self._num_shown)
        self._shorten()
        return new

    def finish(self) -> str:
        """What is left when no more tokens come, unfinished characters included."""
        return decode(self._tokenizer, self._ids)[self._num_shown :]

    def _shorten(self) -> None:
        whole = decode(self._tokenizer, self._ids)
        if len(self._ids) > _WINDOW and len(whole) == self._num_shown:
            self._ids = self._ids[-_CONTEXT:]
            self._num_shown = len(decode(self._tokenizer, self._ids))
