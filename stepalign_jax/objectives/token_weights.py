# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of tokens in the loss, by name.

Most are NumPy on the host, before anything is scored. Those that read the solver's entropies
are array functions on the devices; the update takes the entropies as constants, so that no
gradient flows through a weight.

With weights w, token losses l and n tokens that count (those of rollouts whose context did not
fail), a step minimises

    sum(w l) / n

The denominator does not depend on the weights: a gate that leaves half of the tokens halves the
gradient. Names in `objective.token_weights` are multiplied; () gives every token weight 1. One
may carry a number: ("correct_only", "skip_first:8").

A weight of one's own is one file of this room, and a line in `objectives/__init__.py` that
imports it:

    @token_weight
    def first_half(inputs: WeightInputs) -> np.ndarray:
        columns = np.arange(inputs.tokens.shape[1])
        return columns < inputs.lengths[:, None] / 2

With a second parameter it takes the number. One that reads entropies is registered by
`@entropy_weight` and has the entropies [N] of packed tokens as its first argument.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

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
      copied: how many of the first tokens its critique repeats (or its context, where no
        critic is asked). Behind them is what a critique in the trace's format corrects first.
      markup: which tokens are form and say nothing about the problem: tags, white space,
        punctuation (feedback/markup.py).
    """

    tokens: Int32[np.ndarray, "B T"]
    lengths: Int32[np.ndarray, " B"]
    finished: Bool[np.ndarray, " B"]
    correct: Bool[np.ndarray, " B"]
    usable: Bool[np.ndarray, " B"]
    copied: Int32[np.ndarray, " B"]
    markup: Bool[np.ndarray, "B T"]


TokenWeight = Callable[..., np.ndarray]
EntropyWeight = Callable[..., jax.Array]
TOKEN_WEIGHTS: dict[str, TokenWeight] = {}
ENTROPY_WEIGHTS: dict[str, EntropyWeight] = {}


def token_weight(function: TokenWeight) -> TokenWeight:
    """Registers a function of `WeightInputs`, or of these and a number, under its own name.

    It returns numbers or bools that broadcast to [B, T].
    """
    TOKEN_WEIGHTS[function.__name__] = function
    return function


def entropy_weight(function: EntropyWeight) -> EntropyWeight:
    """Registers a function of entropies [N], or of these and a number, under its own name.

    The entropies are the solver's, in nats, at temperature 1. It returns numbers or bools [N].
    """
    ENTROPY_WEIGHTS[function.__name__] = function
    return function


@token_weight
def correct_only(inputs: WeightInputs) -> np.ndarray:
    """1 on rollouts whose answer is right, 0 on the others."""
    return inputs.correct[:, None]


@token_weight
def wrong_only(inputs: WeightInputs) -> np.ndarray:
    """1 on rollouts whose answer is wrong, 0 on the others."""
    return ~inputs.correct[:, None]


@token_weight
def finished_only(inputs: WeightInputs) -> np.ndarray:
    """1 on rollouts that ended by themselves, 0 on those that the token budget ended."""
    return inputs.finished[:, None]


@token_weight
def markup_off(inputs: WeightInputs) -> np.ndarray:
    """0 on tokens that are markup, 1 on those that say something about the problem."""
    return ~inputs.markup


@token_weight
def skip_first(inputs: WeightInputs, number: float) -> np.ndarray:
    """0 on the first `number` tokens, 1 after them."""
    return np.arange(inputs.tokens.shape[1])[None] >= number


@token_weight
def ramp(inputs: WeightInputs, number: float) -> np.ndarray:
    """A straight line from `number` on a rollout's first token to 1 on its last."""
    steps = np.maximum(inputs.lengths - 1, 1)[:, None]
    return number + (1 - number) * np.arange(inputs.tokens.shape[1]) / steps


@entropy_weight
def entropy_gate(entropies: Float32[Array, " N"], number: float) -> Bool[Array, " N"]:
    """1 where the solver's entropy is at least `number` nats, 0 where it is surer."""
    return entropies >= number


def check_token_weights(names: Sequence[str]) -> None:
    """Refuses what is no weight; call it before anything expensive.

    Raises:
      UserError: with the nearest name, or with what is wrong about its number.
    """
    for name in names:
        _number_of(name)


def token_weights(names: Sequence[str], inputs: WeightInputs) -> Float32[np.ndarray, "B T"]:
    """Returns the product of the named weights, those of entropies left out; ones for no name.

    Raises:
      UserError: as `check_token_weights`.
    """
    weights = np.ones(inputs.tokens.shape, np.float32)
    for name in names:
        numbers = _number_of(name)
        if function := TOKEN_WEIGHTS.get(name.partition(":")[0]):
            weights *= np.asarray(function(inputs, *numbers), np.float32)
    return weights


def reads_entropies(names: Sequence[str]) -> bool:
    """Whether one of the named weights reads the solver's entropies."""
    return any(name.partition(":")[0] in ENTROPY_WEIGHTS for name in names)


def entropy_weights(
    names: Sequence[str], entropies: Float32[Array, " N"]
) -> Float32[Array, " N"]:
    """Returns the product of the named weights that read entropies; ones for none of them.

    Args:
      names: as in `objective.token_weights`, checked.
      entropies: the solver's, in nats, at temperature 1; taken as constants.
    """
    entropies = jax.lax.stop_gradient(entropies)
    weights = jnp.ones_like(entropies)
    for name in names:
        if function := ENTROPY_WEIGHTS.get(name.partition(":")[0]):
            weights *= function(entropies, *_number_of(name)).astype(jnp.float32)
    return weights


def _number_of(entry: str) -> list[float]:
    """The number behind the name; [] for a weight that takes none."""
    name, colon, text = entry.partition(":")
    where, known = f"objective.token_weights names {entry!r}", TOKEN_WEIGHTS | ENTROPY_WEIGHTS
    if name not in known:
        raise UserError(
            f"{where}, which is none of {', '.join(known)}; did you mean "
            f"{nearest(name, known)!r}?"
        )
    takes_number = len(inspect.signature(known[name]).parameters) == 2
    if not takes_number and not colon:
        return []
    if not takes_number:
        raise UserError(f"{where}, but {name} takes no number: write {name!r}.")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise UserError(f"{where}, but {name} takes a number from 0 on, as in '{name}:4'.")
    return [number]
