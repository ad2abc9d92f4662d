# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML file: its style and script inside, and data in compressed blocks.

    head      a policy that forbids every request, and the style
    body      what is read without a script: the answer, tables, figures
    script    page/*.js, the one script that may run: the policy has its hash, and the style's
    blocks    <script type="application/octet-stream" id="...">: JSON, deflated, in base64; the
              script inflates a block when somebody looks at it

Blocks come last, so that the page is painted before they are read.
"""

import base64
import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from stepalign_jax.base.files import atomic_file
from stepalign_jax.report.html import Html, joined, tag

_STYLES = ("page.css", "rollouts.css", "media.css")
_SCRIPTS = (
    "text.js",
    "blocks.js",
    "differences.js",
    "strips.js",
    "card.js",
    "viewer.js",
    "explorer.js",
    "page.js",
)


def compressed(value: Any) -> str:
    """Returns a value as the content of a block."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII alone
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return base64.b64encode(deflate.compress(text.encode()) + deflate.flush()).decode()


def write_page(
    path: pathlib.Path,
    *,
    title: str,
    body: Html,
    blocks: Mapping[str, str],
) -> pathlib.Path:
    """Writes a page, whole or not at all.

    Args:
      path: of the file.
      title: of the document.
      body: everything that is seen without a script.
      blocks: id -> what `compressed` made.

    Returns:
      `path`.

    Raises:
      UserError: it cannot be written.
    """
    script = "\n".join(map(_part, _SCRIPTS))
    with atomic_file(path) as file:
        for piece in _pieces(title, body, script, blocks):
            file.write(piece.encode())
    return path


def _pieces(title: str, body: Html, script: str, blocks: Mapping[str, str]) -> Iterable[str]:
    style = "\n".join(map(_part, _STYLES))
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = joined(
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(style)),
    )
    yield f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n'
    yield f"<script>{script}</script>\n"
    for name, content in blocks.items():
        yield f'<script type="application/octet-stream" id="{name}">{content}</script>\n'
    yield "</body>\n</html>\n"


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _part(name: str) -> str:
    return (
        resources.files("stepalign_jax.report")
        .joinpath("page", name)
        .read_text(encoding="utf-8")
    )
