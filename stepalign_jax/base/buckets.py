# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Few sizes in place of many: a program compiles once per shape, so shapes are rounded up."""


def bucket(length: int, *, smallest: int, per_doubling: int) -> int:
    """`length` rounded up to a size, of which there are `per_doubling` per power of two.

        per_doubling 1      16              32              64
        per_doubling 2      16      24      32      48      64
        per_doubling 4      16  20  24  28  32  40  48  56  64

    Less than a (per_doubling + 1)-th of a size above `smallest` is padding.

    Args:
      length: any number.
      smallest: the first size, a power of two.
      per_doubling: a power of two, at most `smallest`.
    """
    if length <= smallest:
        return smallest
    step = (1 << (length - 1).bit_length()) // (2 * per_doubling)
    return -(-length // step) * step
