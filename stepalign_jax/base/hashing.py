# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A hash that is the same on every machine and in every process."""

import hashlib
import json
from typing import Any


def stable_hash32(text: str) -> int:
    """Returns 32 bits of BLAKE2b of `text` (Python's own hash is salted per process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def digest(*parts: Any) -> str:
    """SHA-256 of values that JSON can hold; equal values have equal hashes everywhere."""
    return _sha256(parts)


def content_hash(value: Any) -> str:
    """16 hexadecimal digits that stand for a JSON value."""
    return _sha256(value)[:16]


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False)  # ASCII, so any text encodes
    return hashlib.sha256(text.encode()).hexdigest()
