# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Sizes and constants of the network; `huggingface/config.py` reads them from a checkpoint."""

import dataclasses

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config:
    """Sizes and constants of one checkpoint, of Qwen3 or of its predecessor Qwen2.

    Attributes:
      num_heads: H query heads, a multiple of `num_kv_heads` (K).
      head_dim: Dh, even; independent of the other sizes.
      max_positions: the most tokens of a prompt and its completion together. Under YaRN
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
