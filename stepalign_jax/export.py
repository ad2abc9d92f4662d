# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run trained, as files for other programs.

    python -m stepalign_jax.export --run runs/stepalign --to exports/merged
    python -m stepalign_jax.export --run runs/stepalign --to exports/adapter --form adapter
    python -m stepalign_jax.export --run runs/stepalign --to exports/best --best --dtype float32

`merged` is a whole Hugging Face checkpoint, `adapter` a directory in PEFT's layout. The run's
own config.json is read; overrides such as --model.path=DIR say what is elsewhere by now.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import atomic_directory, read_json, write_json
from stepalign_jax.config.cli import parse_arguments, run_command
from stepalign_jax.exporting.merge import measure, merge
from stepalign_jax.exporting.trained import (
    SECTIONS,
    Trained,
    find_trained,
    load_trained,
    probe_texts,
)
from stepalign_jax.huggingface.peft_adapters import save_adapter
from stepalign_jax.huggingface.tokenizer import load_tokenizer, stop_ids
from stepalign_jax.huggingface.weights import load_params, write_model
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3, abstract_params
from stepalign_jax.parallel.mesh import make_mesh, param_shardings, use_mesh
from stepalign_jax.runs.directory import RunDirectory

METRICS = ("avg_at_k", "pass_at_k", "maj_at_k", "greedy")
DTYPES = ("float32", "bfloat16", "float16")
RECORD = "export.json"  # where an export came from; marks a directory that may be replaced

# Rounding is worth a warning where it undoes more than this share of what training did.
_LARGEST_KL_SHARE = 0.1
_LARGEST_LOSS = 0.5

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

_OPTIONS: dict[str, dict[str, Any]] = {
    "--run": {"required": True, "metavar": "DIR", "help": "the run"},
    "--to": {"required": True, "metavar": "DIR", "help": "where the files go"},
    "--form": {
        "default": "merged",
        "choices": ("merged", "adapter"),
        "help": "a whole checkpoint (default), or a PEFT adapter",
    },
    "--step": {"type": int, "metavar": "N", "help": "which checkpoint; default: the newest"},
    "--best": {
        "nargs": "?",
        "const": METRICS[0],
        "choices": METRICS,
        "help": f"the kept checkpoint with the best validation, by {METRICS[0]} or another",
    },
    "--dtype": {"choices": DTYPES, "help": "of the merged weights; default: the base's"},
    "--max-shard-gb": {"type": float, "default": 5.0, "metavar": "GB", "help": "default: 5"},
    "--probe-texts": {
        "type": int,
        "default": 16,
        "metavar": "N",
        "help": "rollouts on which the cost of rounding is measured; 0 is off (default: 16)",
    },
    "--overwrite": {"action": "store_true", "help": "replace an earlier export"},
}


def export_merged(
    trained: Trained,
    directory: Path,
    *,
    dtype_name: str | None,
    max_shard_bytes: int,
    num_probe_texts: int,
) -> dict[str, Any]:
    """Writes a Hugging Face checkpoint to `directory`, and returns what rounding cost.

    Raises:
      UserError: the base or the checkpoint cannot be read, or a weight overflows the dtype.
    """
    mesh = make_mesh(trained.config.parallel)
    tokenizer = load_tokenizer(trained.base)
    shardings = param_shardings(mesh, abstract_params(trained.model))
    trainable = load_trained(trained, mesh)
    base = load_params(trained.base, trained.model, dtype=None, shardings=shardings)
    dtype = jnp.dtype(dtype_name or base["embedding"].dtype)
    merged = merge(base, trainable, trained.spec, dtype)
    found: dict[str, Any] = {}
    if texts := probe_texts(trained, tokenizer, num_probe_texts):
        model = Qwen3(trained.model, jnp.float32, lora=trained.spec)
        exported = jax.device_put(merged.params, shardings)
        with use_mesh(mesh):
            found = measure(model, base, trainable, exported, texts)
    write_model(directory, trained.model, merged.params, max_shard_bytes=max_shard_bytes)
    _write_companions(trained.base, directory, dtype.name, stop_ids(tokenizer, trained.base))
    return {"dtype": dtype.name, "lost": merged.lost, **found}


def _write_companions(base: Path, directory: Path, dtype: str, stops: tuple[int, ...]) -> None:
    """Copies what the base has beside its weights."""
    for name in _COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, directory / name)
    if not (directory / _GENERATION).exists():
        write_json(directory / _GENERATION, {"eos_token_id": list(stops)})
    # The base's own config rather than ours: it names special tokens, for example.
    config = read_json(base / "config.json")
    config.pop("torch_dtype", None)  # the name of `dtype` before transformers 5
    write_json(directory / "config.json", config | {"dtype": dtype})


def export_adapter(trained: Trained, spec: LoraSpec, directory: Path) -> None:
    """Writes a PEFT adapter to `directory`; there is nothing to round.

    Raises:
      UserError: the checkpoint cannot be read.
    """
    path = trained.config.model.path
    is_local = path.startswith("packaged:") or Path(path).is_dir()
    base_name = str(trained.base.resolve()) if is_local else path
    lora = load_trained(trained, make_mesh(trained.config.parallel))["lora"]
    save_adapter(directory, spec, lora, base_name=base_name)


def rounding_warning(found: dict[str, Any]) -> str | None:
    """Returns a sentence where rounding undid a good part of what training did."""
    lost, kl_share = found["lost"], 0.0
    if found.get("kl_of_training"):
        kl_share = found["kl_of_rounding"] / found["kl_of_training"]
    if kl_share <= _LARGEST_KL_SHARE and lost <= _LARGEST_LOSS:
        return None
    measured = f" and {100 * kl_share:.2g} % of the KL" if "kl_of_training" in found else ""
    return (
        f"warning: rounding to {found['dtype']} costs {100 * lost:.2g} % of the delta"
        f"{measured} that training made: export with --dtype float32 or --form adapter."
    )


def _print_rounding(found: dict[str, Any]) -> None:
    print(f"  rounding to {found['dtype']}: error of {100 * found['lost']:.2g} % of the delta")
    if "kl_of_training" in found:
        print(
            f"  KL(trained || exported) {found['kl_of_rounding']:.3g}, KL(trained || base) "
            f"{found['kl_of_training']:.3g} nats a token, over {found['num_tokens']} tokens of "
            f"{found['num_texts']} rollouts"
        )
    else:
        print("  KL not measured: there are no rollouts to measure it on")
    if warning := rounding_warning(found):
        print(warning, file=sys.stderr)


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses options that contradict each other.

    Raises:
      UserError: names them.
    """
    if arguments.step is not None and arguments.best is not None:
        raise UserError("--step and --best each name a checkpoint: give one of them.")
    if arguments.max_shard_gb <= 0:
        raise UserError(f"--max-shard-gb is {arguments.max_shard_gb}, but must be above 0.")
    if arguments.probe_texts < 0:
        raise UserError(f"--probe-texts is {arguments.probe_texts}, but must be at least 0.")
    if arguments.form == "adapter" and arguments.dtype not in (None, "float32"):
        raise UserError("--form adapter is always written in float32: leave --dtype out.")


def check_target(target: Path, trained: Trained, *, overwrite: bool) -> None:
    """Refuses to put an export in the place of what it is made from, or of other files.

    Raises:
      UserError: says what is there.
    """
    for path, name in ((trained.run.path, "the run"), (trained.base, "the base model")):
        if target.resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(f"--to {target} would replace {name}, {path}: choose another.")
    taken = target.is_dir() and any(target.iterdir())
    if overwrite and taken and not (target / RECORD).is_file():
        raise UserError(
            f"{target} holds files that are no export (no {RECORD}), and --overwrite replaces "
            "nothing else: choose another target."
        )


def main(argv: list[str]) -> None:
    """Exports, and prints what was written and what rounding cost."""
    arguments = parse_arguments(
        argv,
        description="Writes what a run trained as a Hugging Face checkpoint or PEFT adapter.",
        example="python -m stepalign_jax.export --run runs/tiny-stepalign --to exports/tiny",
        options=_OPTIONS,
        sections=SECTIONS,
        config="of_run",
    )
    check_options(arguments)
    run, target = RunDirectory(Path(arguments.run)), Path(arguments.to)
    trained = find_trained(run, arguments.overrides, step=arguments.step, metric=arguments.best)
    if arguments.form == "adapter" and trained.spec is None:
        raise UserError(f"{run.path} trained all weights and no adapter: use --form merged.")
    check_target(target, trained, overwrite=arguments.overwrite)
    with atomic_directory(target, overwrite=arguments.overwrite) as directory:
        found: dict[str, Any] = {}
        if arguments.form == "adapter" and trained.spec is not None:
            export_adapter(trained, trained.spec, directory)
        else:
            found = export_merged(
                trained,
                directory,
                dtype_name=arguments.dtype,
                max_shard_bytes=int(arguments.max_shard_gb * 1e9),
                num_probe_texts=arguments.probe_texts,
            )
        record = {"run": str(run.path), "step": trained.step, "form": arguments.form, **found}
        write_json(directory / RECORD, record | {"base": trained.config.model.path})
        size = sum(path.stat().st_size for path in directory.iterdir())
    print(f"{run.path}, step {trained.step}, {arguments.form}: {target} ({size / 1e6:.1f} MB)")
    if found:
        _print_rounding(found)


if __name__ == "__main__":
    run_command(main)
