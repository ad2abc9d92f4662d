# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Merging trained weights into one set, rounded once, and what that rounding costs.

A delta that is small beside the spacing of bfloat16 is rounded away. Two numbers tell:

    lost   |rounded - exact| / |exact - base|, Frobenius norms over all weights that trained
    KL     of next-token distributions on the run's own rollouts: KL(trained || exported)
           beside KL(trained || base), which is all that training changed
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3, output_head
from stepalign_jax.sampling.scheduler import prompt_bucket

Tree = dict[str, Any]
Leaves = dict[Any, Any]  # by path

_TOKEN_TILE = 256  # tokens whose logits exist at once


class Merged(NamedTuple):
    """Weights to export.

    Attributes:
      params: stacked NumPy arrays of one dtype.
      delta_norm: |exact - base| over the weights that trained.
      error_norm: |rounded - exact| over the same.
    """

    params: Tree
    delta_norm: float
    error_norm: float

    @property
    def lost(self) -> float:
        """The rounding error as a share of the delta; 0 where nothing was trained."""
        return self.error_norm / self.delta_norm if self.delta_norm else 0.0


def merge(base: Tree, trainable: Tree, spec: LoraSpec | None, dtype: np.dtype) -> Merged:
    """Returns base kernel + a @ b * scale, or the trained params, rounded once to `dtype`.

    The sum is taken in fp32, one layer of one kernel at a time and in host memory: fp32
    copies of more than that never exist.

    Args:
      base: stacked params in the dtype of their files.
      trainable: {"lora": ...} or {"params": ...}, fp32.
      spec: of the adapter, or None for trained params.
      dtype: of the result.

    Raises:
      UserError: a weight is not finite in `dtype`.
    """
    adapters: Leaves = {}
    if spec is not None:
        adapters = {
            ("layers", module, name, "kernel"): pair
            for module, pairs in trainable["lora"]["layers"].items()
            for name, pair in pairs.items()
        }
    trained: Leaves = flax.traverse_util.flatten_dict(trainable.get("params", {}))  # pyright: ignore[reportAssignmentType]
    leaves: Leaves = flax.traverse_util.flatten_dict(base)  # pyright: ignore[reportAssignmentType]
    merged, delta_square, error_square = {}, 0.0, 0.0
    for path, leaf in leaves.items():
        rounded = np.empty(leaf.shape, dtype)
        for at in _parts(path, leaf):
            before = np.asarray(leaf[at], np.float32)
            exact = before
            if path in trained:
                exact = np.asarray(trained[path][at])
            elif path in adapters and spec is not None:
                a, b = (np.asarray(adapters[path][name][at], np.float32) for name in "ab")
                exact = before + a @ b * np.float32(spec.scale)
            with np.errstate(over="ignore"):  # refused below
                rounded[at] = exact.astype(dtype)
            if path in trained or path in adapters:
                delta_square += _square(exact - before)
                error_square += _square(rounded[at].astype(np.float32) - exact)
        _require_finite(".".join(path), rounded)
        merged[path] = rounded
    params = flax.traverse_util.unflatten_dict(merged)
    return Merged(params, delta_square**0.5, error_square**0.5)


def _parts(path: Sequence[str], leaf: Any) -> Iterator[Any]:
    """Indices that cut a leaf into layers; a leaf outside the layers is one part."""
    return iter(range(leaf.shape[0])) if path[0] == "layers" else iter([...])


def _square(values: np.ndarray) -> float:
    return float(np.sum(np.square(values), dtype=np.float64))


def _require_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise UserError(
            f"{name} holds values that are not finite in {values.dtype.name}: choose another "
            "--dtype, or an earlier step if training diverged."
        )


class ProbeText(NamedTuple):
    """A prompt, and the start of the completion whose tokens are looked at."""

    prompt: list[int]
    completion: list[int]


def measure(
    model: Qwen3, base: Tree, trainable: Tree, exported: Tree, texts: Sequence[ProbeText]
) -> dict[str, float]:
    """Returns `kl_of_training` and `kl_of_rounding`, means over `num_tokens`.

    Args:
      model: see `hidden_states`.
      base: params of the base.
      trainable: {"lora": ...} or {"params": ...}, fp32.
      exported: params after merging and rounding.
      texts: at least one, of the run's own.
    """
    trained = {"params": base} | trainable

    def view(variables: Tree) -> View:
        return View(hidden_states(model, variables, texts), output_head(variables["params"]))

    reference = view(trained)
    return {
        "kl_of_training": mean_kl(reference, view({"params": base})),
        "kl_of_rounding": mean_kl(reference, view({"params": exported})),
        "num_texts": len(texts),
        "num_tokens": len(reference.hidden),
    }


def hidden_states(model: Qwen3, variables: Tree, texts: Sequence[ProbeText]) -> np.ndarray:
    """Returns [N, D]: the states that predict the completion tokens of all texts in turn.

    Args:
      model: computes in fp32, whatever the dtype of the weights; each layer's are cast when
        it is their turn.
      variables: its weights.
      texts: at least one; all are padded to one width.
    """
    width = prompt_bucket(max(len(text.prompt) + len(text.completion) for text in texts))
    rows = []
    for prompt, completion in texts:
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(prompt) + len(completion)] = [*prompt, *completion]
        hidden = np.asarray(_forward(model, variables, tokens))[0]
        rows.append(hidden[len(prompt) - 1 : len(prompt) - 1 + len(completion)])
    return np.concatenate(rows)


@functools.partial(jax.jit, static_argnums=0)
def _forward(model: Qwen3, variables: Tree, tokens: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # an accelerator's default is coarser
        hidden, _ = model.apply(variables, tokens)  # pyright: ignore[reportAssignmentType]
    return hidden


class View(NamedTuple):
    """What one set of weights says about the texts: states [N, D] and output head [V, D]."""

    hidden: np.ndarray
    head: Any


def mean_kl(reference: View, other: View) -> float:
    """Returns the mean over tokens of KL(reference || other), in nats."""
    total, num_tokens = 0.0, len(reference.hidden)
    for start in range(0, num_tokens, _TOKEN_TILE):
        end = start + _TOKEN_TILE
        rows = (reference.hidden[start:end], other.hidden[start:end])
        short = _TOKEN_TILE - len(rows[0])  # the last tile has the shape of the others
        padded = (np.pad(row, ((0, short), (0, 0))) for row in rows)
        kl = _tile_kl(*padded, reference.head, other.head)
        total += float(np.sum(np.asarray(kl)[: _TOKEN_TILE - short], dtype=np.float64))
    return max(total / num_tokens, 0.0)  # the difference of equals may round below 0


@jax.jit
def _tile_kl(
    reference: jax.Array, other: jax.Array, reference_head: jax.Array, other_head: jax.Array
) -> jax.Array:
    """[n, D], [n, D], [V, D], [V, D] -> [n]."""

    def logprobs(hidden: jax.Array, head: jax.Array) -> jax.Array:
        logits = jnp.matmul(hidden, head.astype(jnp.float32).T, precision="highest")
        return jax.nn.log_softmax(logits)

    p, q = logprobs(reference, reference_head), logprobs(other, other_head)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)
