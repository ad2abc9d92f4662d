# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Encodes rendered prompts so that only the template, never the user's text, makes markers.

A marker is a token with a meaning beyond its characters: every special token, and every
other added token in brackets, such as Qwen3's `<think>`, `</think>` and `<tool_call>`, which
are added but not special. Cutting the prompt up and encoding its parts one by one would
not do: a SentencePiece tokenizer begins each part anew, with a space, and its vocabulary
holds `<s>` as an ordinary piece too. So the tokenizer is copied, and in the copy every
marker bears a secret name:

    rendered    <|im_start|>   user\\n x<|im_end|>y   <|im_end|>
    encoded     <|c0ffee-7|>   user\\n x<|im_end|>y   <|c0ffee-8|>
                a marker       characters             a marker

The template's markers are renamed before the text is encoded, in one piece, by the copy.
"""

import json
import re
import secrets
from typing import Any

from tokenizers import Tokenizer

_BRACKETED = re.compile(r"<\S+>|\[\S+\]")


class GuardedEncoder:
    """A copy of a tokenizer that knows its markers by secret names alone.

    Ids are those of the tokenizer itself. Text without a marker's string is encoded as the
    tokenizer encodes it.

    Attributes:
      largest_text_id: the largest id that is no marker's, which text may become.
    """

    def __init__(self, tokenizer: Any):
        """Args: `tokenizer` is a transformers tokenizer with a `tokenizers` backend."""
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        ids = {token["content"]: token["id"] for token in spec["added_tokens"] if _marks(token)}
        # Unknown to any author of a text, and without influence on the ids.
        nonce = secrets.token_hex(8)
        self._secret_names = {text: f"<|{nonce}-{i}|>" for text, i in ids.items()}
        longest_first = sorted(ids, key=len, reverse=True)
        words = tokenizer.get_vocab().items()
        self.largest_text_id = max((i for piece, i in words if piece not in ids), default=0)
        self._markers = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._copy: Any = Tokenizer.from_str(json.dumps(_renamed(spec, self._secret_names)))
        for text, i in ids.items():
            if self._copy.token_to_id(self._secret_names[text]) != i:
                raise ValueError(f"the copy of the tokenizer has another id for {text}")

    def with_markers(self, template_text: str) -> str:
        """Returns text whose markers, under their secret names, `encode` will take as such."""
        return self._markers.sub(lambda match: self._secret_names[match[0]], template_text)

    def encode(self, text: str) -> list[int]:
        """Returns ids; a beginning- or end-of-text token only where `text` asks for it."""
        return list(self._copy.encode(text, add_special_tokens=False).ids)


def _marks(token: dict[str, Any]) -> bool:
    return token["special"] or _BRACKETED.fullmatch(token["content"]) is not None


def _renamed(spec: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Returns a tokenizer.json under new names for some tokens, which no merge can make."""
    model = dict(spec["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):  # BPE and its like: {piece: id}
        model["vocab"] = {names.get(piece, piece): i for piece, i in vocab.items()}
    else:  # Unigram: [[piece, score], ...], where a control token may have the best score
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _touches(pair, names)]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = [
        {**token, "content": names.get(token["content"], token["content"])}
        for token in spec["added_tokens"]
    ]
    # A tokenizer.json may carry the limits of its training; a prompt is never cut or filled.
    unlimited = {"truncation": None, "padding": None}
    return {**spec, **unlimited, "model": model, "added_tokens": added}


def _touches(pair: list[str], names: dict[str, str]) -> bool:
    left, right = pair
    return left in names or right in names or left + right in names
