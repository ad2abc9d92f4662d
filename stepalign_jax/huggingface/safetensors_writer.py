# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Writing safetensors files, in shards under a size limit, a few rows at a time.

The library's `save_file` needs all tensors of a shard in memory, gigabytes of them; here one
piece of one tensor is enough.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory

from stepalign_jax.base.files import atomic_file, write_json
from stepalign_jax.huggingface.safetensors_files import DTYPES, INDEX

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorSpec(NamedTuple):
    """Shape, as the file has it, and dtype, one of the values of DTYPES."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


# Yields the values of a tensor in the file's order, in contiguous pieces of any size.
Pieces = Callable[[str], Iterator[np.ndarray]]


def write_tensors(
    directory: Path, tensors: Mapping[str, TensorSpec], pieces: Pieces, *, max_shard_bytes: int
) -> None:
    """Writes model.safetensors, or numbered shards and their index where that is too large.

    Args:
      directory: an existing directory.
      tensors: in the order in which they are written.
      pieces: asked once for each tensor.
      max_shard_bytes: of tensors in one file; a larger tensor has a file of its own.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda spec: spec.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for name, members in split.filename_to_tensors.items():
        with atomic_file(directory / name) as file:
            file.write(header_bytes({member: tensors[member] for member in members}))
            for member in members:
                for piece in pieces(member):
                    file.write(piece.view(np.uint8).data)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(directory / INDEX, index)


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
