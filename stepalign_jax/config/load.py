# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From a config file and command-line overrides to one checked `Config`.

A config file is Python: it exposes `get_config(variant: str) -> Config`, and may import
other config files of its own directory by their bare names. It runs as code, so only
run files that you trust. What is impossible is refused here, before any download or
compilation.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import math
import re
import sys
import traceback
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import Config
from stepalign_jax.config.validate import validate

_TYPE_WORDS = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    tuple[str, ...]: "a comma-separated list",
}


def load_config(spec: str, overrides: Sequence[str] = ()) -> Config:
    """Loads, overrides and validates a config.

    Args:
      spec: `path/to/file.py` or `path/to/file.py:variant`; without one the variant is "".
      overrides: `--section.key=value` arguments; the last of two for one key counts.

    Raises:
      UserError: the file or variant is missing or fails, an override names no key or has
        the wrong type, or a value is impossible (see `validate`).
    """
    path, variant = split_spec(spec)
    config = apply_overrides(_run_config_file(Path(path), variant), overrides)
    validate(config)
    return config


def config_from_json(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Loads the config that a run wrote to its directory, overrides and validates it.

    Every key of the schema must be there and no other: what the key of another version of
    this package meant is not guessed.

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
        config = apply_overrides(_from_json(Config, values, ""), overrides)
        validate(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def _from_json(schema: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{prefix.rstrip('.') or 'the file'} must be an object of keys")
    hints = typing.get_type_hints(schema)
    for key in values:
        if key not in hints:
            nearest = _nearest(key, list(hints))
            raise UserError(
                f"the config has no key {prefix + key!r}; did you mean {prefix + nearest!r}?"
            )
    found: dict[str, Any] = {}
    for name, annotation in hints.items():
        if name not in values:
            raise UserError(
                f"the key {prefix + name!r} is missing; was it written by another version?"
            )
        value = values[name]
        if dataclasses.is_dataclass(annotation):
            value = _from_json(typing.cast(type, annotation), value, f"{prefix}{name}.")
        elif annotation == tuple[str, ...] and isinstance(value, list):
            value = tuple(value)
        found[name] = value
    return schema(**found)


def split_spec(spec: str) -> tuple[str, str]:
    """`configs/tiny.py:refsol` -> ("configs/tiny.py", "refsol"); the variant may be ""."""
    head, colon, tail = spec.rpartition(":")
    return (head, tail) if colon and head.endswith(".py") else (spec, "")


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
        f"did you mean {_nearest(variant, known)!r}?"
    )


def field_types(schema: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the schema with its type: {"train.num_steps": int, ...}."""
    found: dict[str, Any] = {}
    for name, annotation in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(annotation):
            found |= field_types(typing.cast(type, annotation), f"{prefix}{name}.")
        else:
            found[prefix + name] = annotation
    return found


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Returns `config` with each `--section.key=value` replaced; nothing is validated.

    Raises:
      UserError: an argument of another form, an unknown key, or a value of another type.
    """
    types = field_types()
    for override in overrides:
        match = re.fullmatch(r"--([^=]+)=(.*)", override, re.DOTALL)
        if match is None:
            raise UserError(f"override {override!r} must have the form --section.key=value")
        key, text = match.groups()
        if key not in types:
            raise UserError(
                f"the config has no key {key!r}; did you mean {_nearest_key(key, types)!r}?"
            )
        config = _replace_key(config, key, _parse(key, text, types[key]))
    return config


def _parse(key: str, text: str, kind: Any) -> Any:
    with contextlib.suppress(ValueError, KeyError):
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is float:
            if math.isfinite(number := float(text)):
                return number
        elif kind == tuple[str, ...]:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        else:
            return kind(text)
    raise UserError(f"{key} cannot be {text!r}: it takes {_TYPE_WORDS[kind]}")


def _replace_key(config: Config, key: str, value: Any) -> Config:
    section, _, name = key.rpartition(".")
    if not section:
        return dataclasses.replace(config, **{name: value})
    changed = dataclasses.replace(getattr(config, section), **{name: value})
    return dataclasses.replace(config, **{section: changed})


def _nearest(word: str, known: Sequence[str]) -> str:
    return difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]


def _nearest_key(key: str, keys: typing.Iterable[str]) -> str:
    """The likeliest key: people forget or mistake the section, so its name counts alone too."""

    def likeness(candidate: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        names = key.rpartition(".")[2], candidate.rpartition(".")[2]
        return max(whole, difflib.SequenceMatcher(None, *names).ratio()), whole

    return max(keys, key=likeness)


def _run_config_file(path: Path, variant: str) -> Config:
    if not path.is_file():
        raise UserError(f"there is no config file {path}{_suggest_file(path)}")
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


def _suggest_file(path: Path) -> str:
    others = sorted(other.name for other in path.parent.glob("*.py"))
    return f"; did you mean {path.parent / _nearest(path.name, others)}?" if others else ""


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
            if file and Path(file).parent == directory.resolve():
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
    nearest = _nearest_key(unknown[1], field_types())
    return f"{where}: the config has no key {unknown[1]!r}; did you mean {nearest!r}?"
