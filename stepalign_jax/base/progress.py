# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Progress bars."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(
    iterable: Iterable[Item] | None = None, *, total: int | None = None, description: str
) -> "tqdm[Item]":
    """Returns a progress bar over `iterable`, or one to update by hand towards `total`.

    It writes nothing where stderr is not a terminal.
    """
    bar: Any = tqdm(
        iterable, total=total, desc=description, disable=None, dynamic_ncols=True
    )  # Any: the stubs type a bar without an iterable apart
    return bar


def advance(bar: "tqdm[Any]") -> Callable[[int], None]:
    """Returns a callback that moves `bar` to the number of items done so far."""

    def move(done: int) -> None:
        bar.update(done - bar.n)

    return move
