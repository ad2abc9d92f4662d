# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights in the layout of decoding: layers unrolled, and on a CPU in blocks of rows.

    stacked     {"params": {"layers": ..., ...}, "lora": ...}         what callers hold
    decode      {"params": {"layer_0": ..., "layer_1": ..., ...}, "lora": ..., "decode": ...}

The collection `decode` holds the matrices that are cut into blocks; it is there on a CPU alone.
"""

import functools
import os
from typing import Any

import jax

from stepalign_jax.model.products import block_large
from stepalign_jax.model.qwen3 import unstack_layers

Variables = dict[str, Any]

_MOST_SESSIONS = 4  # the host's work for each is serial


def is_decode_layout(variables: Variables) -> bool:
    """Whether the weights are in the layout of decoding already."""
    return "layers" not in variables["params"]


@functools.partial(jax.jit, static_argnames=("num_layers", "dtype", "num_blocks"))
def decode_layout(
    variables: Variables, *, num_layers: int, dtype: Any, num_blocks: int
) -> Variables:
    """Every collection unrolled, matrices in the compute dtype; in blocks, if there are any.

    The model rounds matrices to that dtype where it uses them, so rounding them here
    changes no bit, and each token reads fewer bytes. Norm scales stay as they are.
    """
    layout = {name: unstack_layers(tree, num_layers) for name, tree in variables.items()}
    if num_blocks:
        layout["params"], layout["decode"] = block_large(layout["params"], num_blocks)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, layout)


def num_blocks() -> int:
    """How many blocks large matrices are cut into: one per core of a single CPU device."""
    return _num_cores() if jax.default_backend() == "cpu" and jax.device_count() == 1 else 0


def num_sessions(variables: Variables) -> int:
    """How many sessions share the requests of a call, each in a thread of its own.

    A model so small that none of its matrices is cut into blocks leaves all cores of a CPU but
    one idle most of the time, since XLA runs small operations on one: two sessions of half the
    slots took 0.6 of the time of one (docs/performance.md). Larger models read all of their
    weights every step, which two sessions would do twice.
    """
    if variables.get("decode"):
        return 1
    return max(1, min(num_blocks(), _MOST_SESSIONS))


def _num_cores() -> int:
    own = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(own(0)) if own else os.cpu_count() or 1
