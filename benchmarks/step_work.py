# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false
"""The work of benchmarks/step.py, as NumPy arrays that either framework reads."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.shapes import QWEN3_0_6B

PROMPT, CONTEXT, COMPLETION = 64, 512, 256  # tokens
SEQUENCES = 2
TEACHER, SOLVER = PROMPT + CONTEXT + COMPLETION, PROMPT + COMPLETION  # of one sequence
RANK, ALPHA = 64, 128.0
LEARNING_RATE, B1, B2, CLIP = 1e-5, 0.9, 0.95, 1.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHECKED_LAYERS = (0, 13, 27)  # whose gradients are compared
CHECKED_TARGETS = ("q_proj", "o_proj", "down_proj")


def prompts_and_completions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns solver prompts [B, 64], teacher prompts [B, 576], completions [B, 256]."""
    draw = np.random.default_rng(0).integers
    solver = draw(QWEN3_0_6B["vocab_size"], size=(SEQUENCES, PROMPT))
    teacher = np.concatenate(
        [solver, draw(QWEN3_0_6B["vocab_size"], size=(SEQUENCES, CONTEXT))], axis=1
    )
    return solver, teacher, draw(QWEN3_0_6B["vocab_size"], size=(SEQUENCES, COMPLETION))


def adapter(layer: int, target: str, num_inputs: int, num_outputs: int) -> tuple[Any, Any]:
    """Returns `a` [in, r] and `b` [r, out] of one projection; b is not zero, so both learn."""
    random = np.random.default_rng([layer, TARGETS.index(target)])
    a = random.standard_normal((num_inputs, RANK), np.float32) * num_inputs**-0.5
    return a, random.standard_normal((RANK, num_outputs), np.float32) * np.float32(0.01)


def projections() -> list[tuple[int, int]]:
    """Returns (inputs, outputs) of the seven projections of a layer, as TARGETS has them."""
    hf = QWEN3_0_6B
    width, mlp = hf["hidden_size"], hf["intermediate_size"]
    queries = hf["num_attention_heads"] * hf["head_dim"]
    keys = hf["num_key_value_heads"] * hf["head_dim"]
    attention = [(width, queries), (width, keys), (width, keys), (queries, width)]
    return [*attention, (width, mlp), (width, mlp), (mlp, width)]


def flops(trainable: str) -> float:
    """Returns the least that one step computes: its products, a multiply-add being two.

    Nothing is counted twice for rematerialisation, nothing for padding, and of attention
    only what causality leaves.
    """
    hf = QWEN3_0_6B
    layers, queries = hf["num_hidden_layers"], hf["num_attention_heads"] * hf["head_dim"]
    weights = layers * sum(rows * columns for rows, columns in projections())
    adapter = layers * RANK * sum(rows + columns for rows, columns in projections())
    scores = lambda length: 2 * length**2 * queries * layers  # noqa: E731  both products
    projected = 2 * weights * (TEACHER + (3 if trainable == "full" else 2) * SOLVER)
    adapters = 0 if trainable == "full" else 3 * 2 * adapter * SOLVER
    times = 4 if trainable == "full" else 3
    head = times * 2 * hf["vocab_size"] * hf["hidden_size"] * COMPLETION
    return SEQUENCES * (projected + adapters + head + scores(TEACHER) + 3 * scores(SOLVER))


# One of the model's weights, and the rows that the teacher multiplies by it.
PRODUCT_ROWS = SEQUENCES * TEACHER
PRODUCT_INPUTS, PRODUCT_OUTPUTS = QWEN3_0_6B["hidden_size"], QWEN3_0_6B["intermediate_size"]


def product_flops_per_second(multiply: Callable[[], Any]) -> float:
    """Returns how fast a framework multiplies [rows, inputs] by [inputs, outputs]: the best of
    20 times."""
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - started)
    return 2 * PRODUCT_ROWS * PRODUCT_INPUTS * PRODUCT_OUTPUTS / best
