# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Merging trained weights into one set, rounded once to the dtype of the export.

bfloat16 has 8 bits of precision, so a delta below 2**-9 of its weight is rounded away. `Merged`
says how much of the delta was: |rounded - exact| / |exact - base|, Frobenius norms over all
weights that trained. `rounding.py` measures what that costs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.model.lora import LoraSpec

Tree = dict[str, Any]
Leaves = dict[Any, Any]  # by path


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

    The sum is taken in fp32 and in host memory, one layer of one kernel at a time: no more
    than that exists in fp32.

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
