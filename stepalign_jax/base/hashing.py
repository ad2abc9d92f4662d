# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A hash that is the same on every machine and in every process."""

import hashlib
import json
from typing import Any


def stable_hash32(text: str) -> int:
    """Returns 32 bits of BLAKE2b of `text` (Python's own hash is salted per process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def content_hash(value: Any) -> str:
    """16 hexadecimal digits that stand for a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
