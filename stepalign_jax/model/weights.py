# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the Hugging Face layout: config.json beside safetensors, single or sharded.

Strict both ways: a tensor that the config does not ask for, or that it asks for and the
files lack, or that has another shape, is refused by name. PyTorch is not involved.
"""

import importlib.resources
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import huggingface_hub
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stepalign_jax.base.errors import UserError
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.qwen3 import abstract_params

Tree = dict[str, Any]
Shapes = dict[tuple[str, ...], tuple[int, ...]]

_PACKAGED = "packaged:"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model"]
_HUB_TIMEOUT_SECS = 5.0
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = ("float32", "bfloat16", "float16")

# Path below `layers` -> name below `model.layers.<i>`.
_LAYER_NAMES = {
    ("attention_norm", "scale"): "input_layernorm",
    ("mlp_norm", "scale"): "post_attention_layernorm",
    ("attention", "q_norm", "scale"): "self_attn.q_norm",
    ("attention", "k_norm", "scale"): "self_attn.k_norm",
    ("attention", "q_proj", "kernel"): "self_attn.q_proj",
    ("attention", "k_proj", "kernel"): "self_attn.k_proj",
    ("attention", "v_proj", "kernel"): "self_attn.v_proj",
    ("attention", "o_proj", "kernel"): "self_attn.o_proj",
    ("attention", "q_proj", "bias"): "self_attn.q_proj",
    ("attention", "k_proj", "bias"): "self_attn.k_proj",
    ("attention", "v_proj", "bias"): "self_attn.v_proj",
    ("mlp", "gate_proj", "kernel"): "mlp.gate_proj",
    ("mlp", "up_proj", "kernel"): "mlp.up_proj",
    ("mlp", "down_proj", "kernel"): "mlp.down_proj",
}
_TOP_NAMES = {
    ("embedding",): "model.embed_tokens",
    ("lm_head",): "lm_head",
    ("final_norm", "scale"): "model.norm",
}


class Slot(NamedTuple):
    """Where a tensor of the files goes: a leaf of params, and which layer of it, if any."""

    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]  # in our orientation

    @property
    def transposed(self) -> bool:
        """Whether the file holds it [out, in], as torch.nn.Linear does."""
        return self.path[-1] == "kernel"


def resolve_checkpoint(path: str) -> Path:
    """The local directory that `path` means; a hub id is downloaded (or found in its cache).

    Args:
      path: "packaged:<name>", a directory, or a hub id `owner/name`.

    Raises:
      UserError: it is none of these, or the download failed; it says how to get the files.
    """
    if path.startswith(_PACKAGED):
        return _packaged(path.removeprefix(_PACKAGED))
    if path and Path(path).is_dir():
        return Path(path)
    if not _HUB_ID.fullmatch(path):
        raise UserError(
            f"model.path {path!r} is not a directory, nor a hub id like Qwen/Qwen3-0.6B: give "
            "the directory that holds config.json and the safetensors files."
        )
    try:
        directory = huggingface_hub.snapshot_download(
            path, allow_patterns=_HUB_FILES, etag_timeout=_HUB_TIMEOUT_SECS
        )
    except Exception as error:  # the hub client's errors share no base; all mean "not had"
        raise UserError(
            f"model.path {path!r} is not a local directory and could not be fetched from the "
            f"hub ({type(error).__name__}): on a machine with network run `hf download {path} "
            "--local-dir DIRECTORY`, then give that directory as model.path."
        ) from error
    return Path(str(directory))


def _packaged(name: str) -> Path:
    root = Path(str(importlib.resources.files("stepalign_jax"))) / "checkpoints"
    names = sorted(entry.name for entry in root.glob("*") if entry.is_dir())
    if name not in names:
        raise UserError(
            f"model.path {_PACKAGED}{name} is not in this package: choose one of "
            f"{', '.join(_PACKAGED + known for known in names) or 'none'}."
        )
    return root / name


def load_config(directory: Path) -> Qwen3Config:
    """The config of a checkpoint directory; UserError where config.json is missing or bad."""
    return Qwen3Config.from_hf(_read_json(directory / "config.json"))


def load_model(path: str) -> tuple[Qwen3Config, Tree]:
    """Config and params (stacked form) of a checkpoint.

    The leaves are NumPy arrays in host memory, in the dtype of the files: place them once
    (`jax.device_put(params, param_shardings(...))`) before handing them to jitted functions.

    Args:
      path: what `resolve_checkpoint` takes.

    Raises:
      UserError: something is missing, left over, misshapen or unreadable; it names what.
    """
    directory = resolve_checkpoint(path)
    config = load_config(directory)
    slots = _slots(config, _param_shapes(config))
    files = _tensor_files(directory)
    tied_copy = "lm_head.weight" if config.tie_word_embeddings else None
    _refuse_names(directory, set(files) - {tied_copy}, set(slots))
    leaves: dict[tuple[str, ...], np.ndarray] = {}
    for name, tensor in _read_tensors({name: files[name] for name in slots}):
        _place(leaves, name, tensor, slots[name], config.num_layers)
    if tied_copy in files:
        _check_tied_copy(files, leaves[("embedding",)])
    return config, flax.traverse_util.unflatten_dict(leaves)


def save_model(path: str | os.PathLike[str], config: Qwen3Config, params: Tree) -> None:
    """Writes config.json and model.safetensors; each leaf keeps its dtype, bit for bit.

    Args:
      path: a directory, made where it does not exist. Tokenizer files are the caller's.
      config: sizes of the model.
      params: the stacked form.

    Raises:
      ValueError: `params` are not those of `config`.
    """
    leaves: dict[Any, Any] = flax.traverse_util.flatten_dict(params)
    shapes = _param_shapes(config)
    if {key: leaf.shape for key, leaf in leaves.items()} != shapes:
        raise ValueError("the params do not have the names and shapes that the config asks for")
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, slot in _slots(config, shapes).items():
        leaf = leaves[slot.path]
        tensor = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
        tensors[name] = np.ascontiguousarray(tensor.T if slot.transposed else tensor)
    # Written aside and renamed, so that a reader never meets half a file.
    save_file(tensors, directory / f"{_SINGLE}.part", metadata={"format": "pt"})
    os.replace(directory / f"{_SINGLE}.part", directory / _SINGLE)
    hf = config.to_hf() | {"dtype": str(leaves[("embedding",)].dtype)}
    (directory / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")


def _param_shapes(config: Qwen3Config) -> Shapes:
    """Shape of every leaf of the stacked params, by path."""
    flat: dict[Any, Any] = flax.traverse_util.flatten_dict(abstract_params(config))
    return {path: box.value.shape for path, box in flat.items()}


def _slots(config: Qwen3Config, shapes: Shapes) -> dict[str, Slot]:
    """Hugging Face tensor name -> Slot, for exactly the tensors of a config."""
    slots = {}
    for path, shape in shapes.items():
        if path[0] != "layers":
            slots[f"{_TOP_NAMES[path]}.weight"] = Slot(path, None, shape)
            continue
        for i in range(config.num_layers):
            kind = "bias" if path[-1] == "bias" else "weight"
            name = f"model.layers.{i}.{_LAYER_NAMES[path[1:]]}.{kind}"
            slots[name] = Slot(path, i, shape[1:])
    return slots


def _read_json(path: Path) -> Tree:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: model.path must hold a Hugging Face checkpoint."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: fetch it again.")
    return content


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it, read from the files and held against the index."""
    if (directory / _SINGLE).is_file():
        return dict.fromkeys(_names(directory / _SINGLE), directory / _SINGLE)
    if not (directory / _INDEX).is_file():
        raise UserError(f"{directory} has neither {_SINGLE} nor {_INDEX}: fetch the weights.")
    index = _read_json(directory / _INDEX).get("weight_map", {})
    shards = {name: directory / name for name in sorted(set(index.values()))}
    absent = [name for name, shard in shards.items() if not shard.is_file()]
    if absent:
        raise UserError(
            f"{directory} lacks {_some(absent)}, named in {_INDEX}: fetch it again."
        )
    found = {(name, file) for file, shard in shards.items() for name in _names(shard)}
    astray = {name for name, _ in found ^ set(index.items())}
    if astray:
        raise UserError(
            f"{directory / _INDEX} and the files that it names disagree on where "
            f"{_some(astray)} is: fetch the checkpoint again."
        )
    return {name: shards[file] for name, file in index.items()}


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} is not a whole safetensors file ({error}): fetch it again."
        ) from error


def _read_tensors(files: dict[str, Path]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) pairs, one file open at a time."""
    for file in sorted(set(files.values())):
        with safe_open(file, framework="numpy") as tensors:
            for name in (name for name, holder in files.items() if holder == file):
                yield name, tensors.get_tensor(name)


def _refuse_names(directory: Path, found: set[str], expected: set[str]) -> None:
    parts = []
    if expected - found:
        parts.append(f"lack {_some(expected - found)}")
    if found - expected:
        parts.append(f"hold {_some(found - expected)}, which config.json does not ask for")
    if parts:
        raise UserError(
            f"the weights in {directory} {' and '.join(parts)}: the files and config.json must "
            "be of the same Qwen3 checkpoint."
        )


def _place(
    leaves: dict[tuple[str, ...], np.ndarray],
    name: str,
    tensor: np.ndarray,
    slot: Slot,
    num_layers: int,
) -> None:
    """Writes `tensor` into its leaf, which is allocated when its first tensor arrives."""
    expected = slot.shape[::-1] if slot.transposed else slot.shape
    if tensor.shape != expected:
        raise UserError(
            f"{name} has shape {list(tensor.shape)} but config.json asks for {list(expected)}: "
            "the files and config.json must be of the same Qwen3 checkpoint."
        )
    if tensor.dtype.name not in _DTYPES:
        raise UserError(
            f"{name} is {tensor.dtype.name}: convert it to one of {_some(_DTYPES)}."
        )
    oriented = tensor.T if slot.transposed else tensor
    if slot.layer is None:
        leaves[slot.path] = oriented
        return
    if slot.path not in leaves:
        leaves[slot.path] = np.empty((num_layers, *slot.shape), tensor.dtype)
    leaf = leaves[slot.path]
    if leaf.dtype != tensor.dtype:
        raise UserError(
            f"{name} is {tensor.dtype.name}, other layers have {leaf.dtype.name}: "
            "convert the checkpoint to one dtype."
        )
    leaf[slot.layer] = oriented


def _check_tied_copy(files: dict[str, Path], embedding: np.ndarray) -> None:
    """Some tied checkpoints store the head as well; then it must be the embedding itself."""
    ((_, head),) = _read_tensors({"lm_head.weight": files["lm_head.weight"]})
    if head.dtype != embedding.dtype or head.tobytes() != embedding.tobytes():
        raise UserError(
            "config.json ties the embeddings, but lm_head.weight differs from "
            "model.embed_tokens.weight: set tie_word_embeddings to false."
        )


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 4} more" if len(ordered) > 4 else ""
    return ", ".join(ordered[:4]) + more
