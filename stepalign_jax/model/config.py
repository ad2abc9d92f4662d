# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Sizes of a Qwen3 or Qwen2 checkpoint, and their form in a Hugging Face `config.json`."""

import dataclasses
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.model.rope import YarnScaling

# Projection -> (submodule that holds it, logical axes of its kernel [in, out]).
PROJECTIONS: dict[str, tuple[str, tuple[str, str]]] = {
    "q_proj": ("attention", ("embed", "heads")),
    "k_proj": ("attention", ("embed", "kv_heads")),
    "v_proj": ("attention", ("embed", "kv_heads")),
    "o_proj": ("attention", ("heads", "embed")),
    "gate_proj": ("mlp", ("embed", "mlp")),
    "up_proj": ("mlp", ("embed", "mlp")),
    "down_proj": ("mlp", ("mlp", "embed")),
}

# Projections that carry a bias where the config asks for one.
BIASED = ("q_proj", "k_proj", "v_proj")


class Family(NamedTuple):
    """What tells one supported architecture from another."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config:
    """Sizes and constants of one checkpoint, of Qwen3 or of its forerunner Qwen2.

    Attributes:
      head_dim: independent of the other sizes.
      max_positions: how many a prompt and its completion may take together. Under YaRN
        factor x original positions, unless `max_position_embeddings` says more.
      qkv_bias: whether the query, key and value projections carry a bias (Qwen2).
      qk_norm: whether queries and keys are normalised per head (Qwen3).
      yarn: stretching of the rotary frequencies, or None.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_positions: int
    qkv_bias: bool
    qk_norm: bool
    yarn: YarnScaling | None

    def __post_init__(self):
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise UserError(
                f"config.json has {self.num_heads} attention heads and {self.num_kv_heads} "
                "key-value heads: the second must divide the first."
            )
        if self.head_dim % 2:
            raise UserError(f"config.json has head_dim {self.head_dim}: RoPE needs it even.")

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "Qwen3Config":
        """The config of a parsed Hugging Face `config.json`.

        Raises:
          UserError: a key is missing or holds no sensible value, or the file asks for
            something that would change the computation and is not implemented (another
            architecture, RoPE scaling other than YaRN, a sliding window, another
            activation).
        """
        family = _family(hf)
        rope = _rope(hf)
        _refuse_unsupported(hf, family, rope)
        values = _values(hf, {field.name: field.type for field in dataclasses.fields(cls)})
        yarn = None
        if rope["rope_type"] == "yarn":
            yarn = YarnScaling.from_hf(rope, values["max_positions"])
            values["max_positions"] = max(values["max_positions"], yarn.max_positions)
        return cls(
            **values,
            rope_theta=float(rope["rope_theta"]),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            yarn=yarn,
        )

    def to_hf(self) -> dict[str, Any]:
        """The dictionary that `from_hf` reads back, as `config.json` should hold it.

        Raises:
          ValueError: biases and norms are those of no architecture.
        """
        model_type, family = self._family()
        return {
            "architectures": [family.architecture],
            "model_type": model_type,
            **{key: getattr(self, field) for field, key in _HF_KEYS.items()},
            "rope_theta": self.rope_theta,
            "rope_scaling": None if self.yarn is None else self.yarn.to_hf(),
            "hidden_act": "silu",
            # A Qwen2 has its biases without a key for them.
            **({} if family.qkv_bias else {"attention_bias": False}),
            "use_sliding_window": False,
        }

    def _family(self) -> tuple[str, Family]:
        for model_type, family in _FAMILIES.items():
            if (self.qkv_bias, self.qk_norm) == (family.qkv_bias, family.qk_norm):
                return model_type, family
        raise ValueError(
            f"no architecture has qkv_bias = {self.qkv_bias} and qk_norm = {self.qk_norm}"
        )

    def projection_shape(self, name: str) -> tuple[int, int]:
        """(in, out) of the kernel of a projection named in `PROJECTIONS`."""
        sizes = {
            "embed": self.hidden_size,
            "heads": self.num_heads * self.head_dim,
            "kv_heads": self.num_kv_heads * self.head_dim,
            "mlp": self.intermediate_size,
        }
        in_axis, out_axis = PROJECTIONS[name][1]
        return sizes[in_axis], sizes[out_axis]


def _family(hf: dict[str, Any]) -> Family:
    """The family that config.json names by model_type, and by architecture where it does."""
    model_type = hf.get("model_type")
    architectures = hf.get("architectures") or []
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None or architectures not in ([], [family.architecture]):
        found = ", ".join(map(str, architectures)) or "model"
        names = " or ".join(family.architecture for family in _FAMILIES.values())
        raise UserError(
            f"config.json describes a {found} (model_type {model_type!r}): only dense Qwen3 "
            f"and Qwen2 are supported, so give a checkpoint of a {names}."
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
    # Beside the section, transformers prefers the top level for this key and only for it.
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
    """Raises UserError naming the first key that asks for what is not done here."""
    rotated = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor")) or 1.0
    layer_types = hf.get("layer_types") or ["full_attention"]
    # transformers gives a Qwen2 its biases whatever this key says.
    bias = None if family.qkv_bias else hf.get("attention_bias")
    refusals = {
        "rope_type": (rope["rope_type"], rope["rope_type"] in ("default", "yarn")),
        "partial_rotary_factor": (rotated, rotated == 1.0),
        "attention_bias": (bias, not bias),
        "use_sliding_window": (hf.get("use_sliding_window"), not hf.get("use_sliding_window")),
        "layer_types": (layer_types, set(layer_types) == {"full_attention"}),
        "hidden_act": (hf.get("hidden_act"), hf.get("hidden_act", "silu") == "silu"),
        "quantization_config": (
            (hf.get("quantization_config") or {}).get("quant_method", "unnamed"),
            not hf.get("quantization_config"),
        ),
    }
    for key, (value, supported) in refusals.items():
        if not supported:
            raise UserError(
                f"config.json asks for {key} = {value!r}, which is not supported: use a dense "
                "Qwen3 or Qwen2 checkpoint (plain or YaRN RoPE, SiLU, full attention, weights "
                "not quantized)."
            )


def _values(hf: dict[str, Any], kinds: dict[str, Any]) -> dict[str, Any]:
    """Our fields that are plain keys of config.json, each of its kind."""
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
    return {field: hf[key] for field, key in _HF_KEYS.items()}


def _shared_head_dim(hf: dict[str, Any]) -> int | None:
    """hidden / heads, which Qwen2 does not write down; None where it has no such quotient."""
    width, heads = hf.get("hidden_size"), hf.get("num_attention_heads")
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
        return None
    return width // heads


def _is_kind(value: Any, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, int if kind is int else int | float) and value > 0
