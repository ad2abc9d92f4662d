# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Configs as JSON, and in which keys two of them differ."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from stepalign_jax.config.schema import Config


def config_json(config: Config) -> Any:
    """The content of config.json."""
    # Through JSON, so that tuples compare with the lists that they become in the file.
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_differences(
    saved: Any, resolved: Any, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yields (dotted key, saved value, resolved value) in the order of the schema."""
    if not (isinstance(saved, dict) and isinstance(resolved, dict)):
        # 1 and 1.0 are one value; 1 and true are not.
        if saved != resolved or isinstance(saved, bool) != isinstance(resolved, bool):
            yield prefix.removesuffix("."), json.dumps(saved), json.dumps(resolved)
        return
    for key in [*resolved, *(key for key in saved if key not in resolved)]:
        if key in saved and key in resolved:
            yield from config_differences(saved[key], resolved[key], f"{prefix}{key}.")
        else:
            sides = [json.dumps(d[key]) if key in d else "(absent)" for d in (saved, resolved)]
            yield prefix + key, sides[0], sides[1]
