# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From a config file, or a run's JSON, and overrides to one checked `Config`.

A config file is Python: it exposes `get_config(variant: str) -> Config`, and may import other
files of its own directory by their bare names. It runs as code, so only run files that you
trust. What is impossible is refused here, before any download or compilation.
"""

import contextlib
import importlib
import importlib.resources
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.names import nearest, nearest_key
from stepalign_jax.base.paths import check_path
from stepalign_jax.config.fields import all_keys
from stepalign_jax.config.merge import apply_overrides, from_values
from stepalign_jax.config.rules import check
from stepalign_jax.config.schema import Config

SHIPPED = "stepalign_jax.configs"
CONFIG_FILE = "config.json"  # of a run's directory


def load_config(spec: str, overrides: Sequence[str] = ()) -> Config:
    """Loads, overrides and checks a config.

    Args:
      spec: a file or the name of a config in this package, and a variant if there are any:
        `path/to/file.py`, `path/to/file.py:variant`, `tiny`, `tiny:refsol`.
      overrides: `--section.key=value` arguments; the last of two for one key counts.

    Raises:
      UserError: the file or variant is missing or fails, an override names no key or has
        the wrong type, or a value is impossible (`rules.check`).
    """
    name, variant = split_spec(spec)
    config = apply_overrides(_run_config_file(find_config_file(name), variant), overrides)
    check(config)
    return config


def config_from_json(
    path: Path, overrides: Sequence[str] = (), sections: Sequence[str] | None = None
) -> Config:
    """Loads the config that a run wrote to its directory, overrides and checks it.

    Every key of the schema must be there and no other: what the key of another version of
    this package meant is not guessed.

    Args:
      path: the file.
      overrides: as for `load_config`.
      sections: the sections that the caller reads, or None for all. In the others a `kind`
        that no imported class has is left as it is in the file.

    Raises:
      UserError: the file is missing, is not JSON, lacks a key or holds an unknown one, or a
        value is impossible.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a run's config ({error}): name the directory of a run."
        ) from error
    try:
        config = apply_overrides(from_values(values, sections), overrides, sections)
        check(config, sections)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def split_spec(spec: str) -> tuple[str, str]:
    """`configs/tiny.py:refsol` -> ("configs/tiny.py", "refsol"); the variant may be ""."""
    head, colon, tail = spec.rpartition(":")
    is_variant = head.endswith(".py") or (_is_name(head) and "/" not in tail)
    return (head, tail) if colon and is_variant else (spec, "")


def check_variant(variant: str, known: Sequence[str] = ()) -> None:
    """For config files: refuses a variant that is neither "" nor in `known`.

    Raises:
      UserError: names the variants that there are, and the nearest one.
    """
    if variant == "" or variant in known:
        return
    if not known:
        raise UserError(f"this config has no variants, so not {variant!r} either")
    raise UserError(
        f"this config has no variant {variant!r}, but {', '.join(known)}; "
        f"did you mean {nearest(variant, known)!r}?"
    )


def find_config_file(name: str) -> Path:
    """Returns the file that `--config` means: a path, or a name that this package ships.

    Raises:
      UserError: there can be no such file, or there is none, with the nearest one.
    """
    check_path("--config", expanded := os.path.expanduser(name))
    path = Path(expanded)
    if path.is_file():
        return path
    if _is_name(name):
        shipped = {file.stem: file for file in _shipped_files()}
        if name in shipped:
            return shipped[name]
        raise UserError(
            f"there is no config {name!r}: this package has {', '.join(shipped)}, and your "
            f"own is named by its path, such as ./{name}.py; "
            f"did you mean {nearest(name, shipped)!r}?"
        )
    others = sorted(other.name for other in path.parent.glob("*.py"))
    meant = f"; did you mean {path.parent / nearest(path.name, others)}?" if others else ""
    raise UserError(f"there is no config file {path}{meant}")


def _is_name(name: str) -> bool:
    """Whether `name` is a shipped config's, and no path."""
    return name.isidentifier()


def _shipped_files() -> list[Path]:
    directory = Path(str(importlib.resources.files(SHIPPED)))
    return sorted(file for file in directory.glob("*.py") if file.stem != "__init__")


def _run_config_file(path: Path, variant: str) -> Config:
    with _siblings_importable(path.parent):
        try:
            config = _get_config_function(_execute(path))(variant)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except Exception as error:
            raise UserError(_describe_failure(path, error)) from error
    if not isinstance(config, Config):
        raise UserError(
            f"{path}: get_config returned an object of type {type(config).__name__} instead "
            "of a Config"
        )
    return config


def _execute(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError("a config file must be a Python file ending in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _get_config_function(module: ModuleType) -> Any:
    if not callable(function := getattr(module, "get_config", None)):
        raise UserError("a config file must define get_config(variant), and this one does not")
    return function


@contextlib.contextmanager
def _siblings_importable(directory: Path) -> Iterator[None]:
    """Lets a config file import its neighbours, and forgets them afterwards.

    Forgetting keeps two directories with files of one name apart. No bytecode is written,
    because Python would not notice a second edit within the same second.
    """
    before, wrote_nothing = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(directory.resolve()))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(directory.resolve()))
        sys.dont_write_bytecode = wrote_nothing
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            # A dotted name is a package's own, such as stepalign_jax.configs.tiny: it stays.
            if "." not in name and file and Path(file).parent == directory.resolve():
                del sys.modules[name]


def _describe_failure(path: Path, error: Exception) -> str:
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is None:
        return f"{where}: {type(error).__name__}: {error}"
    meant = nearest_key(unknown[1], all_keys(Config))
    return f"{where}: the config has no key {unknown[1]!r}; did you mean {meant!r}?"
