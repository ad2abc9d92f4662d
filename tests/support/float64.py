# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The divergences again, in float64 NumPy and in the plainest way, and inputs for them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from stepalign_jax.config.learning import (
    DivergenceConfig,
    ForwardKl,
    Jsd,
    ReverseKl,
    SampledToken,
)

KINDS = {kind.kind: kind for kind in (ForwardKl, ReverseKl, Jsd, SampledToken)}
NAMES = tuple(KINDS)
SETTINGS: dict[str, Any] = {
    "beta": 0.3,
    "loss_temperature": 1.1,
    "grpo_mix": 0.0,
    "element_clip": 0.0,
    "top_k": 0,
    "token_tile": 3,
    "token_weights": (),
}
# The ways to compute a divergence beside the plain one; sampled_token has no others.
WAYS = (
    {},
    {"element_clip": 0.05},
    {"top_k": 3},
    {"element_clip": 0.1, "top_k": 2},
)
NAMES_AND_WAYS = [
    *((name, way) for name in ("forward_kl", "reverse_kl", "jsd") for way in WAYS),
    ("sampled_token", {}),
]


def draw_inputs(num_tokens: int, vocab: int, width: int) -> dict[str, np.ndarray]:
    """Arguments of tiled_divergence; the weights are uneven, and one is negative."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "solver_hidden": normal(num_tokens, width),
        "teacher_hidden": normal(num_tokens, width),
        "solver_head": normal(vocab, width),
        "teacher_head": normal(vocab, width),
        "tokens": rng.integers(0, vocab, num_tokens).astype(np.int32),
        "token_weights": normal(num_tokens) + np.float32(0.5),
    }


def make_divergence(name: str, **settings: Any) -> DivergenceConfig:
    """The divergence of that name; of SETTINGS and changes, what its class has."""
    kind = KINDS[name]
    fields = {field.name for field in dataclasses.fields(kind)} - {"kind"}
    both = {**SETTINGS, **settings}
    return kind(**{key: value for key, value in both.items() if key in fields})


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def logprobs(hidden: np.ndarray, head: np.ndarray, temperature: float) -> np.ndarray:
    """[N, V]"""
    return log_softmax(hidden.astype(np.float64) @ head.astype(np.float64).T / temperature)


def both_logprobs(inputs: dict, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Solver's and teacher's, [N, V]."""
    return (
        logprobs(inputs["solver_hidden"], inputs["solver_head"], temperature),
        logprobs(inputs["teacher_hidden"], inputs["teacher_head"], temperature),
    )


def kl_terms(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.exp(p) * (p - q)


def values(
    name: str,
    solver: np.ndarray,
    teacher: np.ndarray,
    tokens: np.ndarray,
    frozen: np.ndarray,
    *,
    beta: float,
    element_clip: float,
    top_k: int,
    **_: Any,
) -> np.ndarray:
    """[N]. `frozen` are the solver's log-probabilities under stop_gradient."""
    rows = np.arange(len(tokens))
    if name == "sampled_token":
        advantage = teacher[rows, tokens] - frozen[rows, tokens]
        return -advantage * solver[rows, tokens]
    if top_k:
        solver, teacher = (_buckets(x, teacher, top_k) for x in (solver, teacher))
    if name == "jsd":
        mixture = np.log((1 - beta) * np.exp(solver) + beta * np.exp(teacher))
        terms = beta * kl_terms(teacher, mixture)
        terms += (1 - beta) * kl_terms(solver, mixture)
    else:
        pair = (solver, teacher) if name == "reverse_kl" else (teacher, solver)
        terms = kl_terms(*pair)
    return (np.minimum(terms, element_clip) if element_clip else terms).sum(-1)


def _buckets(logprobs: np.ndarray, teacher: np.ndarray, top_k: int) -> np.ndarray:
    """[N, k + 1]: the teacher's best entries, then the log of what the others hold together."""
    order = np.argsort(-teacher, axis=-1)
    ordered = np.take_along_axis(logprobs, order, axis=-1)
    tail = np.log(np.exp(ordered[:, top_k:]).sum(-1, keepdims=True))
    return np.concatenate([ordered[:, :top_k], tail], axis=-1)


def weighted_sum(name: str, inputs: dict, frozen: np.ndarray, settings: dict) -> float:
    """The loss of tiled_divergence."""
    pair = both_logprobs(inputs, settings["loss_temperature"])
    found = values(name, *pair, inputs["tokens"], frozen, **settings)
    return float(inputs["token_weights"].astype(np.float64) @ found)


def central_differences(
    function: Callable[[np.ndarray], float], array: np.ndarray, size: float = 1e-5
) -> np.ndarray:
    gradient = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        moved = np.zeros(array.shape)
        moved[index] = size
        gradient[index] = (function(array + moved) - function(array - moved)) / (2 * size)
    return gradient


def relative_error(found: Any, expected: np.ndarray) -> float:
    """The largest error over the largest entry."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())
