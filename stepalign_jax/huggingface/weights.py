# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights in the Hugging Face layout: config.json beside safetensors, single or sharded.

Strict both ways: a tensor that is missing, left over or misshapen is refused by name before
any data is read. PyTorch is not involved.
"""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import write_json
from stepalign_jax.base.progress import waiting
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.huggingface.config import CONFIG, config_to_hf, read_sizes
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.names import (
    TensorPlace,
    param_shapes,
    tensor_name,
    tensor_places,
)
from stepalign_jax.huggingface.safetensors_files import (
    DTYPES,
    TensorEntry,
    read_tensor,
    some,
    tensor_entries,
)
from stepalign_jax.huggingface.safetensors_writer import TensorSpec, write_tensors
from stepalign_jax.huggingface.streaming import empty_leaf, place_tensor, read_layer
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import abstract_params
from stepalign_jax.parallel.mesh import make_mesh, param_shardings

Tree = dict[str, Any]

_ROWS = 64  # of a kernel that are transposed at a time; a few cache lines wide
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def check_tensors(directory: Path, config: Qwen3Config) -> dict[str, TensorEntry]:
    """The files' tensors by name, compared with the config; reads headers only.

    Raises:
      UserError: a file is damaged, or a tensor is missing, left over, misshapen or of a
        dtype that is not read; it names which.
    """
    entries, places = tensor_entries(directory), tensor_places(config)
    found = dict(entries)
    if config.tie_word_embeddings and _HEAD in found:
        _check_tied_header(found.pop(_HEAD), found.get(_EMBEDDING))
    _refuse_names(directory, set(found), set(places))
    for name, entry in found.items():
        if entry.shape != places[name].file_shape:
            raise UserError(
                f"{entry} has shape {list(entry.shape)} but config.json asks for "
                f"{list(places[name].file_shape)}: the files and config.json must be of the "
                "same Qwen3 checkpoint."
            )
        if entry.dtype not in DTYPES:
            raise UserError(
                f"{entry} is {entry.dtype}: convert the checkpoint to one of {some(DTYPES)}."
            )
    return entries


@waiting("reading weights")
def load_params(directory: Path, config: Qwen3Config, *, dtype: Any, shardings: Tree) -> Tree:
    """The stacked params, read tensor by tensor onto their devices.

    Each process reads only what its own devices hold. Beside the params, host memory holds
    one tensor at a time in `dtype`, and some rows of it in the file's dtype. On a CPU, whose
    memory is the host's, it holds that tensor's copy on the device too.

    Args:
      directory: config.json beside safetensors.
      config: `read_sizes(directory)`.
      dtype: of every leaf, or None for the files' own.
      shardings: a NamedSharding per leaf (`param_shardings`), not cutting the layers.

    Raises:
      UserError: a tensor is missing, left over, misshapen, not a number or unreadable; it
        names which. Names and shapes are checked before data is read.
    """
    entries, places = check_tensors(directory, config), tensor_places(config)
    if dtype is None:
        _refuse_mixed_dtypes(entries, places)
    if config.tie_word_embeddings and _HEAD in entries:
        _check_tied_copy(entries[_HEAD], entries[_EMBEDDING])
    targets: dict[Any, Any] = flax.traverse_util.flatten_dict(shardings)
    leaves: dict[Any, jax.Array] = {}
    # Large ones first: the tensor beside the params is then a small one when they are whole.
    for name, place in sorted(places.items(), key=lambda item: -math.prod(item[1].shape)):
        entry, target = entries[name], targets[place.path]
        as_dtype = jnp.dtype(DTYPES[entry.dtype] if dtype is None else dtype)
        if place.layer is not None and place.path not in leaves:
            leaves[place.path] = empty_leaf((config.num_layers, *place.shape), as_dtype, target)
        leaf = place_tensor(entry, place, target, as_dtype, leaves.pop(place.path, None))
        # Waits, or reading would run ahead of copying and tensors would pile up.
        leaves[place.path] = jax.block_until_ready(leaf)
    return flax.traverse_util.unflatten_dict(leaves)


def load_model(path: str) -> tuple[Qwen3Config, Tree]:
    """Config and params of a checkpoint on one device, in the dtype of the files.

    Args:
      path: what `resolve_checkpoint` takes.
    """
    directory = resolve_checkpoint(path)
    config = read_sizes(directory)
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), jax.local_devices()[:1])
    shardings = param_shardings(mesh, abstract_params(config))
    return config, load_params(directory, config, dtype=None, shardings=shardings)


@waiting("writing weights")
def write_model(
    directory: Path, config: Qwen3Config, params: Tree, *, max_shard_bytes: int
) -> None:
    """Writes config.json and the weights; each leaf keeps its dtype, bit for bit.

    Beside `params`, memory holds one tensor at a time. Tokenizer files are the caller's, and
    so is a directory that appears whole or not at all (`atomic_directory`).

    Args:
      directory: an existing directory.
      config: sizes of the model.
      params: the stacked form, of jax.Arrays that this process can address, or of NumPy's.
      max_shard_bytes: where the weights are larger, they are cut into files of this size.

    Raises:
      ValueError: `params` are not those of `config`.
    """
    leaves: dict[Any, Any] = flax.traverse_util.flatten_dict(params)
    if {path: leaf.shape for path, leaf in leaves.items()} != param_shapes(config):
        raise ValueError("the params do not have the names and shapes that the config asks for")
    places = dict(
        sorted(tensor_places(config).items(), key=lambda item: _reading_order(item[0]))
    )
    specs = {
        name: TensorSpec(place.file_shape, jnp.dtype(leaves[place.path].dtype))
        for name, place in places.items()
    }
    write_tensors(
        directory,
        specs,
        lambda name: _pieces(leaves[places[name].path], places[name]),
        max_shard_bytes=max_shard_bytes,
    )
    dtype = str(leaves[("embedding",)].dtype)
    write_json(directory / CONFIG, config_to_hf(config) | {"dtype": dtype})


def _refuse_names(directory: Path, found: set[str], expected: set[str]) -> None:
    parts = []
    if expected - found:
        parts.append(f"lack {some(expected - found)}")
    if found - expected:
        parts.append(f"hold {some(found - expected)}, which config.json does not ask for")
    if parts:
        raise UserError(
            f"the weights in {directory} {' and '.join(parts)}: the files and config.json must "
            "be of the same Qwen3 checkpoint."
        )


def _refuse_mixed_dtypes(
    entries: dict[str, TensorEntry], places: dict[str, TensorPlace]
) -> None:
    for name, place in places.items():
        first = entries[tensor_name(place.path, None if place.layer is None else 0)]
        if entries[name].dtype != first.dtype:
            raise UserError(
                f"{entries[name]} is {entries[name].dtype}, in layer 0 it is {first.dtype}: "
                "convert the checkpoint to one dtype."
            )


def _check_tied_header(head: TensorEntry, embedding: TensorEntry | None) -> None:
    """Some tied checkpoints store the head as well; then it must be the embedding itself."""
    if embedding is not None and head[2:4] != embedding[2:4]:
        raise _tied_copy_differs(head)


def _check_tied_copy(head: TensorEntry, embedding: TensorEntry) -> None:
    for start in range(0, head.shape[0], 1024):
        box = (slice(start, min(start + 1024, head.shape[0])), slice(0, head.shape[1]))
        read = functools.partial(
            read_tensor, box=box, dtype=DTYPES[head.dtype], transpose=False
        )
        if not np.array_equal(read(head), read(embedding)):
            raise _tied_copy_differs(head)


def _tied_copy_differs(head: TensorEntry) -> UserError:
    return UserError(
        f"config.json ties the embeddings, but {head} differs from {_EMBEDDING}: set "
        "tie_word_embeddings to false."
    )


def _pieces(leaf: Any, place: TensorPlace) -> Iterator[np.ndarray]:
    """The values of one tensor in the file's order, transposed a few rows at a time."""
    if place.layer is not None:
        leaf = (
            leaf[place.layer] if isinstance(leaf, np.ndarray) else read_layer(leaf, place.layer)
        )
    tensor = np.asarray(leaf)
    by_row = tensor.T if place.transposed else tensor
    for start in range(0, len(by_row), _ROWS):
        yield np.ascontiguousarray(by_row[start : start + _ROWS])


def _reading_order(name: str) -> list[int | str]:
    """Sorts names layer by layer, with layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in name.split(".")]
