# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Completions on disk as they come, so that a stopped evaluation goes on with the same command.

    with kept_beside(result) as kept:
        rollouts = engine.sample(variables, requests, batch_size=8, kept=kept)
        write_json(result, ...)

The file is `result` with `.partial` behind its name: one row per completion, under a key that
holds all that decides it (the weights themselves, the network, the prompt, the address of its
noise, how it is drawn). So a file that other weights or another config left is of no use, and
does no harm. It goes once the result is written.
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.stopping import EXIT_CAN_GO_ON, Stopped
from stepalign_jax.sampling.request import Request


class Completion(NamedTuple):
    """One completion, its stop token included."""

    tokens: list[int]
    logprobs: list[float]


class Kept:
    """The completions in one file; made by `kept_beside`."""

    def __init__(self, path: Path):
        """Reads what is there, and opens the file to add to it.

        Raises:
          OSError: the file cannot be read or written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", newline="\n")
        text = path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):
            self._file.write("\n")  # behind a row that a kill cut short
        self._found = dict(filter(None, map(_read_row, text.splitlines())))
        self.num_added = 0

    def find(self, key: str) -> Completion | None:
        """Returns the completion under a key, if an earlier process has drawn it."""
        return self._found.get(key)

    def add(self, key: str, completion: Completion) -> None:
        """Appends a completion; it is on its way to disk when this returns."""
        # Python's JSON has NaN: whether weights are broken is not for this file to say.
        self._file.write(json.dumps([key, *completion]) + "\n")
        self._file.flush()
        self.num_added += 1

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _read_row(line: str) -> tuple[str, Completion] | None:
    """The key and the completion in a row; None where it is damaged."""
    try:
        key, tokens, logprobs = json.loads(line)
    except ValueError:
        return None
    return key, Completion(tokens, logprobs)


def is_begun(result: Path | None) -> bool:
    """Whether a stopped process has kept completions that lead to `result`."""
    return result is not None and partial_file(result).exists()


def partial_file(result: Path) -> Path:
    """Where the completions are that lead to `result`."""
    return result.with_name(f"{result.name}.partial")


@contextmanager
def kept_beside(result: Path | None) -> Iterator[Kept | None]:
    """Keeps the completions that lead to `result` until the block ends without an exception.

    Args:
      result: the file that the block writes; None keeps nothing. Nor is anything kept where
        the directory cannot be written: then a line says so. Of several processes each keeps
        what all of them draw, and all begin with equal files (`runs/shared.py`).

    Raises:
      Stopped: a signal stopped the block; the words say that the same command goes on.
    """
    if result is None:
        yield None
        return
    path = partial_file(result)
    try:
        kept = Kept(path)
    except OSError as error:
        print(f"note: nothing is kept for a later start: {error}", file=sys.stderr)
        yield None
        return
    try:
        yield kept
    except Stopped as stopped:
        if not kept.num_added:
            raise
        words = f"{stopped}; {path} keeps its completions, and the same command goes on"
        raise Stopped(words, EXIT_CAN_GO_ON) from stopped
    else:
        path.unlink(missing_ok=True)
    finally:
        kept.close()
        if path.exists() and not path.stat().st_size:
            path.unlink()


def request_keys(model: str, variables: Any, requests: Sequence[Request]) -> list[str]:
    """Returns one key per request: equal keys mean equal tokens.

    Args:
      model: all that decides a completion beside the weights and the request, in words.
      variables: the weights.
      requests: what is asked.
    """
    common = hashlib.sha256(f"{model} {weights_digest(variables)}".encode())
    keys = []
    for request in requests:
        own = common.copy()
        own.update(json.dumps([list(request.prompt), request.address, request.params]).encode())
        keys.append(own.hexdigest())
    return keys


def weights_digest(variables: Any) -> str:
    """Returns a digest of values, names, shapes and dtypes, computed where the weights lie."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    names = [f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}" for path, x in leaves]
    sums = np.asarray(_bit_sums([x for _, x in leaves]))
    return hashlib.sha256("\n".join(names).encode() + sums.tobytes()).hexdigest()


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> jax.Array:
    """[leaves] uint32: a sum over the bits of each, mixed with their places.

    Integers, so that no order of summation, and so no sharding, changes it.
    """
    return jnp.stack([_bit_sum(leaf) for leaf in leaves])


def _bit_sum(leaf: jax.Array) -> jax.Array:
    size = leaf.dtype.itemsize * 8
    mixed = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{size}")).astype(jnp.uint32)
    for axis in range(leaf.ndim):
        stride = math.prod(leaf.shape[axis + 1 :]) * 0x9E3779B9 % 2**32
        place = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        mixed = mixed ^ (place * jnp.uint32(stride))
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA6B)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
