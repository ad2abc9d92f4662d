# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The config as text: what its keys take, for `--help`, and what they are, for a reader.

--sampling.top_k=INT                  [0, inf); 0 is off
sampling.top_k = 20  # 0 is off
"""

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from stepalign_jax.config.comments import comments, summary
from stepalign_jax.config.fields import (
    alternatives,
    annotations,
    field_type,
    is_choice,
    is_section,
    leaves,
)
from stepalign_jax.config.schema import Config

_WIDTH = 80
_COLUMN = 40  # where the words about a key start
_PLACEHOLDERS = {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT", tuple: "A,B,..."}


def keys_help(sections: Sequence[str]) -> str:
    """Returns the keys of `sections` with types, ranges and comments, 80 columns wide.

    Args:
      sections: names of sections and of keys without a section, or dotted keys
        (`prompts.answer_pattern`); the order is the schema's.
    """
    return "\n".join(_lines(Config, "", set(sections), indent=0))


def resolved(config: Config) -> str:
    """Returns one line `section.key = value  # comment` per key; values as in JSON."""
    lines = []
    for key, schema, name, value in leaves(config):
        comment = summary(schema) if name == "kind" else comments(schema).get(name)
        written = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        lines.append(f"{written}  # {comment}" if comment else written)
    return "\n".join(lines)


def _lines(schema: type, prefix: str, wanted: set[str], indent: int) -> Iterator[str]:
    """The lines of all fields that `wanted` names, of them all if it is empty."""
    for name, annotation in annotations(schema).items():
        key = prefix + name
        inner = {entry for entry in wanted if entry.startswith(f"{key}.")}
        if name == "kind" or (wanted and key not in wanted and not inner):
            continue
        if is_choice(annotation):
            yield from _choice_lines(annotation, key, indent)
        elif is_section(annotation):
            yield ""
            yield from textwrap.wrap(f"{key}: {summary(annotation)}", _WIDTH)
            yield from _lines(annotation, f"{key}.", inner, indent + 2)
        else:
            comment = comments(schema).get(name, "")
            yield from _entry(
                f"--{key}={_placeholder(annotation)}", annotation, comment, indent
            )


def _choice_lines(base: type, key: str, indent: int) -> Iterator[str]:
    """The classes of a section, then every key once, below the kinds that have it."""
    if indent == 0:
        yield ""
    margin = " " * indent
    title = f"{key}: {summary(base)} One of:"
    yield from textwrap.wrap(title, _WIDTH, initial_indent=margin, subsequent_indent=margin)
    classes = alternatives(base)
    for kind, schema in classes.items():
        yield from _columns(f"--{key}={kind}", summary(schema), indent + 2)
    for kinds, names in _keys_by_kinds(classes).items():
        who = "all" if len(kinds) == len(classes) else ", ".join(kinds)
        yield from textwrap.wrap(
            f"{margin}  of {who}:", _WIDTH, subsequent_indent=margin + "     "
        )
        wanted = {f"{key}.{name}" for name in names}
        yield from _lines(classes[kinds[0]], f"{key}.", wanted, indent + 4)


def _keys_by_kinds(classes: dict[str, type]) -> dict[tuple[str, ...], list[str]]:
    """{kinds that have the same keys: those keys}, in the order in which keys come."""
    kinds_of: dict[str, list[str]] = {}
    for kind, schema in classes.items():
        for name in annotations(schema):
            kinds_of.setdefault(name, []).append(kind)
    found: dict[tuple[str, ...], list[str]] = {}
    for name, kinds in kinds_of.items():
        if name != "kind":
            found.setdefault(tuple(kinds), []).append(name)
    return found


def _entry(argument: str, annotation: Any, comment: str, indent: int) -> Iterator[str]:
    rule = field_type(annotation).rule
    words = [comment] if rule.startswith("path") else [rule, comment]
    yield from _columns(argument, "; ".join(filter(None, words)), indent)


def _columns(argument: str, words: str, indent: int) -> Iterator[str]:
    """An argument and the words about it, which start on a new line if it is long."""
    margin = " " * _COLUMN
    lines = textwrap.wrap(words, _WIDTH, initial_indent=margin, subsequent_indent=margin)
    head = " " * indent + argument
    if lines and len(head) <= _COLUMN - 2:
        lines[0] = head + lines[0][len(head) :]
    else:
        lines.insert(0, head)
    yield from lines


def _placeholder(annotation: Any) -> str:
    kind = field_type(annotation)
    if kind.names:
        return f"{','.join(kind.names[:2])},..." if kind.base is tuple else "|".join(kind.names)
    return "PATH" if kind.rule.startswith("path") else _PLACEHOLDERS[kind.base]
