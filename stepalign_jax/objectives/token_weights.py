# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of tokens in the loss, by name; NumPy on the host, before anything is scored.

With weights w, token losses l and n tokens that count (those of rollouts whose context did not
fail), a step minimises

    sum(w l) / n

The denominator does not depend on the weights: a gate that leaves half of the tokens halves the
gradient. Names in `objective.token_weights` are multiplied; () gives every token weight 1.

A weight of one's own is one file of this room, and a line in `objectives/__init__.py` that
imports it:

    @token_weight
    def first_half(inputs: WeightInputs) -> np.ndarray:
        columns = np.arange(inputs.tokens.shape[1])
        return columns < inputs.lengths[:, None] / 2
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.names import nearest


@dataclass(frozen=True)
class WeightInputs:
    """What is known of B rollouts before they are scored.

    Attributes:
      tokens: completions; positions from `lengths` on are padding.
      lengths: how many tokens are valid.
      finished: False where the token budget ended the completion.
      correct: whether the final answer is right.
      usable: False where the context failed: no token of it counts.
    """

    tokens: Int32[np.ndarray, "B T"]
    lengths: Int32[np.ndarray, " B"]
    finished: Bool[np.ndarray, " B"]
    correct: Bool[np.ndarray, " B"]
    usable: Bool[np.ndarray, " B"]


TokenWeight = Callable[[WeightInputs], np.ndarray]
TOKEN_WEIGHTS: dict[str, TokenWeight] = {}


def token_weight(function: TokenWeight) -> TokenWeight:
    """Registers a function -> numbers or bools that broadcast to [B, T], under its own name."""
    TOKEN_WEIGHTS[function.__name__] = function
    return function


@token_weight
def correct_only(inputs: WeightInputs) -> np.ndarray:
    """1 on rollouts whose answer is right, 0 on the others."""
    return inputs.correct[:, None]


@token_weight
def wrong_only(inputs: WeightInputs) -> np.ndarray:
    """1 on rollouts whose answer is wrong, 0 on the others."""
    return ~inputs.correct[:, None]


def check_token_weights(names: Sequence[str]) -> None:
    """Refuses a name that no weight has; call it before anything expensive.

    Raises:
      UserError: with the nearest name.
    """
    for name in names:
        if name not in TOKEN_WEIGHTS:
            raise UserError(
                f"objective.token_weights names {name!r}, which is none of "
                f"{', '.join(TOKEN_WEIGHTS)}; did you mean {nearest(name, TOKEN_WEIGHTS)!r}?"
            )


def token_weights(names: Sequence[str], inputs: WeightInputs) -> Float32[np.ndarray, "B T"]:
    """Returns the product of the named weights; ones for no name.

    Raises:
      UserError: for an unknown name.
    """
    check_token_weights(names)
    weights = np.ones(inputs.tokens.shape, np.float32)
    for name in names:
        weights *= np.asarray(TOKEN_WEIGHTS[name](inputs), np.float32)
    return weights
