# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One walk over the schema builds a `Config` from nested values and overrides.

Values are nested dictionaries, as JSON has them; overrides are the texts of a command line.
Where a section is one of several classes, its kind is decided before its keys are read:

    {"critic": {"kind": "self", "sees": "answer", "batch_size": 4, ...}}
    --critic.placement=own  --critic=checkpoint  --critic.path=DIR  ...

reads as a CheckpointCritic that keeps `sees` and `batch_size`, which both classes have.
"""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.names import nearest_key
from stepalign_jax.config.fields import (
    all_keys,
    alternatives,
    annotations,
    field_type,
    is_choice,
    is_section,
)
from stepalign_jax.config.rules import check_name, fits
from stepalign_jax.config.schema import Config

_MISSING = object()


@dataclasses.dataclass
class _Given:
    """The overrides of one key and of the keys within it.

    Attributes:
      spelled: the key as it was typed, for sentences.
      text: its value, or None where only keys within it are given.
      inner: by the next part of the dotted key.
    """

    spelled: str = ""
    text: str | None = None
    inner: "dict[str, _Given]" = dataclasses.field(default_factory=dict)


def apply_overrides(
    config: Config, overrides: Sequence[str], sections: Sequence[str] | None = None
) -> Config:
    """Returns `config` with each `--section.key=value` replaced; the rules are not checked.

    `--section=kind`, or `--section.kind=kind`, chooses a section's class, wherever it stands
    among the overrides. The new class keeps the values of the keys that both have.

    Args:
      config: what to start from.
      overrides: the arguments; the last of two for one key counts.
      sections: as for `load.config_from_json`.

    Raises:
      UserError: an argument of another form, an unknown key or kind, a value of another type,
        or keys that a class needs and nobody gave.
    """
    if not overrides:
        return config
    walk = _Walk(sections)
    changed = walk.section(Config, dataclasses.asdict(config), _tree(overrides), "")
    if walk.missing:
        raise UserError(_needs(config, walk.missing))
    return changed


def from_values(values: Any, sections: Sequence[str] | None = None) -> Config:
    """Returns the `Config` whose `dataclasses.asdict`, written as JSON, is `values`.

    Raises:
      UserError: a key is unknown or missing, or the values are those of an older schema.
    """
    if isinstance(values, dict):
        _refuse_older_schema(values)
    walk = _Walk(sections)
    config = walk.section(Config, values, _Given(), "")
    if walk.missing:
        raise UserError(
            f"the key {walk.missing[0][0]!r} is missing; was it written by another version?"
        )
    return config


class _Walk:
    """Builds sections, and collects the keys that have neither a value nor an override."""

    def __init__(self, sections: Sequence[str] | None):
        self.sections = sections
        self.missing: list[tuple[str, Any]] = []  # (key, its annotation)

    def section(self, schema: type, values: Any, given: _Given, prefix: str) -> Any:
        """Builds one section, or returns None where keys are missing."""
        if not isinstance(values, dict):
            raise UserError(f"{prefix.rstrip('.') or 'the file'} must be an object of keys")
        fields, missing_before = annotations(schema), len(self.missing)
        for name in values:
            if name not in fields:
                raise UserError(_unknown(prefix + name, schema, prefix))
        for name, inner in given.inner.items():
            if name not in fields:
                raise UserError(_unknown(inner.spelled, schema, prefix))
        read = {
            name: self._field(
                annotation,
                values.get(name, _MISSING),
                given.inner.get(name, _Given()),
                prefix + name,
            )
            for name, annotation in fields.items()
        }
        return schema(**read) if len(self.missing) == missing_before else None

    def _field(self, annotation: Any, value: Any, given: _Given, key: str) -> Any:
        if is_choice(annotation):
            return self._choice(annotation, value, given, key)
        if is_section(annotation):
            if given.text is not None:
                raise UserError(_no_key(given.spelled))
            if value is _MISSING:
                self.missing.append((key, annotation))
                return None
            return self.section(annotation, value, given, f"{key}.")
        if given.inner:
            raise UserError(_no_key(next(iter(given.inner.values())).spelled))
        if given.text is not None:
            return _parse(key, given.text, annotation)
        if value is _MISSING:
            self.missing.append((key, annotation))
        return tuple(value) if isinstance(value, list) else value

    def _choice(self, base: type, value: Any, given: _Given, key: str) -> Any:
        if value is not _MISSING and not isinstance(value, dict):
            raise UserError(f"{key} must be an object of keys")
        values: dict[str, Any] = {} if value is _MISSING else value
        before = values.get("kind")
        kind = before if given.text is None else given.text
        if kind is None:
            self.missing.append((key, base))
            return None
        known = alternatives(base)
        if kind not in known and self._is_unread(key) and given == _Given():
            return value
        check_name(f"{key}.kind", kind, tuple(known))
        schema = known[kind]
        if kind != before:
            values = _shared(known.get(str(before), base), schema, values)
        return self.section(schema, {**values, "kind": kind}, given, f"{key}.")

    def _is_unread(self, key: str) -> bool:
        return self.sections is not None and key.partition(".")[0] not in self.sections


def _shared(before: type, after: type, values: dict[str, Any]) -> dict[str, Any]:
    """Of `values`, those whose keys mean the same in both classes."""
    old, new = annotations(before), annotations(after)
    return {
        name: value
        for name, value in values.items()
        if name in new and name != "kind" and new[name] == old.get(name)
    }


def _tree(overrides: Sequence[str]) -> _Given:
    root = _Given()
    for override in overrides:
        match = re.fullmatch(r"--([^=]+)=(.*)", override, re.DOTALL)
        if match is None:
            raise UserError(f"override {override!r} must have the form --section.key=value")
        node, key = root, match[1]
        # Every `kind` is the tag of its section: --critic.kind=oracle is --critic=oracle.
        for part in key.removesuffix(".kind").split("."):
            node = node.inner.setdefault(part, _Given(spelled=key))
        node.spelled, node.text = key, match[2]
    return root


def _parse(key: str, text: str, annotation: Any) -> Any:
    """The value that a text on the command line stands for."""
    kind = field_type(annotation)
    with contextlib.suppress(ValueError, KeyError):
        if kind.base is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind.base is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if kind.rule.startswith("path"):
            return os.path.expanduser(text)
        number = kind.base(text)
        if kind.base is not float or math.isfinite(number):
            return number
    raise UserError(f"{key} cannot be {text!r}: it takes {kind.words}")


# Sentences


def _no_key(key: str) -> str:
    meant = nearest_key(key, all_keys(Config))
    return f"the config has no key {key!r}; did you mean {meant!r}?"


def _unknown(key: str, schema: type, prefix: str) -> str:
    """Why `key` is not in `schema`: another class of the section has it, or none."""
    section, name = prefix.rstrip("."), key[len(prefix) :].partition(".")[0]
    others = [
        kind
        for base in schema.__mro__
        if is_choice(base)
        for kind, other in alternatives(base).items()
        if name in annotations(other)
    ]
    if not others:
        return _no_key(key)
    return (
        f"{key} belongs to {section}.kind={' or '.join(others)}, but {section}.kind is "
        f"{vars(schema)['kind']}; leave it out, or choose --{section}={others[0]}"
    )


def _needs(config: Config, missing: list[tuple[str, Any]]) -> str:
    """What a chosen class lacks, and arguments that would give it."""
    keys = [key for key, _ in missing]
    listed = " and ".join(filter(None, [", ".join(keys[:-1]), keys[-1]]))
    example = " ".join(f"--{key}={_example(annotation)}" for key, annotation in missing)
    return (
        f"the kind chosen needs {listed}, which the config {config.name!r} does not have; add "
        f"for example {example}"
    )


def _example(annotation: Any) -> str:
    """A text that the key takes."""
    if is_choice(annotation):
        return next(iter(alternatives(annotation)))
    kind = field_type(annotation)
    if kind.names:
        return kind.names[0]
    if kind.base in (int, float):
        return next(f"{n:g}" for n in (1, 0.5, 0) if fits(n, kind.rule or "(-inf, inf)"))
    return {bool: "true", tuple: "a,b"}.get(kind.base, "DIR" if kind.rule else "TEXT")


def _refuse_older_schema(values: dict[str, Any]) -> None:
    for name, annotation in annotations(Config).items():
        section = values.get(name)
        if is_choice(annotation) and isinstance(section, dict) and "kind" not in section:
            raise UserError(
                f"{name} has no kind, so this was written by an older version of "
                "stepalign_jax, whose configs had other keys; read it with that version, or "
                "train again"
            )
