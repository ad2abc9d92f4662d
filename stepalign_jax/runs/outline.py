# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint before its weights are read: all that can be refused by then, is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stepalign_jax.config.schema import PromptsConfig
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.tokenizer import load_tokenizer, stop_ids
from stepalign_jax.huggingface.weights import load_params
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import abstract_params
from stepalign_jax.parallel.mesh import param_shardings
from stepalign_jax.sampling.engine import Engine


@dataclass(frozen=True)
class Outline:
    """What a checkpoint's small files say, and where its weights will lie.

    Attributes:
      directory: its files.
      model_config: sizes.
      dtype: of computation, and of the weights on the devices.
      roles: the run's prompts under its tokenizer.
      stops: ids that end a completion.
      mesh: its devices.
      shardings: of its params on them.
    """

    directory: Path
    model_config: Qwen3Config
    dtype: Any
    roles: Roles
    stops: tuple[int, ...]
    mesh: jax.sharding.Mesh
    shardings: Any


def outline(
    path: str, compute_dtype: str, mesh: jax.sharding.Mesh, prompts: PromptsConfig
) -> Outline:
    """Reads the small files of the checkpoint that `path` means.

    Raises:
      UserError: it cannot be had, its files are not to be used, or its sizes do not fit the
        mesh.
    """
    directory = resolve_checkpoint(path)
    model_config = read_sizes(directory)
    tokenizer = load_tokenizer(directory)
    return Outline(
        directory=directory,
        model_config=model_config,
        dtype=jnp.dtype(compute_dtype),
        roles=Roles(tokenizer, prompts),
        stops=stop_ids(tokenizer, directory),
        mesh=mesh,
        shardings=param_shardings(mesh, abstract_params(model_config)),
    )


def load_weights(known: Outline) -> dict[str, Any]:
    """Returns the params, on their devices in the compute dtype.

    Raises:
      UserError: the files lack something, hold more, or cannot be read.
    """
    return load_params(
        known.directory, known.model_config, dtype=known.dtype, shardings=known.shardings
    )


def make_engine(known: Outline, lora: LoraSpec | None) -> Engine:
    """Returns what samples from the checkpoint, or from it with an adapter."""
    pad_id = known.roles.tokenizer.pad_token_id
    pad_id = known.stops[0] if pad_id is None else pad_id
    return Engine(known.model_config, known.dtype, lora, known.stops, pad_id)
