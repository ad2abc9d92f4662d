# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Structs that travel between layers. No logic beyond derived properties.

Dimension key (the README's): B sequences, T completion tokens, P prompt tokens,
S cache slots, V vocabulary, D width, H / K query / key-value heads, Dh head size.
"""

import flax.struct
import jax
import numpy as np


@flax.struct.dataclass
class Rollouts:
    """Sampled completions, one row each; the stop token counts as a token.

    Attributes:
      tokens: [B, T] int32 completion ids; positions from `lengths` on are padding.
      logprobs: [B, T] float32 log-probabilities of `tokens` under the model itself
        (temperature 1, whole vocabulary).
      lengths: [B] int32 number of valid tokens.
      finished: [B] bool, False where the token budget ended the completion.
    """

    tokens: jax.Array | np.ndarray
    logprobs: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    finished: jax.Array | np.ndarray
