# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of real sizes with random weights, for programs that only read files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 1_024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3_072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40_960,
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "torch_dtype": "float32",
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
}


def write_checkpoint(directory: Path, hf: dict[str, Any]) -> None:
    """Writes config.json and model.safetensors with normal(0.02) weights in float32."""
    generator = np.random.default_rng(0)
    width, head = hf["hidden_size"], hf["head_dim"]
    queries, keys = hf["num_attention_heads"] * head, hf["num_key_value_heads"] * head
    embedding = (hf["vocab_size"], width)
    shapes = {"model.embed_tokens.weight": embedding, "model.norm.weight": (width,)}
    for layer in range(hf["num_hidden_layers"]):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        shapes |= {
            f"{attention}q_proj.weight": (queries, width),
            f"{attention}k_proj.weight": (keys, width),
            f"{attention}v_proj.weight": (keys, width),
            f"{attention}o_proj.weight": (width, queries),
            f"{attention}q_norm.weight": (head,),
            f"{attention}k_norm.weight": (head,),
            f"{mlp}gate_proj.weight": (hf["intermediate_size"], width),
            f"{mlp}up_proj.weight": (hf["intermediate_size"], width),
            f"{mlp}down_proj.weight": (width, hf["intermediate_size"]),
            f"model.layers.{layer}.input_layernorm.weight": (width,),
            f"model.layers.{layer}.post_attention_layernorm.weight": (width,),
        }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(hf, indent=1) + "\n", encoding="utf-8")
    tensors = {name: _values(generator, shape) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _values(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, np.float32)  # norm scales
    return generator.standard_normal(shape, np.float32) * np.float32(0.02)
