# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false
"""The work of benchmarks/step.py, as NumPy arrays that either framework reads."""

from pathlib import Path
from typing import Any

import numpy as np

PROMPT, CONTEXT, COMPLETION = 64, 512, 256  # tokens
SEQUENCES = 2
VOCAB_SIZE = 151_936
RANK, ALPHA = 64, 128.0
LEARNING_RATE, B1, B2, CLIP = 1e-5, 0.9, 0.95, 1.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHECKED_LAYERS = (0, 13, 27)  # whose gradients are compared
CHECKED_TARGETS = ("q_proj", "o_proj", "down_proj")


def prompts_and_completions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns solver prompts [B, 64], teacher prompts [B, 576], completions [B, 256]."""
    draw = np.random.default_rng(0).integers
    solver = draw(VOCAB_SIZE, size=(SEQUENCES, PROMPT))
    teacher = np.concatenate([solver, draw(VOCAB_SIZE, size=(SEQUENCES, CONTEXT))], axis=1)
    return solver, teacher, draw(VOCAB_SIZE, size=(SEQUENCES, COMPLETION))


def adapter(layer: int, target: str, num_inputs: int, num_outputs: int) -> tuple[Any, Any]:
    """Returns `a` [in, r] and `b` [r, out] of one projection; b is not zero, so both learn."""
    random = np.random.default_rng([layer, TARGETS.index(target)])
    a = random.standard_normal((num_inputs, RANK), np.float32) * num_inputs**-0.5
    return a, random.standard_normal((RANK, num_outputs), np.float32) * np.float32(0.01)


def make_model(directory: Path) -> None:
    """Writes a Qwen3-0.6B of random float32 weights, in the Hugging Face layout."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        rope_theta=1e6,
        tie_word_embeddings=True,
        max_position_embeddings=40_960,
    )
    Qwen3ForCausalLM(config).to(torch.float32).save_pretrained(directory)
