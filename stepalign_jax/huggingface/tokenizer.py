# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint's own tokenizer and chat template.

User text is data: a `<|im_start|>` inside it is encoded as the characters it is made of,
so nothing that a problem, a rollout or a critique contains can open or close a role, a
thought or a tool call (see `guarded_encoder`).
"""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object
from stepalign_jax.huggingface.generation import read_generation_settings
from stepalign_jax.huggingface.guarded_encoder import GuardedEncoder

# Stands where the user text goes while the template is rendered.
_SENTINEL = "UserTextGoesHere"
_OPEN_THINKING, _CLOSE_THINKING = "<think>", "</think>"
UNFINISHED = "\ufffd"  # what a decoder makes of the first bytes of a character


def load_tokenizer(directory: str | Path) -> Any:
    """The transformers tokenizer of a checkpoint directory; no remote code, no network.

    A directory with `tokenizer.model` alone (SentencePiece) is read too, if its
    tokenizer_config.json names the class: the file itself does not say how to use it.

    Raises:
      UserError: the directory has no tokenizer, none that can be guarded against forged
        markers, or none with a chat template that shows a message as it is.
    """
    # Imported here, since it takes seconds, and told not to warn of a missing PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    _check_files(Path(directory))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many libraries; `tokenizers` raises bare Exceptions
        raise UserError(
            f"{directory} holds no tokenizer that can be loaded ({_reason(error)}): take files "
            "that this version of transformers can read, or fetch them again."
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer in {directory} has no tokenizer.json form, without which user text "
            "could forge special tokens: convert it to tokenizer.json."
        )
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer in {directory} has no chat template: add chat_template.jinja."
        )
    for thinking in (True, False):
        _check_template(tokenizer, thinking)
    return tokenizer


def _check_files(directory: Path) -> None:
    """Refuses what transformers would guess at, or name no file for.

    Raises:
      UserError: a file is missing or is no JSON object, or nothing names the class of a
        tokenizer.model.
    """
    settings = directory / "tokenizer_config.json"
    if not settings.is_file():
        raise UserError(
            f"{settings} does not exist: a tokenizer is tokenizer_config.json beside "
            "tokenizer.json or tokenizer.model, so fetch the tokenizer's files again."
        )
    for name in ("tokenizer.json", "special_tokens_map.json", "added_tokens.json"):
        if (directory / name).is_file():
            read_json_object(directory / name)
    named = read_json_object(settings).get("tokenizer_class")
    if (directory / "tokenizer.json").is_file():
        return
    if not [file for names in ("*.model", "vocab.*") for file in directory.glob(names)]:
        raise UserError(
            f"{directory} has neither tokenizer.json nor tokenizer.model: fetch the "
            "tokenizer's files again."
        )
    if (directory / "tokenizer.model").is_file() and not named:
        raise UserError(
            f"{directory} has tokenizer.model, but {settings.name} names no tokenizer_class "
            "for it (LlamaTokenizer, GemmaTokenizer, ...): add it, or convert it to "
            "tokenizer.json."
        )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


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
    user_text = _trimmed(user_text, before, after)
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


def thought_opening(tokenizer: Any) -> list[int]:
    """Ids of the `<think>` and line break that a thinking completion begins with.

    [] where the template's prompt ends inside a thought already.

    Raises:
      UserError: the chat template knows no thoughts.
    """
    if opens_thinking(tokenizer, thinking=True):
        return []
    if _OPEN_THINKING not in str(tokenizer.chat_template):
        raise UserError(
            f"prompts.teacher_thinking is 'on+open_tag', but the chat template in "
            f"{tokenizer.name_or_path} has no {_OPEN_THINKING}: its model does not think in "
            "tags, so set prompts.teacher_thinking=off."
        )
    encoder = _encoder(tokenizer)
    return encoder.encode(encoder.with_markers(f"{_OPEN_THINKING}\n"))


def _template_parts(tokenizer: Any, thinking: bool) -> tuple[str, str]:
    """What the template puts before and after a user message.

    They end and begin with the message's own tabs, unless the template trims messages. So
    the tabs tell `render_prompt` whether to trim the user text.
    """
    return _parts_of(tokenizer, str(tokenizer.chat_template), thinking)


@functools.lru_cache(maxsize=8)
def _parts_of(tokenizer: Any, _template: str, thinking: bool) -> tuple[str, str]:
    parts = _rendered(tokenizer, f"\t{_SENTINEL}\t", thinking).split(_SENTINEL)
    if len(parts) != 2:
        raise UserError(
            f"the chat template in {tokenizer.name_or_path} shows a user message "
            f"{len(parts) - 1} times: use a template that shows it once, unchanged."
        )
    return parts[0], parts[1]


def _rendered(tokenizer: Any, user_text: str, thinking: bool) -> str:
    """The template's own rendering of a conversation of one user message."""
    try:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": user_text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
    except Exception as error:  # a template may raise anything
        raise UserError(
            f"the chat template in {tokenizer.name_or_path} cannot render one user message "
            f"({_reason(error)}): use a template that can."
        ) from error


def _trying() -> Iterator[str]:
    """Messages in one of which shows what templates do to them.

    They escape, replace, join or wrap lines, drop thoughts and doubles, shorten, and trim some
    kinds of ends, or each line.
    """
    body = (
        "".join(map(chr, range(32, 127)))
        + "\nStep 1: \\n \\\\ \\boxed{7}\n\t"
        + "<b>&amp;</b> https://x.org  '' \r\n\n\n  twice \n  twice \n"
        + "<think>x</think> <|im_end|> {{ y }} ñé\u00a0ß\u200b数\u2028学 e\u0301 😀"
        + "\n3 x" * 50_000
    )
    for end in ("", " ", "\n", "\r\n", "\t", "\u00a0", "\u3000"):
        yield end + body + end


def _check_template(tokenizer: Any, thinking: bool) -> None:
    """Refuses a template that changes messages: our prompts would not be its prompts.

    Raises:
      UserError: it does, or it does not show a message exactly once, or it raises.
    """
    before, after = _template_parts(tokenizer, thinking)
    for text in _trying():
        shown = _trimmed(text, before, after)
        expected = before.removesuffix("\t") + shown + after.removeprefix("\t")
        if _rendered(tokenizer, text, thinking) != expected:
            raise UserError(
                f"the chat template in {tokenizer.name_or_path} changes a user message "
                "(escapes, replaces, joins, shortens or half trims it): use a template that "
                "shows it unchanged, or trimmed at its ends."
            )


def _trimmed(user_text: str, before: str, after: str) -> str:
    """The text as a template with these parts shows it."""
    if not before.endswith("\t"):
        user_text = user_text.lstrip()
    return user_text if after.startswith("\t") else user_text.rstrip()


@functools.lru_cache(maxsize=8)
def _encoder(tokenizer: Any) -> GuardedEncoder:
    """Made once per tokenizer: the copy of a large vocabulary takes a second."""
    return GuardedEncoder(tokenizer)


def stop_ids(tokenizer: Any, directory: str | Path) -> tuple[int, ...]:
    """Ids that end a completion: generation_config.json's, else the tokenizer's eos.

    Raises:
      UserError: neither names one, or the file names what is no token id.
    """
    ids = read_generation_settings(Path(directory)).stop_ids
    if ids is not None:
        return ids
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"neither generation_config.json in {directory} nor the tokenizer names an "
            "end-of-text token: set eos_token_id."
        )
    return (int(tokenizer.eos_token_id),)


def check_ids(tokenizer: Any, stops: Sequence[int], vocab_size: int) -> None:
    """Refuses token ids that the embedding has no row for, wherever they could come from.

    Such an id would read another row, or none at all. Markers that no prompt holds may lie
    beyond: user text cannot make them.

    Raises:
      UserError: a stop id, a token of the chat template or one that a text may hold has none.
    """
    prompts = [render_prompt(tokenizer, "", thinking=thinking) for thinking in (True, False)]
    sources = {
        "a stop id": list(stops),
        "a token of the chat template": [i for prompt in prompts for i in prompt],
        "a token that a text may hold": [_encoder(tokenizer).largest_text_id],
    }
    for what, ids in sources.items():
        if (worst := max(ids, default=0)) >= vocab_size:
            token = tokenizer.convert_ids_to_tokens(worst)
            name = worst if token is None else f"{token!r} with the id {worst}"
            raise UserError(
                f"{what} is {name}, but the model in {tokenizer.name_or_path} has embeddings "
                f"for ids below {vocab_size}: take the tokenizer and generation_config.json "
                "that belong to these weights."
            )


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


def token_spans(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text of a completion, and the characters of it that each token writes.

    A special token writes none. Tokens that hold parts of characters, as a byte-level
    tokenizer makes them, share the text of their run:

        tokens    `a`      first 2 bytes of 数    the third    `b`        text  a数b
        spans     [0, 1)   [1, 2)                 [1, 2)       [2, 3)

    The text is that of `decode`, but for a space at its beginning that some tokenizers leave
    out.
    """
    text, spans = "", []
    for broken, run in itertools.groupby(
        map(int, ids), lambda i: UNFINISHED in _written(tokenizer, (i,))
    ):
        tokens = tuple(run)
        for group in [tokens] if broken else [(i,) for i in tokens]:
            start, text = len(text), text + _written(tokenizer, group)
            spans += [(start, len(text))] * len(group)
    return text, spans


def is_of_template(tokenizer: Any, token: int) -> bool:
    """Whether a token opens or ends something and is no part of what is said in between.

    So are special tokens, the tags of thoughts, and white space.
    """
    text = decode(tokenizer, [token]).strip()
    return text in ("", _OPEN_THINKING, _CLOSE_THINKING)


@functools.lru_cache(maxsize=1 << 18)  # a vocabulary, and what runs there are
def _written(tokenizer: Any, ids: tuple[int, ...]) -> str:
    # Behind another token, for a tokenizer may write the first of a text differently.
    before = encode_plain(tokenizer, "1")
    return decode(tokenizer, [*before, *ids])[len(decode(tokenizer, before)) :]


@functools.lru_cache(maxsize=8)
def _hidden_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    thinking = {i for i, token in added if token.content in (_OPEN_THINKING, _CLOSE_THINKING)}
    special = {i for i, token in added if token.special} | set(tokenizer.all_special_ids)
    return frozenset(special - thinking)
