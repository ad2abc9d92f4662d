# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings, and YaRN's stretching of their frequencies.

YaRN (arXiv:2309.00071) extends the context beyond that of training:

    dimension         0 .. low       low .. high            high .. Dh / 2
    turns in the      more than      between                fewer than
    original context  beta_fast                             beta_slow
    frequency         kept           a linear ramp between  divided by `factor`

The arithmetic follows transformers, so that a config.json means the same here and there.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """How rotary frequencies are stretched.

    Attributes:
      factor: the new context divided by the original one, at least 1.
      original_max_positions: the context before the stretching.
      beta_fast: turns in the original context above which a frequency is kept.
      beta_slow: turns below which a frequency is divided by `factor`.
      truncate: whether the ends of the ramp are rounded outwards to whole dimensions.
      attention_factor: multiplies cosines and sines; None derives it from `factor`.
      mscale, mscale_all_dim: enter that derivation if both are given; else None.
    """

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None

    @property
    def max_positions(self) -> int:
        """The new context."""
        return int(self.factor * self.original_max_positions)

    @property
    def angle_scale(self) -> float:
        """Multiplies cosines and sines, so q.k grows by its square: attention gets sharper."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._growth(self.mscale) / self._growth(self.mscale_all_dim)
        return self._growth(1.0)

    def _growth(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def stretch(self, periods: np.ndarray, theta: float) -> np.ndarray:
        """Frequencies [Dh / 2] fp32 from `periods` [Dh / 2] fp32, theta**(2i / Dh).

        Each step is rounded to fp32 as transformers rounds it: at position 100,000 one bit
        of a frequency is a visible angle.
        """
        low, high = self._ramp(2 * len(periods), theta)
        # As transformers: a ramp of no width would divide by zero.
        high = high + 0.001 if low == high else high
        dims = np.arange(len(periods), dtype=np.float32)
        ramp = np.clip((dims - np.float32(low)) / np.float32(high - low), 0, 1)
        kept = np.float32(1) - ramp
        stretched = np.float32(1) / (np.float32(self.factor) * periods)
        return stretched * (np.float32(1) - kept) + np.float32(1) / periods * kept

    def _ramp(self, head_dim: int, theta: float) -> tuple[float, float]:
        """Dimensions between which frequencies go from kept to divided."""

        def dimension(num_turns: float) -> float:
            """The (fractional) dimension that turns this often in the original context."""
            turns = self.original_max_positions / (num_turns * 2 * math.pi)
            return head_dim * math.log(turns) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, head_dim - 1)


def rope_angles(
    positions: jax.Array, head_dim: int, theta: float, yarn: YarnScaling | None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles, always fp32.

    Frequencies are constants made on the host: an accelerator's own `pow` may differ in
    the last bit, which position 30,000 turns into a visible angle.

    Args:
      positions: [1 or B, T] int32.
      head_dim: Dh.
      theta: the base of the geometric series of frequencies.
      yarn: how the frequencies are stretched, or None.

    Returns:
      Two arrays [1 or B, T, 1, Dh / 2] that broadcast over heads.
    """
    # Exponents rounded to fp32, their power taken in fp64 and rounded: as PyTorch does it.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    exponents = exponents.astype(np.float64)
    periods = np.power(float(theta), exponents).astype(np.float32)
    frequencies = np.float32(1) / periods if yarn is None else yarn.stretch(periods, theta)
    angles = (
        positions[:, :, None, None].astype(jnp.float32)
        * jnp.asarray(frequencies)[None, None, None]
    )
    if yarn is None:
        return jnp.cos(angles), jnp.sin(angles)
    scale = np.float32(yarn.angle_scale)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`x` [B, T, heads, Dh] rotated, half-split: dimension i pairs with i + Dh / 2.

    Computed in fp32 and returned in the dtype of `x`; `cos` and `sin` come from
    `rope_angles`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
