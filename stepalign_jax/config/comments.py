# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The comments beside the schema's fields, which `--help` and `--print_config` show."""

import ast
import functools
import inspect
import io
import textwrap
import tokenize


@functools.cache
def comments(schema: type) -> dict[str, str]:
    """Comments by field, inherited ones too: the lines right above a field, and beside it.

    A class whose source cannot be found, such as one typed at a prompt, has none.
    """
    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__[:-1]):
        found |= _own_comments(owner)
    return found


def summary(schema: type) -> str:
    """The first line of a section's docstring."""
    return (inspect.getdoc(schema) or "").partition("\n")[0]


def _own_comments(owner: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(owner))
    except (OSError, TypeError):
        return {}
    by_line = _comment_lines(source)
    lines = source.splitlines()
    found: dict[str, str] = {}
    definition = ast.parse(source).body[0]
    for node in definition.body if isinstance(definition, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while lines[first - 2].lstrip().startswith("#"):
                first -= 1
            rows = range(first, (node.end_lineno or node.lineno) + 1)
            found[node.target.id] = " ".join(by_line[row] for row in rows if row in by_line)
    return found


def _comment_lines(source: str) -> dict[int, str]:
    """The comment that each line has, lines counted from 1."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
