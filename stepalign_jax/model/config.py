# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Sizes of a Qwen3 checkpoint, and their form in a Hugging Face `config.json`."""

import dataclasses
from typing import Any

from stepalign_jax.base.errors import UserError

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config:
    """Sizes and constants of one checkpoint. `head_dim` is independent of the others."""

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
          UserError: a key is missing, or the file asks for something that would change
            the computation and is not implemented (another architecture, RoPE scaling,
            attention bias, a sliding window, another activation).
        """
        _refuse_unsupported(hf)
        missing = [key for key in _HF_KEYS.values() if key not in hf]
        if missing:
            raise UserError(f"config.json lacks {', '.join(missing)}: use a Qwen3 one.")
        values = {field: hf[key] for field, key in _HF_KEYS.items()}
        return cls(**values, rope_theta=float(_rope_theta(hf)))

    def to_hf(self) -> dict[str, Any]:
        """The dictionary that `from_hf` reads back, as `config.json` should hold it."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **{key: getattr(self, field) for field, key in _HF_KEYS.items()},
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "hidden_act": "silu",
            "attention_bias": False,
            "use_sliding_window": False,
        }

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


def _refuse_unsupported(hf: dict[str, Any]) -> None:
    """Raises UserError naming the first key that asks for what Qwen3 here does not do."""
    rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    plain_rope = rope_type == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0
    layer_types = hf.get("layer_types") or ["full_attention"]
    refusals = {
        "model_type": (hf.get("model_type"), hf.get("model_type") == "qwen3"),
        "rope scaling": (rope, plain_rope),
        "attention_bias": (hf.get("attention_bias"), not hf.get("attention_bias")),
        "use_sliding_window": (hf.get("use_sliding_window"), not hf.get("use_sliding_window")),
        "layer_types": (layer_types, set(layer_types) == {"full_attention"}),
        "hidden_act": (hf.get("hidden_act"), hf.get("hidden_act", "silu") == "silu"),
    }
    for key, (value, supported) in refusals.items():
        if not supported:
            raise UserError(
                f"config.json asks for {key} = {value!r}, which is not supported: use a dense "
                "Qwen3 checkpoint (model_type 'qwen3', plain RoPE, SiLU, full attention)."
            )


def _rope_theta(hf: dict[str, Any]) -> float:
    """rope_theta, which transformers 5 moved into `rope_parameters`."""
    theta = (hf.get("rope_parameters") or {}).get("rope_theta", hf.get("rope_theta"))
    if theta is None:
        raise UserError("config.json has no rope_theta, at top level or in rope_parameters.")
    return theta
