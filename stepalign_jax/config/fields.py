# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What the schema's annotations say: types, rules, names, and a section's alternatives."""

import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from stepalign_jax.config.sections import Choice

_WORDS = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    tuple: "a comma-separated list",
}


@dataclasses.dataclass(frozen=True)
class FieldType:
    """A leaf's annotation, taken apart.

    Attributes:
      base: int, float, bool, str or tuple.
      rule: of `Annotated`: an interval, "path" or "path or empty"; "" if there is none.
      names: of `Literal`, in a tuple too; () if any are allowed.
    """

    base: type
    rule: str = ""
    names: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What the key takes, for a sentence."""
        return _WORDS[self.base]


def field_type(annotation: Any) -> FieldType:
    """Takes a leaf's annotation apart.

    Raises:
      TypeError: the schema has an annotation of another kind.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return FieldType(arguments[0], rule=arguments[1])
    if origin is Literal:
        return FieldType(str, names=arguments)
    if origin is tuple and arguments[1:] == (...,):
        entry = field_type(arguments[0])
        if entry.base is str:
            return FieldType(tuple, names=entry.names)
    elif annotation in _WORDS:
        return FieldType(annotation)
    raise TypeError(f"a config field cannot have the type {annotation}")


@functools.cache
def annotations(schema: type) -> dict[str, Any]:
    """The fields of a section with their annotations, in order."""
    hints = typing.get_type_hints(schema, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def is_section(annotation: Any) -> bool:
    """Whether the annotation is a dataclass, of keys of its own."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def is_choice(annotation: Any) -> bool:
    """Whether the section is one of several classes: then `alternatives` lists them."""
    return isinstance(annotation, type) and Choice in annotation.__bases__


def alternatives(base: type) -> dict[str, type]:
    """The classes that a section may be, by kind.

    They are the subclasses, imported so far, with a `kind` of their own. Of two with one kind
    the later counts: a config file that is run twice defines its classes twice.
    """
    found: dict[str, type] = {}
    for subclass in base.__subclasses__():
        if "kind" in vars(subclass):
            found[vars(subclass)["kind"]] = subclass
        found |= alternatives(subclass)
    return found


def all_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key that an override may name, whatever the kinds: `critic`, `critic.sees`, ...

    A key that several alternatives have comes several times.
    """
    for name, annotation in annotations(schema).items():
        key = prefix + name
        if is_choice(annotation):
            yield key
            for alternative in alternatives(annotation).values():
                yield from all_keys(alternative, f"{key}.")
        elif is_section(annotation):
            yield from all_keys(annotation, f"{key}.")
        else:
            yield key


def leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, type, str, Any]]:
    """Yields (dotted key, class that has it, field, value) of all leaves, kinds first."""
    for name in sorted(annotations(type(section)), key=lambda name: name != "kind"):
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, type(section), name, value
