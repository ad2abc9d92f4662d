# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A figure as SVG that may stand in any page, beside others, in light and dark.

What matplotlib writes is cut to the drawing: no declarations, dates, scripts or style sheets,
which would reach the rest of the page. Styles become attributes, so that a page which forbids
inline styles shows them, and its own style sheet may change them. What was drawn in INK takes
the colour of the page's text; ids have the figure's name before them.
"""

import html
import io
import re

import matplotlib
from matplotlib.figure import Figure

from stepalign_jax.report.panels import INK

_STYLE = re.compile(r' style="([^"]*)"')


def to_svg(figure: Figure, *, name: str, alternative: str) -> str:
    """Returns `figure` as one <svg> element, the same bytes for the same figure.

    Args:
      figure: its background is left out.
      name: goes before every id.
      alternative: what the figure shows, in words, for those who do not see it.
    """
    figure.patch.set_visible(False)
    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<style [^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = _STYLE.sub(_attributes, svg).replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub("<svg[^>]*>", lambda tag: _root(tag[0], alternative), svg, count=1)


def _attributes(style: re.Match[str]) -> str:
    """style="fill: none; stroke: #fff" -> fill="none" stroke="#fff"; the font is the root's."""
    parts = (part.split(":", 1) for part in html.unescape(style[1]).split(";") if part.strip())
    found = {name.strip(): value.strip() for name, value in parts}
    found.pop("font-family", None)
    return "".join(f' {name}="{html.escape(value)}"' for name, value in found.items())


def _root(tag: str, alternative: str) -> str:
    """The opening tag: as wide as its place, and told in words."""
    found = re.search(r'viewBox="([^"]*)"', tag)
    assert found, tag
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{found[1]}" width="100%" role="img" aria-label="{html.escape(alternative)}" '
        'font-family="system-ui, sans-serif" fill="currentColor" stroke-linejoin="round" '
        'stroke-linecap="butt">'
    )
