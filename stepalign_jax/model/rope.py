# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""YaRN (arXiv:2309.00071): rotary frequencies stretched for a context beyond training's.

Fields and what is done where one is missing follow transformers, so that a `config.json`
means the same here and there.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.errors import UserError

_BETA_FAST, _BETA_SLOW = 32.0, 1.0  # what transformers takes where config.json is silent

# Keys of config.json that are written only where they were given.
_OPTIONAL = ("attention_factor", "mscale", "mscale_all_dim")
_KNOWN = {
    *("rope_type", "rope_theta", "partial_rotary_factor"),
    *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"),
    *_OPTIONAL,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """How rotary frequencies are stretched.

    Attributes:
      factor: how many times the original context, at least 1.
      original_max_positions: positions that the model was trained on before.
      beta_fast: frequencies that turn more often than this in the original context stay.
      beta_slow: those that turn less often are divided by `factor`; a ramp lies between.
      truncate: whether the ends of the ramp are rounded outwards to whole dimensions.
      attention_factor: what cosines and sines are multiplied by; None derives it.
      mscale, mscale_all_dim: replace the derivation from `factor` alone; None for that one.
    """

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None

    @classmethod
    def from_hf(cls, rope: dict[str, Any], max_positions: int) -> "YarnScaling":
        """The scaling that the rope section of a `config.json` describes.

        Args:
          rope: `rope_scaling` or `rope_parameters`.
          max_positions: `max_position_embeddings`. It is the original context where that
            is not given, and gives the factor where that is null.

        Raises:
          UserError: the factor is missing, a value is no number, or a key is unknown.
        """
        unknown = sorted(set(rope) - _KNOWN)
        if unknown or "factor" not in rope:
            wrong = f"has unknown key(s) {', '.join(unknown)}" if unknown else "lacks factor"
            raise UserError(
                f"config.json asks for YaRN, but its rope section {wrong}: write rope_type, "
                "factor and original_max_position_embeddings as the checkpoint's card does."
            )
        original = _number(rope, "original_max_position_embeddings", 1) or max_positions
        factor = _number(rope, "factor", 1)
        return cls(
            factor=float(max_positions / original if factor is None else factor),
            original_max_positions=int(original),
            beta_fast=float(_number(rope, "beta_fast", 0) or _BETA_FAST),
            beta_slow=float(_number(rope, "beta_slow", 0) or _BETA_SLOW),
            truncate=bool(rope.get("truncate", True)),
            **{key: _number(rope, key, 0) for key in _OPTIONAL},  # pyright: ignore[reportArgumentType]
        )

    def to_hf(self) -> dict[str, Any]:
        """The `rope_scaling` that `from_hf` reads back."""
        optional = {key: getattr(self, key) for key in _OPTIONAL}
        return {
            "rope_type": "yarn",
            "factor": self.factor,
            "original_max_position_embeddings": self.original_max_positions,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            **({} if self.truncate else {"truncate": False}),
            **{key: value for key, value in optional.items() if value is not None},
        }

    @property
    def max_positions(self) -> int:
        """The context that the stretched frequencies are meant for."""
        return int(self.factor * self.original_max_positions)

    @property
    def angle_scale(self) -> float:
        """What cosines and sines are multiplied by: it makes attention sharper."""
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


def _number(rope: dict[str, Any], key: str, least: float) -> float | None:
    """The value of a key, None where it is missing or null."""
    value = rope.get(key)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value < math.inf:
        raise UserError(
            f"config.json asks for YaRN with {key} = {value!r}: give a number that is at "
            f"least {least}."
        )
    return value


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
    exponents = (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)).astype(
        np.float64
    )
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
