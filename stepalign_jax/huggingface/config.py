# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's `config.json` in all its spellings, read into a `Qwen3Config` and written.

A key that would change the computation and is not implemented is refused by name. Where a key
is missing, its value is the one that transformers takes.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object
from stepalign_jax.huggingface.numbers import is_number, is_whole
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.rope import YarnScaling

CONFIG = "config.json"


class Family(NamedTuple):
    """The differences between the supported architectures."""

    architecture: str
    qkv_bias: bool
    qk_norm: bool


# model_type -> its family.
_FAMILIES = {
    "qwen3": Family("Qwen3ForCausalLM", qkv_bias=False, qk_norm=True),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, qk_norm=False),
}

# Our field -> key in config.json.
_HF_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "max_positions": "max_position_embeddings",
}
_KINDS = {int: "a positive whole number", float: "a positive number", bool: "true or false"}

_BETA_FAST, _BETA_SLOW = 32.0, 1.0  # transformers' defaults
# Keys of YaRN that are written only where they were given.
_OPTIONAL = ("attention_factor", "mscale", "mscale_all_dim")
_YARN_KEYS = {
    *("rope_type", "rope_theta", "partial_rotary_factor"),
    *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"),
    *_OPTIONAL,
}


def read_sizes(directory: Path, key: str = "model.path") -> Qwen3Config:
    """The sizes that a checkpoint directory's config.json states.

    Args:
      directory: of the checkpoint.
      key: the option that named the directory, for refusals.

    Raises:
      UserError: config.json is missing or bad, or the directory holds an adapter.
    """
    path = directory / CONFIG
    if not path.exists() and (directory / "adapter_config.json").exists():
        raise UserError(
            f"{directory} holds an adapter, not a model: give its base as {key} (training "
            "starts from an adapter with trainable.adapter, generation with --adapter)."
        )
    if not path.exists():
        raise UserError(f"{path} does not exist: {key} must hold a Hugging Face checkpoint.")
    return config_from_hf(read_json_object(path))


def config_from_hf(hf: dict[str, Any]) -> Qwen3Config:
    """The sizes in a parsed `config.json`.

    Raises:
      UserError: a key is missing or holds no sensible value, or the file asks for something
        that is not implemented (another architecture, RoPE scaling other than YaRN, a
        sliding window, another activation, quantised weights).
    """
    _refuse_quantised(hf)
    family = _family(hf)
    rope = _rope(hf)
    _refuse_unsupported(hf, family, rope)
    values = _values(hf)
    yarn = None
    if rope["rope_type"] == "yarn":
        yarn = _yarn_from_hf(rope, values["max_positions"])
        values["max_positions"] = max(values["max_positions"], yarn.max_positions)
    return Qwen3Config(
        **values,
        rope_theta=float(rope["rope_theta"]),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        yarn=yarn,
    )


def config_to_hf(config: Qwen3Config) -> dict[str, Any]:
    """The content of a `config.json`, which `config_from_hf` reads back.

    Raises:
      ValueError: no supported architecture has these biases and norms.
    """
    model_type = _model_type(config)
    family = _FAMILIES[model_type]
    return {
        "architectures": [family.architecture],
        "model_type": model_type,
        **{key: getattr(config, field) for field, key in _HF_KEYS.items()},
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.yarn is None else _yarn_to_hf(config.yarn),
        "hidden_act": "silu",
        # A Qwen2 has its biases without a key for them.
        **({} if family.qkv_bias else {"attention_bias": False}),
        "use_sliding_window": False,
    }


def _model_type(config: Qwen3Config) -> str:
    for model_type, family in _FAMILIES.items():
        if (config.qkv_bias, config.qk_norm) == (family.qkv_bias, family.qk_norm):
            return model_type
    raise ValueError(
        f"no architecture has qkv_bias = {config.qkv_bias} and qk_norm = {config.qk_norm}"
    )


def _refuse_quantised(hf: dict[str, Any]) -> None:
    quantised = hf.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UserError(
            f"config.json says that the weights are quantised ({method}): take the checkpoint "
            "in bfloat16, float16 or float32 from which it was made."
        )


def _family(hf: dict[str, Any]) -> Family:
    """The family of the `model_type`; a different entry in `architectures` is refused."""
    model_type = hf.get("model_type")
    architectures = hf.get("architectures") or []
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None or architectures not in ([], [family.architecture]):
        names = architectures if isinstance(architectures, list) else [architectures]
        found = " ".join(", ".join(map(str, names)).split()) or "model"
        wanted = " or ".join(family.architecture for family in _FAMILIES.values())
        raise UserError(
            f"config.json describes a {found} (model_type {model_type!r}): only dense Qwen3 "
            f"and Qwen2 are supported, so give a checkpoint of a {wanted}."
        )
    return family


def _rope(hf: dict[str, Any]) -> dict[str, Any]:
    """The rope section, with `rope_type` and `rope_theta` in it, from any of its spellings.

    Up to transformers 4 it is `rope_scaling`, its type may be called `type`, and
    `rope_theta` stands beside it; transformers 5 puts all of it into `rope_parameters`.
    """
    old, new = (_rope_section(hf, key) for key in ("rope_scaling", "rope_parameters"))
    clashing = sorted(key for key in old.keys() & new.keys() if old[key] != new[key])
    if clashing:
        raise UserError(
            f"config.json has two values for {', '.join(clashing)}, in rope_scaling and in "
            "rope_parameters: remove one of the sections."
        )
    rope = {"rope_type": "default", "rope_theta": hf.get("rope_theta"), **old, **new}
    # transformers prefers the top level to the section for this key, and for no other.
    original = "original_max_position_embeddings"
    if rope["rope_type"] == "yarn" and original in hf:
        rope[original] = hf[original]
    if not _is_kind(rope["rope_theta"], float) or rope["rope_theta"] <= 1:
        raise UserError(
            "config.json has no rope_theta above 1, at top level or in rope_parameters: fetch "
            "the checkpoint again."
        )
    return rope


def _rope_section(hf: dict[str, Any], key: str) -> dict[str, Any]:
    section = hf.get(key) or {}
    if not isinstance(section, dict):
        raise UserError(f"config.json has {key} = {section!r}: it must be an object or null.")
    renamed = {"rope_type": section["type"]} if "type" in section else {}
    return renamed | {name: value for name, value in section.items() if name != "type"}


def _refuse_unsupported(hf: dict[str, Any], family: Family, rope: dict[str, Any]) -> None:
    """Raises a UserError about the first key with a value that is not implemented."""
    rotated = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor")) or 1.0
    layer_types = hf.get("layer_types") or ["full_attention"]
    # transformers gives a Qwen2 its biases whatever this key says.
    bias = None if family.qkv_bias else hf.get("attention_bias")
    refusals = {
        "rope_type": (rope["rope_type"], rope["rope_type"] in ("default", "yarn")),
        "partial_rotary_factor": (rotated, rotated == 1.0),
        "attention_bias": (bias, not bias),
        "use_sliding_window": (hf.get("use_sliding_window"), not hf.get("use_sliding_window")),
        "layer_types": (layer_types, _all_full(layer_types)),
        "hidden_act": (hf.get("hidden_act"), hf.get("hidden_act", "silu") == "silu"),
    }
    for key, (value, supported) in refusals.items():
        if not supported:
            raise UserError(
                f"config.json asks for {key} = {value!r}, which is not supported: use a dense "
                "Qwen3 or Qwen2 checkpoint (plain or YaRN RoPE, SiLU, full attention)."
            )


def _all_full(layer_types: Any) -> bool:
    is_list = isinstance(layer_types, list)
    return is_list and all(kind == "full_attention" for kind in layer_types)


def _values(hf: dict[str, Any]) -> dict[str, Any]:
    """The fields of Qwen3Config that are plain keys of config.json, each of its kind."""
    kinds: dict[str, Any] = {
        field.name: field.type for field in dataclasses.fields(Qwen3Config)
    }
    hf = dict(hf)
    if hf["model_type"] == "qwen2" and hf.get("head_dim") is None:
        hf["head_dim"] = _shared_head_dim(hf)
    missing = [key for key in _HF_KEYS.values() if hf.get(key) is None]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}: fetch the checkpoint again.")
    for field, key in _HF_KEYS.items():
        if not _is_kind(hf[key], kinds[field]):
            raise UserError(
                f"config.json has {key} = {hf[key]!r}: it must be {_KINDS[kinds[field]]}."
            )
    values = {field: hf[key] for field, key in _HF_KEYS.items()}
    heads, kv_heads, head_dim = (values[n] for n in ("num_heads", "num_kv_heads", "head_dim"))
    if heads % kv_heads:
        raise UserError(
            f"config.json has {heads} attention heads and {kv_heads} key-value heads: the "
            "second must divide the first."
        )
    if head_dim % 2:
        raise UserError(f"config.json has head_dim {head_dim}: RoPE needs it even.")
    return values


def _shared_head_dim(hf: dict[str, Any]) -> int | None:
    """hidden / heads, which Qwen2 does not write down; None where it has no such quotient."""
    width, heads = hf.get("hidden_size"), hf.get("num_attention_heads")
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
        return None
    return width // heads


def _is_kind(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    return (is_whole(value) if kind is int else is_number(value)) and value > 0


def _yarn_from_hf(rope: dict[str, Any], max_positions: int) -> YarnScaling:
    """The scaling that a rope section describes.

    Args:
      rope: `rope_scaling` or `rope_parameters`.
      max_positions: `max_position_embeddings`. It is the original context where that is not
        given, and gives the factor where that is null.

    Raises:
      UserError: the factor is missing, a value is no number, or a key is unknown.
    """
    unknown = sorted(set(rope) - _YARN_KEYS)
    if unknown or "factor" not in rope:
        wrong = f"has unknown key(s) {', '.join(unknown)}" if unknown else "lacks factor"
        raise UserError(
            f"config.json asks for YaRN, but its rope section {wrong}: write rope_type, "
            "factor and original_max_position_embeddings as the checkpoint's card does."
        )
    original = _number(rope, "original_max_position_embeddings", 1) or max_positions
    factor = _number(rope, "factor", 1)
    return YarnScaling(
        factor=float(max_positions / original if factor is None else factor),
        original_max_positions=int(original),
        beta_fast=float(_number(rope, "beta_fast", 0) or _BETA_FAST),
        beta_slow=float(_number(rope, "beta_slow", 0) or _BETA_SLOW),
        truncate=bool(rope.get("truncate", True)),
        **{key: _number(rope, key, 0) for key in _OPTIONAL},  # pyright: ignore[reportArgumentType]
    )


def _yarn_to_hf(yarn: YarnScaling) -> dict[str, Any]:
    optional = {key: getattr(yarn, key) for key in _OPTIONAL}
    return {
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_max_positions,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        **({} if yarn.truncate else {"truncate": False}),
        **{key: value for key, value in optional.items() if value is not None},
    }


def _number(rope: dict[str, Any], key: str, least: float) -> float | None:
    """The value of a key of YaRN's, None where it is missing or null."""
    value = rope.get(key)
    if value is None:
        return None
    if not is_number(value) or value < least:
        raise UserError(
            f"config.json asks for YaRN with {key} = {value!r}: give a number that is at "
            f"least {least}."
        )
    return value
