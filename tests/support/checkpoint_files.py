# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Small checkpoint directories, written with the safetensors library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from support.goldens import CASES

from stepalign_jax.base.files import atomic_directory
from stepalign_jax.huggingface.weights import write_model
from stepalign_jax.model.config import Qwen3Config

HF = CASES["untied_ratio4"]["hf"]
TIED_HF = CASES["tied_ratio2"]["hf"]
KERNEL = "model.layers.1.self_attn.k_proj.weight"
INDEX = "model.safetensors.index.json"


def write(directory: Path, hf: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(hf))
    save_file(tensors, directory / "model.safetensors")
    return str(directory)


def write_sharded(directory: Path, tensors: dict[str, np.ndarray]) -> dict[str, str]:
    """Two shards and their index; returns the weight map."""
    (directory / "config.json").write_text(json.dumps(HF))
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, directory / file)
    weight_map = {name: file for file, members in parts.items() for name in members}
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index))


def save_model(
    target: Path, config: Qwen3Config, params: Any, *, max_shard_bytes: int, overwrite: bool
) -> None:
    """A directory with config and weights, as a command makes it: whole or not at all."""
    with atomic_directory(target, overwrite=overwrite) as partial:
        write_model(partial, config, params, max_shard_bytes=max_shard_bytes)
