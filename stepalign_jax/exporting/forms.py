# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The two forms of an export: a Hugging Face checkpoint, or an adapter in PEFT's layout."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object, write_json
from stepalign_jax.exporting.merge import merge
from stepalign_jax.exporting.rounding import measure_rounding
from stepalign_jax.exporting.trained import Trained, load_trained, probe_texts
from stepalign_jax.huggingface.config import CONFIG
from stepalign_jax.huggingface.peft_adapters import save_adapter
from stepalign_jax.huggingface.weights import load_params, write_model
from stepalign_jax.parallel.mesh import use_mesh

RECORD = "export.json"  # where an export came from; marks a directory that may be replaced

_GENERATION = "generation_config.json"
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    _GENERATION,
)


def check_target(target: Path, trained: Trained, *, overwrite: bool) -> None:
    """Refuses to replace the run, its base, or files that are no export.

    Raises:
      UserError: says what is there.
    """
    for path, name in (
        (trained.run.path, "the run"),
        (trained.model.directory, "the base model"),
    ):
        if target.resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(f"--to {target} would replace {name}, {path}: choose another.")
    taken = target.is_dir() and any(target.iterdir())
    if overwrite and taken and not (target / RECORD).is_file():
        raise UserError(
            f"{target} holds files that are no export (no {RECORD}), and --overwrite replaces "
            "nothing else: choose another target."
        )


def export_merged(
    trained: Trained,
    directory: Path,
    *,
    dtype_name: str | None,
    max_shard_bytes: int,
    num_probe_texts: int,
) -> dict[str, Any]:
    """Writes a Hugging Face checkpoint to `directory`, and returns what rounding cost.

    Args:
      trained: the checkpoint of the run.
      directory: an existing directory.
      dtype_name: of the merged weights; None for the base's.
      max_shard_bytes: see `write_model`.
      num_probe_texts: rollouts on which the cost of rounding is measured.

    Raises:
      UserError: the base or the checkpoint cannot be read, or a weight overflows the dtype.
    """
    model, trainable = trained.model, load_trained(trained)
    # In the dtype of the files, to which the merged weights are rounded.
    base = load_params(model.directory, model.sizes, dtype=None, shardings=model.shardings)
    dtype = jnp.dtype(dtype_name or base["embedding"].dtype)
    merged = merge(base, trainable, model.lora, dtype)
    found: dict[str, Any] = {}
    if texts := probe_texts(trained, num_probe_texts):
        exported = jax.device_put(merged.params, model.shardings)
        with use_mesh(model.mesh):
            found = measure_rounding(model.module("none"), base, trainable, exported, texts)
    write_model(directory, model.sizes, merged.params, max_shard_bytes=max_shard_bytes)
    _write_companions(model.directory, directory, dtype.name, model.stop_ids)
    return {"dtype": dtype.name, "lost": merged.lost, **found}


def _write_companions(base: Path, directory: Path, dtype: str, stops: tuple[int, ...]) -> None:
    """Copies the base's files beside its weights."""
    for name in _COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, directory / name)
    if not (directory / _GENERATION).exists():
        write_json(directory / _GENERATION, {"eos_token_id": list(stops)})
    # The base's own config rather than ours: it names special tokens, for example.
    config = read_json_object(base / CONFIG)
    config.pop("torch_dtype", None)  # the name of `dtype` before transformers 5
    write_json(directory / CONFIG, config | {"dtype": dtype})


def export_adapter(trained: Trained, directory: Path) -> None:
    """Writes a PEFT adapter to `directory`, in fp32 and so without rounding.

    Raises:
      UserError: the run has no adapter, or the checkpoint cannot be read.
    """
    path = trained.config.model.path
    # PEFT looks for the base under this name: a hub id, or a directory of this machine.
    is_local = path.startswith("packaged:") or Path(path).is_dir()
    base_name = str(trained.model.directory.resolve()) if is_local else path
    spec = trained.model.lora
    if spec is None:
        raise UserError(
            f"{trained.run.path} trained all weights and no adapter: use --form merged."
        )
    save_adapter(directory, spec, load_trained(trained)["lora"], base_name=base_name)
