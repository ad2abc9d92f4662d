# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""HTML from values: whatever is not HTML already is escaped, so nobody can forget to."""

import html
import re

# Characters that change the order of others, or that HTML forbids: they are shown by name, so
# that a text cannot hide or turn around what stands beside it. page/text.js has the same list.
_SIGNS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


class Html(str):
    """Text that is HTML; any other string is text to escape."""


def tag(name_: str, *children: str | None, **attributes: str | int | bool | None) -> Html:
    """Returns an element.

    Args:
      name_: of the element.
      children: Html, or text that is escaped; None is left out.
      attributes: `class_` is class, `aria_label` is aria-label; True is a bare name, and None
        and False are left out.
    """
    words = [name_]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        spelled = key.rstrip("_").replace("_", "-")
        words.append(spelled if value is True else f'{spelled}="{_escaped(str(value))}"')
    inner = "".join(_html(child) for child in children if child is not None)
    return Html(f"<{' '.join(words)}>{inner}" + ("" if name_ in _VOID else f"</{name_}>"))


_VOID = ("meta", "link", "br", "hr")


def joined(*parts: str | None) -> Html:
    """Returns parts one after the other, each escaped unless it is HTML."""
    return Html("".join(_html(part) for part in parts if part is not None))


def written(text: str, **attributes: str | int | bool | None) -> Html:
    """Returns an element for what somebody wrote: isolated, its signs shown by name."""
    return tag("bdi", _with_signs(text), dir="auto", **attributes)


def _html(part: str) -> str:
    return part if isinstance(part, Html) else _escaped(part)


def _escaped(text: str) -> str:
    return html.escape(_SIGNS.sub(lambda sign: _name(sign[0]), text))


def _with_signs(text: str) -> Html:
    parts, place = [], 0
    for sign in _SIGNS.finditer(text):
        parts.append(html.escape(text[place : sign.start()]))
        parts.append(tag("span", _name(sign[0]), class_="sign"))
        place = sign.end()
    return Html("".join([*parts, html.escape(text[place:])]))


def _name(sign: str) -> str:
    return f"U+{ord(sign):04X}"
