# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What counts as a number in a checkpoint's JSON files.

In Python a bool is an int too; in these files it never stands for a number. Whole numbers are
int32 on the devices, others float32: what is beyond is a slip of the pen.
"""

from typing import Any, TypeGuard

END_OF_INT32, END_OF_FLOAT32 = 2**31, 3e38


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number of at most 31 bits, of either sign."""
    return _is(value, int) and abs(value) < END_OF_INT32


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number that float32 can hold."""
    return _is(value, int | float) and abs(value) < END_OF_FLOAT32


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
