# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Hashes of what a checkpoint directory holds, by part, so that a change of any is noticed.

Files up to 64 MiB count byte for byte. Of a larger one count its size, its first MiB and 256
blocks of 64 KiB, spread evenly; of safetensors also the header, and 64 KiB at both ends of each
tensor. An edit that misses all of them is not noticed. Times of files never count, so a copy is
the same.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from stepalign_jax.base.hashing import content_hash
from stepalign_jax.huggingface.generation import read_generation_settings
from stepalign_jax.huggingface.safetensors_files import read_raw_header

_WHOLE_BYTES = 64 * 2**20
_HEAD_BYTES = 2**20
_NUM_BLOCKS, _BLOCK_BYTES = 256, 2**16

_PARTS = {
    "weights": ("*.safetensors",),
    "config": ("config.json",),
    "tokenizer": (
        *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"),
        *("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"),
    ),
    "chat template": ("*.jinja", "chat_template.json"),
}


def fingerprint_checkpoint(directory: Path) -> dict[str, str]:
    """Returns a hash for weights, config, tokenizer, chat template and stop ids.

    A chat template or stop id inside tokenizer_config.json counts as part of the tokenizer. Of
    generation_config.json its stop ids count alone: a run draws as its config says.

    Raises:
      UserError: generation_config.json or a safetensors file is damaged.
    """
    files = {
        part: _digest(path for pattern in patterns for path in sorted(directory.glob(pattern)))
        for part, patterns in _PARTS.items()
    }
    return files | {"stop ids": content_hash(read_generation_settings(directory).stop_ids)}


def fingerprint_adapter(directory: Path) -> str:
    """Returns a hash of an adapter in PEFT's layout."""
    return _digest(sorted(directory.glob("adapter_*")))


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_BYTES:
                digest.update(file.read())
                continue
            digest.update(file.read(_HEAD_BYTES))
            for start, length in _blocks(path, size):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()[:16]


def _blocks(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """(start, bytes) of what counts of a large file, beside its beginning."""
    for block in range(_NUM_BLOCKS):
        yield block * (size - _BLOCK_BYTES) // (_NUM_BLOCKS - 1), _BLOCK_BYTES
    if path.suffix == ".safetensors":
        header_bytes, header = read_raw_header(path)
        yield 8, header_bytes
        for name in sorted(header.keys() - {"__metadata__"}):
            start, end = (8 + header_bytes + offset for offset in header[name]["data_offsets"])
            length = min(_BLOCK_BYTES, end - start)
            yield start, length
            yield end - length, length
