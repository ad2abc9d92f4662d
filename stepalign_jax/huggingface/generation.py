# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's generation_config.json says: where a completion ends, how it is drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object
from stepalign_jax.huggingface.numbers import is_number, is_whole

FILE = "generation_config.json"
_TOP_K = 50  # transformers' own where a file that samples does not say
_SHOWN = 40  # characters of a value that is named
_FOLLOWED = ("eos_token_id", "do_sample", "temperature", "top_k", "top_p", "max_new_tokens")

# Keys that change no token of a single answer. Any other key with a value that transformers
# would act on is named.
_SILENT = {
    *("pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "use_mtp"),
    *("return_dict_in_generate", "num_return_sequences", "early_stopping", "length_penalty"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
    *("compile_config", "disable_compile", "remove_invalid_values", "renormalize_logits"),
    *("_from_model_config", "trust_remote_code", "chat_format", "max_window_size"),
}
_NEUTRAL = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p"), 1),
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale"), 1),
    "max_length": 20,  # transformers' own default, which older versions wrote down
}


@dataclass(frozen=True)
class GenerationSettings:
    """The settings of a file; None where it has none.

    Attributes:
      stop_ids: token ids that end a completion.
      do_sample: False is greedy decoding, whatever the three keys after it say.
      temperature: positive.
      top_k: 0 is off.
      top_p: in (0, 1].
      max_new_tokens: at least 1.
      not_followed: other keys that transformers would act on, as "key=value".
    """

    stop_ids: tuple[int, ...] | None
    do_sample: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    max_new_tokens: int | None
    not_followed: tuple[str, ...]

    def __str__(self) -> str:
        """What is not followed, as one clause; "" if all is."""
        return f"{FILE} asks for {', '.join(self.not_followed)}" if self.not_followed else ""


def read_generation_settings(directory: Path) -> GenerationSettings:
    """Returns the settings of a checkpoint directory; all None where it has no such file.

    Raises:
      UserError: the file is no JSON object, or a key holds what it cannot mean.
    """
    path = directory / FILE
    stored = read_json_object(path) if path.is_file() else {}

    def value(key: str, wanted: str, fits: Any) -> Any:
        found = stored.get(key)
        if found is not None and not fits(found):
            raise UserError(f"{path} has {key} = {_short(found)}: it must be {wanted}.")
        return found

    do_sample = bool(value("do_sample", "true or false", lambda x: isinstance(x, bool)))
    top_k = value("top_k", "a whole number from 0 on", lambda x: _is_whole(x, 0))
    return GenerationSettings(
        stop_ids=_stop_ids(path, stored),
        do_sample=do_sample,
        temperature=value(
            "temperature", "a number from 0 on", lambda x: is_number(x) and x >= 0
        ),
        top_k=_TOP_K if do_sample and top_k is None else top_k,
        top_p=value("top_p", "in (0, 1]", lambda x: is_number(x) and 0 < x <= 1),
        max_new_tokens=value(
            "max_new_tokens", "a positive whole number", lambda x: _is_whole(x, 1)
        ),
        not_followed=tuple(
            f"{key}={_short(found)}" for key, found in stored.items() if _acts(key, found)
        ),
    )


def _stop_ids(path: Path, stored: dict[str, Any]) -> tuple[int, ...] | None:
    eos = stored.get("eos_token_id")
    if eos is None:
        return None
    ids = eos if isinstance(eos, list) else [eos]
    if not ids or not all(_is_whole(i, 0) for i in ids):
        raise UserError(
            f"{path} has eos_token_id = {_short(eos)}: it must be a token id, or a list of "
            "some."
        )
    return tuple(ids)


def _acts(key: str, value: Any) -> bool:
    """Whether transformers would give another answer for this key."""
    if key in _SILENT or key in _FOLLOWED:
        return False
    return bool(value) and value != _NEUTRAL.get(key)


def _is_whole(value: Any, least: int) -> bool:
    return is_whole(value) and value >= least


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
