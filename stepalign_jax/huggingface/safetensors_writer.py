# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Writing safetensors files, in shards under a size limit, a few rows at a time."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stepalign_jax.huggingface.safetensors_files import DTYPES, INDEX, SINGLE

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorSpec(NamedTuple):
    """Shape, as the file has it, and dtype, one of the values of DTYPES."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


# Yields the values of a tensor in the file's order, in contiguous pieces of any size.
Pieces = Callable[[str], Iterator[np.ndarray]]


def write_tensors(
    directory: Path, tensors: Mapping[str, TensorSpec], pieces: Pieces, *, max_shard_bytes: int
) -> None:
    """Writes model.safetensors, or numbered shards and their index where that is too large.

    Each file is written aside and renamed, so that a reader never meets half a file.

    Args:
      directory: an existing directory.
      tensors: in the order in which they are written.
      pieces: asked once for each tensor, in that order.
      max_shard_bytes: of tensors in one file; a larger tensor has a file of its own.
    """
    shards = shard_names(tensors, max_shard_bytes)
    files = [SINGLE]
    if len(shards) > 1:
        count = len(shards)
        files = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for file, shard in zip(files, shards, strict=True):
        _write_file(directory / file, {name: tensors[name] for name in shard}, pieces)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(spec.nbytes for spec in tensors.values())},
            "weight_map": {
                name: file for file, shard in zip(files, shards, strict=True) for name in shard
            },
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / INDEX).write_text(text, encoding="utf-8")


def shard_names(tensors: Mapping[str, TensorSpec], max_shard_bytes: int) -> list[list[str]]:
    """Names per file: each file is filled in order until the next tensor would not fit."""
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, spec in tensors.items():
        if spec.nbytes > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= spec.nbytes
    return shards


def _write_file(path: Path, tensors: Mapping[str, TensorSpec], pieces: Pieces) -> None:
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        file.write(header_bytes(tensors))
        for name in tensors:
            for piece in pieces(name):
                file.write(piece.view(np.uint8).data)
    os.replace(partial, path)


def header_bytes(tensors: Mapping[str, TensorSpec]) -> bytes:
    """What a file of these tensors begins with; their data follow in the same order."""
    # transformers asks for the format, which names the framework's orientation of weights.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, spec in tensors.items():
        span = [position, position + spec.nbytes]
        position = span[1]
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": span,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text
