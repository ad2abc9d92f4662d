# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""YaRN's frequencies: by hand in float64, and against transformers over what can be set."""

import copy
import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from test_model_config import HF, YARN, yarn_of

from stepalign_jax.huggingface.config import config_from_hf
from stepalign_jax.model.rope import YarnScaling, rope_angles

HEAD_DIM, THETA = 128, 1e6
PERIODS = np.power(THETA, np.arange(0, HEAD_DIM, 2) / HEAD_DIM)  # float64
CARD = HF | {
    "head_dim": HEAD_DIM,
    "rope_theta": THETA,
    "rope_scaling": {"type": "yarn", **YARN},
}


def stretched(yarn: YarnScaling) -> np.ndarray:
    return yarn.stretch(PERIODS.astype(np.float32), THETA)


def test_the_model_cards_setting_by_hand():
    """Factor 4 on 32,768: which dimensions turn 32 times, and once, in that context?"""
    turns = 32768 / (2 * math.pi * PERIODS)
    # The bounds are fractional dimensions, rounded outwards; frequency falls with them.
    low = int((turns > 32).sum()) - 1
    high = int((turns >= 1).sum())
    assert (low, high) == (23, 40)
    ramp = np.clip((np.arange(HEAD_DIM // 2) - low) / (high - low), 0, 1)
    expected = (1 - ramp) / PERIODS + ramp / (4 * PERIODS)
    yarn = yarn_of(CARD)
    np.testing.assert_allclose(stretched(yarn), expected, rtol=3e-7)
    assert yarn.angle_scale == pytest.approx(0.1 * math.log(4) + 1, rel=1e-12)


def test_the_ends_of_the_ramp_may_stay_fractional():
    def ramped(truncate: bool) -> np.ndarray:
        hf = CARD | {"rope_scaling": {"type": "yarn", **YARN, "truncate": truncate}}
        ratio = stretched(yarn_of(hf)) * PERIODS
        return np.flatnonzero((ratio < 0.9999) & (ratio > 0.2501))

    assert list(ramped(True)) == list(range(24, 40))
    assert list(ramped(False)) == list(range(24, 40))
    whole, fractional = (
        stretched(yarn_of(CARD | {"rope_scaling": {"type": "yarn", **YARN, "truncate": each}}))
        for each in (True, False)
    )
    assert (whole != fractional)[24:40].all()


@pytest.mark.parametrize(
    ("given", "scale"),
    [
        ({"attention_factor": 1.25}, 1.25),
        ({"attention_factor": 1.25, "mscale": 1.0, "mscale_all_dim": 0.5}, 1.25),
        ({"mscale": 2.0}, 0.1 * math.log(4) + 1),  # both or none
        (
            {"mscale": 2.0, "mscale_all_dim": 0.5},
            (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1),
        ),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_what_cosines_and_sines_are_multiplied_by(given, scale):
    yarn = yarn_of(CARD | {"rope_scaling": {"type": "yarn", **YARN, **given}})
    assert yarn.angle_scale == pytest.approx(scale, rel=1e-12)
    positions = jnp.asarray([[0, 5, 70_000]], jnp.int32)
    cos, sin = rope_angles(positions, HEAD_DIM, THETA, yarn)
    np.testing.assert_allclose(cos**2 + sin**2, np.full(cos.shape, scale**2), rtol=1e-5)


def _sweep() -> list[dict[str, Any]]:
    """Settings of a rope section, and of the top level beside it."""
    rope = {
        "factor": (1.0, 2.5, None),
        "original_max_position_embeddings": (4096, 32768),
        "beta_fast": (None, 8),
        "truncate": (True, False),
        "mscale": (None, 0.7),
        "mscale_all_dim": (None, 1.0),
    }
    sections = [
        dict(zip(rope, values, strict=True)) for values in itertools.product(*rope.values())
    ]
    tops = [{}, {"original_max_position_embeddings": 2048}]
    return [
        HF
        | top
        | {"head_dim": head_dim, "rope_theta": theta, "max_position_embeddings": 40960}
        | {"rope_scaling": {"rope_type": "yarn", **section}}
        for section, top, head_dim, theta in itertools.product(
            sections, tops, (64, 128), (1e4, 5e6)
        )
    ]


@pytest.mark.slow
def test_transformers_has_the_same_frequencies_whatever_is_set():
    pytest.importorskip("torch")
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for hf in _sweep():
        config = config_from_hf(hf)
        assert config.yarn is not None
        theirs = transformers.AutoConfig.for_model(**copy.deepcopy(hf))
        frequencies, scale = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
        exponents = np.arange(0, config.head_dim, 2) / config.head_dim
        periods = np.power(config.rope_theta, exponents).astype(np.float32)
        # Two units in the last place: torch takes its powers in fp32.
        np.testing.assert_allclose(
            config.yarn.stretch(periods, config.rope_theta), frequencies.numpy(), rtol=2.5e-7
        )
        assert config.yarn.angle_scale == pytest.approx(scale, rel=1e-12)
