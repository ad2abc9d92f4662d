# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters in PEFT's layout: adapter_config.json beside adapter_model.safetensors.

    layers.attention.q_proj.a [L, in, r]    layers.<i>.self_attn.q_proj.lora_A.weight [r, in]
    layers.attention.q_proj.b [L, r, out]   layers.<i>.self_attn.q_proj.lora_B.weight [out, r]

Strict both ways: a setting that would change what the adapter computes and is not done here
is refused by name, and so is a tensor that is missing, left over, misshapen or not finite.
PEFT and PyTorch are not involved.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object, write_json
from stepalign_jax.huggingface.hub import refuse_pointers
from stepalign_jax.huggingface.names import MODULES
from stepalign_jax.huggingface.numbers import is_number
from stepalign_jax.huggingface.safetensors_files import open_safetensors
from stepalign_jax.model.config import PROJECTIONS, Qwen3Config
from stepalign_jax.model.lora import LoraSpec

Tree = dict[str, Any]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_MATRICES = {"a": "lora_A", "b": "lora_B"}
_DTYPES = ("float32", "bfloat16", "float16")

# Keys of adapter_config.json that say nothing about what the finished adapter computes.
_NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",  # of modules_to_save, of which there are none
    "eva_config",  # like the other *_config of initialisations below
    "inference_mode",
    "lora_dropout",  # only while PEFT trains
    "megatron_core",
    "peft_version",
    "qalora_group_size",  # of use_qalora
    "revision",
}
# What these keys may be; any key that is in no list may only be empty, false or null.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    # The others change the base weights beside the adapter.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
_READ = ("r", "lora_alpha", "target_modules", "use_rslora")


class _TensorPlace(NamedTuple):
    """Where a tensor of the file goes."""

    module: str  # attention | mlp
    projection: str
    matrix: str  # a | b
    layer: int
    shape: tuple[int, int]  # as the file holds it


def save_adapter(directory: Path, spec: LoraSpec, lora: Tree, *, base_name: str) -> None:
    """Writes an adapter that `peft.PeftModel.from_pretrained` opens; fp32, bit for bit.

    Args:
      directory: exists; for a target that appears whole or not at all, use
        `base.files.atomic_directory`.
      spec: rank, alpha and targets.
      lora: the stacked adapter, `a` [L, in, r] and `b` [L, r, out].
      base_name: hub id or directory of the base, which PEFT and vLLM read.
    """
    tensors = {}
    for module, projections in lora["layers"].items():
        for projection, pair in projections.items():
            for matrix, stacked in pair.items():
                for layer, values in enumerate(np.asarray(stacked, np.float32)):
                    name = _tensor_name(module, projection, matrix, layer)
                    tensors[name] = np.ascontiguousarray(values.T)
    # Not save_file, which makes a file that only its owner can read.
    (directory / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    write_json(directory / CONFIG, _peft_config(spec, base_name))


def load_adapter(directory: Path, config: Qwen3Config) -> tuple[LoraSpec, Tree]:
    """Reads an adapter that this package or PEFT wrote.

    Args:
      directory: holds adapter_config.json and adapter_model.safetensors.
      config: sizes of the base that it belongs to.

    Returns:
      Its spec, and the stacked adapter as fp32 NumPy arrays. An rsLoRA adapter, which is
      scaled by alpha / sqrt(r), comes with the alpha that gives our alpha / r this value.

    Raises:
      UserError: files are missing or damaged, or ask for what is not done here.
    """
    if directory.is_dir():
        refuse_pointers(directory)
    spec = _read_spec(directory)
    places = dict(_places(spec, config))
    path = directory / WEIGHTS
    layers: Tree = {}
    with open_safetensors(path) as file:
        _refuse_names(path, set(file.keys()), set(places))
        for name, place in places.items():
            values = _checked(path, name, file.get_tensor(name), place.shape)
            pair = layers.setdefault(place.module, {}).setdefault(place.projection, {})
            if place.matrix not in pair:
                shape = (config.num_layers, *place.shape[::-1])
                pair[place.matrix] = np.empty(shape, np.float32)
            pair[place.matrix][place.layer] = values.T
    return spec, {"layers": layers}


def _tensor_name(module: str, projection: str, matrix: str, layer: int) -> str:
    where = f"layers.{layer}.{MODULES[module]}.{projection}"
    return f"base_model.model.model.{where}.{_MATRICES[matrix]}.weight"


def _places(spec: LoraSpec, config: Qwen3Config) -> Iterator[tuple[str, _TensorPlace]]:
    """(tensor name, place) of exactly the tensors of an adapter."""
    for projection in spec.targets:
        module = PROJECTIONS[projection][0]
        num_inputs, num_outputs = config.projection_shape(projection)
        shapes = {"a": (spec.rank, num_inputs), "b": (num_outputs, spec.rank)}
        for matrix, shape in shapes.items():
            for layer in range(config.num_layers):
                name = _tensor_name(module, projection, matrix, layer)
                yield name, _TensorPlace(module, projection, matrix, layer, shape)


def _peft_config(spec: LoraSpec, base_name: str) -> Tree:
    """What PEFT needs to rebuild the adapter; its other settings keep their empty defaults."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(spec.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
    }


def _read_spec(directory: Path) -> LoraSpec:
    path = directory / CONFIG
    settings = _read_config(path)
    # The kind of adapter first: what else it has is its own.
    for key, value in sorted(settings.items(), key=lambda item: item[0] != "peft_type"):
        if key in _READ or key in _NEUTRAL:
            continue
        if not (value in _ALLOWED[key] if key in _ALLOWED else not value):
            raise UserError(
                f"{path} asks for {key} = {json.dumps(value)}, which is not supported: use a "
                "plain LoRA adapter, or merge this one with PEFT and start from the result."
            )
    rank, alpha = _number(path, settings, "r"), _number(path, settings, "lora_alpha")
    if rank != int(rank) or rank < 1 or alpha <= 0:
        raise UserError(
            f"{path} has r = {rank} and lora_alpha = {alpha}: the first must be an integer of "
            "at least 1, and the second above 0."
        )
    if settings.get("use_rslora"):
        alpha *= math.sqrt(rank)
    return LoraSpec(int(rank), float(alpha), _targets(path, settings.get("target_modules")))


def _read_config(path: Path) -> Tree:
    if not path.is_file():
        raise UserError(f"{path} does not exist: an adapter is a directory as PEFT writes it.")
    if not path.with_name(WEIGHTS).is_file():
        pickled = path.with_name(_PICKLE).is_file()
        mend = (
            f"{_PICKLE} is a pickle, which can run code and is never read; save the adapter "
            "again with PEFT's safe_serialization=True."
            if pickled
            else "copy the adapter again."
        )
        raise UserError(f"{path.parent} has no {WEIGHTS}: {mend}")
    settings = read_json_object(path)
    if "peft_type" not in settings:
        raise UserError(f"{path} has no peft_type: give an adapter as PEFT writes it.")
    return settings


def _number(path: Path, settings: Tree, key: str) -> float:
    value = settings.get(key)
    if not is_number(value):
        raise UserError(f"{path} has {key} = {json.dumps(value)}, but it must be a number.")
    return value


def _targets(path: Path, modules: Any) -> tuple[str, ...]:
    """The projections, in the order of PROJECTIONS.

    PEFT spells some of them in full, `model.layers.0.self_attn.q_proj`. Then too every layer
    must have one: the tensors tell.
    """
    if modules == "all-linear":
        return tuple(PROJECTIONS)
    entries = modules if isinstance(modules, list) else []
    names = [str(entry).rpartition(".")[2] for entry in entries]
    if not names or not all(name in PROJECTIONS for name in names):
        raise UserError(
            f"{path} has target_modules = {json.dumps(modules)}, but it must be a list of some "
            f"of {', '.join(PROJECTIONS)}, or all-linear."
        )
    return tuple(name for name in PROJECTIONS if name in names)


def _refuse_names(path: Path, found: set[str], expected: set[str]) -> None:
    for names, what in (
        (expected - found, f"lacks {{}}, which {CONFIG} and the model's config.json ask for"),
        (
            found - expected,
            f"holds {{}}, which {CONFIG} and the model's config.json do not name",
        ),
    ):
        if names:
            first = min(names) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            raise UserError(f"{path} {what.format(first)}: give an adapter of this very base.")


def _checked(path: Path, name: str, tensor: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if tensor.shape != shape:
        raise UserError(
            f"{name} in {path} has shape {list(tensor.shape)}, but the model and r ask for "
            f"{list(shape)}: give an adapter of this very base."
        )
    if tensor.dtype.name not in _DTYPES:
        raise UserError(
            f"{name} in {path} is {tensor.dtype.name}: save it as {', '.join(_DTYPES)}."
        )
    values = tensor.astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{name} in {path} holds values that are not finite: train it again.")
    return values
