# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint's own tokenizer and chat template.

User text is data: a `<|im_start|>` inside it is encoded as the characters it is made of,
so nothing that a problem, a rollout or a critique contains can open or close a role.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError

# Stands where the user text goes while the template is rendered.
_SENTINEL = "UserTextGoesHere"


def load_tokenizer(directory: str | Path) -> Any:
    """The transformers tokenizer of a checkpoint directory; no remote code, no network.

    Raises:
      UserError: the directory has no tokenizer, or none with a chat template.
    """
    # Here, so that --help need not wait for it; and it must not remark on a missing PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{directory} holds no tokenizer that can be loaded ({type(error).__name__}): it "
            "needs tokenizer.json and tokenizer_config.json."
        ) from error
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer in {directory} has no chat template: add one to it.")
    return tokenizer


def render_prompt(tokenizer: Any, user_text: str, *, thinking: bool) -> list[int]:
    """Ids of a conversation of one user message, up to where the assistant speaks.

    Equal to `apply_chat_template(..., tokenize=True)` wherever `user_text` contains no
    special-token string. Only the template's part is parsed for special tokens:

        <|im_start|> | user\\n USER TEXT | <|im_end|> | \\n <|im_start|> assistant\\n
        special      | plain            | special    | parsed as the template says

    Args:
      tokenizer: what `load_tokenizer` returns.
      user_text: the whole user message.
      thinking: the template's `enable_thinking`.

    Raises:
      UserError: the template does not show the user text exactly once.
    """
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": _SENTINEL}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    parts = rendered.split(_SENTINEL)
    if len(parts) != 2:
        raise UserError(
            f"the chat template shows a user message {len(parts) - 1} times: use a template "
            "that shows it once, unchanged."
        )
    # Text between the nearest special tokens is encoded in one piece: a merge may span the
    # border between the template's words and the user's.
    before, opening = _split_after_last_special(tokenizer, parts[0])
    closing, after = _split_at_first_special(tokenizer, parts[1])
    plain = opening + user_text + closing
    return [
        *_encode(tokenizer, before, parse_special=True),
        *_encode(tokenizer, plain, parse_special=False),
        *_encode(tokenizer, after, parse_special=True),
    ]


def _split_after_last_special(tokenizer: Any, text: str) -> tuple[str, str]:
    ends = [match.end() for match in _specials(tokenizer).finditer(text)]
    cut = ends[-1] if ends else 0
    return text[:cut], text[cut:]


def _split_at_first_special(tokenizer: Any, text: str) -> tuple[str, str]:
    match = _specials(tokenizer).search(text)
    cut = match.start() if match else len(text)
    return text[:cut], text[cut:]


def _specials(tokenizer: Any) -> re.Pattern[str]:
    """Matches every special-token string, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    names = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
    return re.compile(
        "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    )


def _encode(tokenizer: Any, text: str, *, parse_special: bool) -> list[int]:
    if not text:
        return []
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=not parse_special)
    return list(encoded["input_ids"])


def stop_ids(tokenizer: Any, directory: str | Path) -> tuple[int, ...]:
    """Ids that end a completion: generation_config.json's, else the tokenizer's eos.

    Raises:
      UserError: neither names one.
    """
    path = Path(directory) / "generation_config.json"
    eos = None
    if path.is_file():
        eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    if eos is None:
        eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            f"neither {path} nor the tokenizer names an end-of-text token: set eos_token_id."
        )
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of completion ids, without special tokens and without clean-up of spaces."""
    return tokenizer.decode(
        [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
