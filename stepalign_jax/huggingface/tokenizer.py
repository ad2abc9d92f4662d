# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint's own tokenizer and chat template.

User text is data: a `<|im_start|>` inside it is encoded as the characters it is made of,
so nothing that a problem, a rollout or a critique contains can open or close a role, a
thought or a tool call (see `guarded_encoder`).
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object
from stepalign_jax.huggingface.guarded_encoder import GuardedEncoder

# Stands where the user text goes while the template is rendered.
_SENTINEL = "UserTextGoesHere"
_OPEN_THINKING, _CLOSE_THINKING = "<think>", "</think>"


def load_tokenizer(directory: str | Path) -> Any:
    """The transformers tokenizer of a checkpoint directory; no remote code, no network.

    A directory with `tokenizer.model` alone (SentencePiece) is read too, if its
    tokenizer_config.json names the class: the file itself does not say how to use it.

    Raises:
      UserError: the directory has no tokenizer, none that can be guarded against forged
        markers, or none with a chat template.
    """
    # Imported here, since it takes seconds, and told not to warn of a missing PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    _check_class_is_named(Path(directory))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{directory} holds no tokenizer that can be loaded ({type(error).__name__}): it "
            "needs tokenizer_config.json, and tokenizer.json or tokenizer.model."
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer in {directory} has no tokenizer.json form, without which user text "
            "could forge special tokens: convert it to tokenizer.json."
        )
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer in {directory} has no chat template: add one to it.")
    return tokenizer


def _check_class_is_named(directory: Path) -> None:
    """Refuses a `tokenizer.model` for which transformers would guess the class.

    Raises:
      UserError: tokenizer_config.json names no class for it.
    """
    if (
        not (directory / "tokenizer.model").is_file()
        or (directory / "tokenizer.json").is_file()
    ):
        return
    path = directory / "tokenizer_config.json"
    if not path.is_file() or '"tokenizer_class"' not in path.read_text(encoding="utf-8"):
        raise UserError(
            f"{directory} has tokenizer.model, but {path.name} names no tokenizer_class for it "
            "(LlamaTokenizer, GemmaTokenizer, ...): add it, or convert it to tokenizer.json."
        )


def render_prompt(tokenizer: Any, user_text: str, *, thinking: bool) -> list[int]:
    """Ids of a conversation of one user message, up to the start of the assistant's turn.

    Equal to `apply_chat_template(..., tokenize=True)` where `user_text` contains no marker's
    string. Where it does, only the template's markers become marker tokens:

        <|im_start|> user\\n USER TEXT <|im_end|> \\n <|im_start|> assistant\\n
        marker               plain     marker       marker

    Args:
      tokenizer: what `load_tokenizer` returns.
      user_text: the whole user message; a template that trims messages trims it.
      thinking: the template's `enable_thinking`.

    Raises:
      UserError: the template does not show the user text exactly once.
    """
    before, after = _template_parts(tokenizer, thinking)
    if not before.endswith("\t"):
        user_text = user_text.lstrip()
    if not after.startswith("\t"):
        user_text = user_text.rstrip()
    encoder = _encoder(tokenizer)
    opening = encoder.with_markers(before.removesuffix("\t"))
    closing = encoder.with_markers(after.removeprefix("\t"))
    return encoder.encode(opening + user_text + closing)


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text without a template, none of them a marker."""
    return _encoder(tokenizer).encode(text)


def opens_thinking(tokenizer: Any, *, thinking: bool) -> bool:
    """Whether the prompt ends inside a `<think>`, so that the completion continues a thought.

    Templates of models that always think do that: their completions hold no `<think>`.
    """
    after = _template_parts(tokenizer, thinking)[1]
    return after.rfind(_OPEN_THINKING) > after.rfind(_CLOSE_THINKING)


def _template_parts(tokenizer: Any, thinking: bool) -> tuple[str, str]:
    """What the template puts before and after a user message.

    They end and begin with the message's own tabs, unless the template trims messages. So
    the tabs tell `render_prompt` whether to trim the user text.
    """
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"\t{_SENTINEL}\t"}],
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
    return parts[0], parts[1]


@functools.lru_cache(maxsize=8)
def _encoder(tokenizer: Any) -> GuardedEncoder:
    """Made once per tokenizer: the copy of a large vocabulary takes a second."""
    return GuardedEncoder(tokenizer)


def stop_ids(tokenizer: Any, directory: str | Path) -> tuple[int, ...]:
    """Ids that end a completion: generation_config.json's, else the tokenizer's eos.

    Raises:
      UserError: neither names one.
    """
    path = Path(directory) / "generation_config.json"
    eos = None
    if path.is_file():
        eos = read_json_object(path).get("eos_token_id")
    if eos is None:
        eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            f"neither {path} nor the tokenizer names an end-of-text token: set eos_token_id."
        )
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of completion ids, without special tokens and without clean-up of spaces.

    `<think>` and `</think>` stay, also where the tokenizer counts them among the special
    tokens: without them a thought could not be told from an answer.
    """
    hidden = _hidden_ids(tokenizer)
    shown = [int(i) for i in ids if int(i) not in hidden]
    return tokenizer.decode(
        shown, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


@functools.lru_cache(maxsize=8)
def _hidden_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    thinking = {i for i, token in added if token.content in (_OPEN_THINKING, _CLOSE_THINKING)}
    special = {i for i, token in added if token.special} | set(tokenizer.all_special_ids)
    return frozenset(special - thinking)
