# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights of tokens by name: their products, their shapes, and names that nobody has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.objectives import token_weights as module
from stepalign_jax.objectives.token_weights import (
    WeightInputs,
    check_token_weights,
    entropy_weight,
    entropy_weights,
    reads_entropies,
    token_weight,
    token_weights,
)

INPUTS = WeightInputs(
    tokens=np.zeros((3, 4), np.int32),
    lengths=np.array([4, 2, 3], np.int32),
    finished=np.array([False, True, True]),
    correct=np.array([True, False, True]),
    usable=np.ones(3, bool),
    copied=np.zeros(3, np.int32),
    markup=np.array([[True, False, False, True], [False] * 4, [True] * 4]),
)


@pytest.fixture
def first_half(monkeypatch) -> str:
    """One more weight, as another file would register it."""
    monkeypatch.setattr(module, "TOKEN_WEIGHTS", dict(module.TOKEN_WEIGHTS))

    @token_weight
    def first_half(inputs: WeightInputs) -> np.ndarray:
        return np.arange(inputs.tokens.shape[1]) < inputs.lengths[:, None] / 2

    return first_half.__name__


def test_no_name_gives_ones():
    weights = token_weights((), INPUTS)
    assert weights.dtype == np.float32 and weights.tolist() == [[1.0] * 4] * 3


def test_gates_by_the_answer():
    right, wrong = (token_weights((name,), INPUTS) for name in ("correct_only", "wrong_only"))
    assert right.tolist() == [[1.0] * 4, [0.0] * 4, [1.0] * 4]
    assert (right + wrong).tolist() == [[1.0] * 4] * 3


def test_markup_is_switched_off():
    assert token_weights(("markup_off",), INPUTS).tolist() == [[0, 1, 1, 0], [1] * 4, [0] * 4]


def test_weights_with_a_number_by_hand():
    assert token_weights(("skip_first:2",), INPUTS).tolist() == [[0, 0, 1, 1]] * 3
    ramp = token_weights(("ramp:0.25",), INPUTS)  # rows have 4, 2 and 3 tokens
    np.testing.assert_allclose(ramp[0], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(ramp[1, :2], [0.25, 1.0])
    np.testing.assert_allclose(ramp[2, :3], [0.25, 0.625, 1.0])
    both = token_weights(("skip_first:2", "finished_only"), INPUTS)
    assert both.tolist() == [[0] * 4, [0, 0, 1, 1], [0, 0, 1, 1]]


def test_a_gate_opens_at_its_entropy():
    entropies = jnp.array([0.0, 0.49, 0.5, 2.0])
    assert entropy_weights(("entropy_gate:0.5",), entropies).tolist() == [0, 0, 1, 1]
    assert entropy_weights(("entropy_gate:0",), entropies).tolist() == [1, 1, 1, 1]
    both = ("skip_first:2", "entropy_gate:0.5", "entropy_gate:1")
    assert entropy_weights(both, entropies).tolist() == [0, 0, 0, 1]
    assert entropy_weights(("skip_first:2",), entropies).tolist() == [1] * 4
    # What is known before the scores is made elsewhere, and leaves the gate out.
    assert token_weights(both, INPUTS).tolist() == [[0, 0, 1, 1]] * 3
    assert reads_entropies(both) and not reads_entropies(("skip_first:2",))


def test_no_gradient_flows_through_a_weight(monkeypatch):
    monkeypatch.setattr(module, "ENTROPY_WEIGHTS", dict(module.ENTROPY_WEIGHTS))

    @entropy_weight
    def in_proportion(entropies: jax.Array, number: float) -> jax.Array:
        return number * entropies

    def total(entropies: jax.Array) -> jax.Array:
        return entropy_weights(("in_proportion:3",), entropies).sum()

    entropies = jnp.array([0.5, 2.0])
    assert total(entropies) == 7.5
    assert jax.grad(total)(entropies).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("skip_first", "as in 'skip_first:4'"),
        ("skip_first:many", "takes a number"),
        ("ramp:-1", "takes a number from 0 on"),
        ("entropy_gate", "as in 'entropy_gate:4'"),
        ("ramp:nan", "takes a number from 0 on"),
        ("correct_only:2", "takes no number: write 'correct_only'"),
    ],
)
def test_a_number_that_cannot_be_is_refused(entry, words):
    with pytest.raises(UserError, match=words):
        check_token_weights((entry,))


def test_names_are_multiplied(first_half):
    weights = token_weights((first_half, "correct_only"), INPUTS)
    assert weights.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"'corect_only'.* did you mean 'correct_only'"):
        check_token_weights(("wrong_only", "corect_only"))
    with pytest.raises(UserError, match="token_weights names 'none'"):
        token_weights(("none",), INPUTS)
