# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What rounding the exported weights costs, on rollouts of the run.

The measure is KL(trained || exported) of the next-token distributions, beside
KL(trained || base), the whole effect of training. The exported distribution nearly equals the
trained one. With d = log p - log q, terms of either sign nearly cancel in sum(p * d): in
float32 it has a noise of 1e-8. Since p and q both sum to 1, KL is also the sum of

    p * (d + exp(-d) - 1)  =  p * (d**2 / 2 - d**3 / 6 + ...)

whose terms are all positive. It is right to 1e-13.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.progress import waiting
from stepalign_jax.model.qwen3 import Qwen3, output_head
from stepalign_jax.sampling.scheduler import prompt_bucket

Tree = dict[str, Any]

_TOKEN_TILE = 256  # tokens whose logits exist at once

# Rounding is worth a warning where it undoes more than this share of what training did.
_LARGEST_KL_SHARE = 0.1
_LARGEST_LOSS = 0.5
# KL grows with the square of the error. Where the weights lost less than this share of the
# delta, a KL above _LARGEST_KL_SHARE is the noise of two forward passes, not of rounding.
_LEAST_LOSS = 0.01


class ProbeText(NamedTuple):
    """A prompt, and the beginning of the completion on whose tokens KL is measured."""

    prompt: list[int]
    completion: list[int]


@waiting("measuring what rounding costs")
def measure_rounding(
    model: Qwen3, base: Tree, trainable: Tree, exported: Tree, texts: Sequence[ProbeText]
) -> dict[str, float]:
    """Returns `kl_of_training` and `kl_of_rounding` in nats, means over `num_tokens`.

    Args:
      model: see `hidden_states`.
      base: params of the base.
      trainable: {"lora": ...} or {"params": ...}, fp32.
      exported: params after merging and rounding.
      texts: at least one, of the run's own.
    """

    def view(variables: Tree) -> View:
        return View(hidden_states(model, variables, texts), output_head(variables["params"]))

    trained = view({"params": base} | trainable)
    return {
        "kl_of_training": mean_kl(trained, view({"params": base})),
        "kl_of_rounding": mean_kl(trained, view({"params": exported})),
        "num_texts": len(texts),
        "num_tokens": len(trained.hidden),
    }


def hidden_states(model: Qwen3, variables: Tree, texts: Sequence[ProbeText]) -> np.ndarray:
    """Returns [N, D]: the states that predict the completion tokens of all texts in turn.

    Args:
      model: computes in fp32, whatever the dtype of the weights; those of one layer are cast
        at a time.
      variables: its weights.
      texts: at least one; all are padded to one width.
    """
    width = prompt_bucket(max(len(text.prompt) + len(text.completion) for text in texts))
    rows = []
    for prompt, completion in texts:
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(prompt) + len(completion)] = [*prompt, *completion]
        hidden = np.asarray(_forward(model, variables, tokens))[0]
        # The state at position t predicts the token at t + 1.
        rows.append(hidden[len(prompt) - 1 : len(prompt) - 1 + len(completion)])
    return np.concatenate(rows)


@functools.partial(jax.jit, static_argnums=0)
def _forward(model: Qwen3, variables: Tree, tokens: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # an accelerator's default is coarser
        hidden, _ = model.apply(variables, tokens)  # pyright: ignore[reportAssignmentType]
    return hidden


class View(NamedTuple):
    """Distributions of one set of weights: hidden states [N, D] and output head [V, D]."""

    hidden: np.ndarray
    head: Any


def mean_kl(reference: View, other: View) -> float:
    """Returns the mean over tokens of KL(reference || other), in nats."""
    total, num_tokens = 0.0, len(reference.hidden)
    for start in range(0, num_tokens, _TOKEN_TILE):
        end = start + _TOKEN_TILE
        rows = (reference.hidden[start:end], other.hidden[start:end])
        short = _TOKEN_TILE - len(rows[0])  # the last tile gets the shape of the others
        padded = (np.pad(row, ((0, short), (0, 0))) for row in rows)
        kl = _tile_kl(*padded, reference.head, other.head)
        total += float(np.sum(np.asarray(kl)[: _TOKEN_TILE - short], dtype=np.float64))
    return total / num_tokens


@jax.jit
def _tile_kl(
    reference: jax.Array, other: jax.Array, reference_head: jax.Array, other_head: jax.Array
) -> jax.Array:
    """[n, D], [n, D], [V, D], [V, D] -> [n]."""

    def logprobs(hidden: jax.Array, head: jax.Array) -> jax.Array:
        logits = jnp.matmul(hidden, head.astype(jnp.float32).T, precision="highest")
        return jax.nn.log_softmax(logits)

    log_p, log_q = logprobs(reference, reference_head), logprobs(other, other_head)
    p, d = jnp.exp(log_p), log_p - log_q
    # The series where d is small; exp(-d) may overflow where it is not, q cannot.
    series = p * d * d * (1 / 2 - d * (1 / 6 - d * (1 / 24 - d / 120)))
    terms = jnp.where(jnp.abs(d) < 0.1, series, p * d + (jnp.exp(log_q) - p))
    return jnp.sum(terms, axis=-1)


def rounding_warning(found: dict[str, Any]) -> str | None:
    """Returns a sentence where rounding undid a good part of what training did.

    Args:
      found: `dtype` and `lost` of the export, and what `measure_rounding` returned, if it ran.
    """
    lost, kl_share = found["lost"], 0.0
    if found.get("kl_of_training") and lost > _LEAST_LOSS:
        kl_share = found["kl_of_rounding"] / found["kl_of_training"]
    if kl_share <= _LARGEST_KL_SHARE and lost <= _LARGEST_LOSS:
        return None
    measured = f" and {_percent(kl_share)} of the KL" if "kl_of_training" in found else ""
    return (
        f"warning: rounding to {found['dtype']} costs {_percent(lost)} of the delta"
        f"{measured} that training made: export with --dtype float32 or --form adapter."
    )


def describe_rounding(found: dict[str, Any]) -> str:
    """Returns a few lines about the same numbers, none longer than 80 characters."""
    lost = (
        f"  rounding to {found['dtype']}: the error is {_percent(found['lost'])} of the delta\n"
    )
    if "kl_of_training" not in found:
        return lost + "  KL not measured: there are no rollouts to measure it on"
    texts = f"{found['num_tokens']:,} tokens of {found['num_texts']} rollouts"
    return lost + (
        f"  nats a token, over {texts}:\n"
        f"    KL(trained || exported)  {found['kl_of_rounding']:.3g}\n"
        f"    KL(trained || base)      {found['kl_of_training']:.3g}"
    )


def _percent(share: float) -> str:
    """0.125 -> "12 %", 1.2 -> "120 %", 0.000012 -> "0.0012 %"; never an exponent."""
    percent = float(f"{100 * share:.2g}")
    if percent >= 10:
        return f"{percent:,.0f} %"
    return f"{percent:.6f}".rstrip("0").rstrip(".") + " %"
