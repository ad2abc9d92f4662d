# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Hashes of what a checkpoint directory holds, by part, so that a change of any is noticed.

Files up to 64 MiB count byte for byte. Of a larger one count its size, its first MiB (for
safetensors the header: names, shapes and places) and 256 blocks of 64 KiB, spread evenly: an
edit that misses all of them is not noticed. Times of files never count, so a copy is the same.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

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
    "stop ids": ("generation_config.json",),
}


def fingerprint_checkpoint(directory: Path) -> dict[str, str]:
    """Returns a hash for weights, config, tokenizer, chat template and stop ids.

    A chat template inside tokenizer_config.json counts as part of the tokenizer.
    """
    return {
        part: _digest(path for pattern in patterns for path in sorted(directory.glob(pattern)))
        for part, patterns in _PARTS.items()
    }


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
            for block in range(_NUM_BLOCKS):
                file.seek(block * (size - _BLOCK_BYTES) // (_NUM_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]
