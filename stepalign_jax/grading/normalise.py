# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
r"""One spelling for answers that mean the same: text in, text out, no mathematics.

The result is LaTeX without layout: `**$1\,234.50$**` becomes `1234.50`, `pi/2` becomes
`\pi/2`, `\dfrac\pi4` becomes `\frac{\pi}{4}`. A text that several formulas share, or that
holds a word no formula has, is left as it is, and `is_readable` is False for it.
"""

import functools
import re
from itertools import pairwise

from stepalign_jax.grading.spelling import closing_brace, one_spelling

MAX_CHARACTERS = 2000  # of an answer that is read; matching takes the square of it, or more
MAX_WRAPPERS = 8  # of an answer, as in `**$\\boxed{$7$}$**.`

_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot "}
    | {"÷": "/", "⁄": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le "}
    | {"≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "°": r"^\circ ", "º": r"^\circ "}
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}"}
    | {"≈": r"\approx ", "…": r"\ldots ", "∠": r"\angle ", "△": r"\triangle ", "±": r"\pm "}
    | {"√": r"\sqrt", "％": "%", "，": ",", "（": "(", "）": ")", "＝": "=", "’": "'"}
    | {"€": r"\euro ", "£": r"\pound "}
    | {"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}"}
    | {"¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅙": r"\frac{1}{6}", "⅛": r"\frac{1}{8}"}
    | dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f", "~")
    | dict.fromkeys("\u200b\u2060\ufeff", None)
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
    | {
        chr(code): rf"\{name} "
        for name, code in {
            "alpha": 0x3B1,
            "beta": 0x3B2,
            "gamma": 0x3B3,
            "delta": 0x3B4,
        }.items()
    }
    | {"θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega "}
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_DELIMITERS += (("__", "__"), ("`", "`"), ("*", "*"))
# Commands around a whole answer that do not change what it says.
_STYLES = (
    "boxed|fbox|framebox|underline|underset|textbf|textit|textrm|textnormal|text|mathrm|mathbf"
    "|mathit|mathsf|boldsymbol|bm|mbox|hbox|ensuremath|displaystyle|emph|uline|mathnormal"
)
_STYLED = re.compile(rf"\\(?:{_STYLES})\s*(?=\{{)")
_MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_ANNOUNCES = re.compile(
    r"(?i)(?:answer|result|solution|value|total|therefore|thus|hence|\bso\b)"
)
# A command with two backslashes, out of a JSON string.
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z]{2,}|[{}])")
_LAYOUT_BETWEEN = re.compile(r"\\q?quad|\\text|\\[()\[\],; ]|[\s${}]")
_APPROXIMATELY = re.compile(r"^(?:\\approx|\\simeq|\\sim|~|=|:)\s*")

_DIGITS_APART = re.compile(r"\d\s+[\d.]")
_COMMANDS = re.compile(
    r"\\(?:text|mathrm|operatorname)\{[^{}]*\}|\\(?:begin|end)\{\w+\}|\\[A-Za-z]+"
)
_LOWER_WORD = re.compile(
    r"[a-z]{4,}|[A-Z][a-z]{2,}|\b(?:and|not|for|all|the|sum|mod|div|no|is|if|of)\b"
)


@functools.lru_cache(maxsize=65536)
def normalize(answer: str) -> str:
    """`answer` in the one spelling: no wrappers, no layout, plain digits.

    A longer text than `MAX_CHARACTERS` is left as it is, and is not readable.
    """
    if len(answer) > MAX_CHARACTERS:
        return " ".join(answer.split())
    text = " ".join(answer.translate(_CHARACTERS).split())
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    if r"\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text)
    text = _unwrap(text.replace(r"\$", "\\dollar "))
    if text.count("$") == 1 and text != "$":
        text = text.replace("$", "\\dollar ")
    if r"\boxed" in text:
        text = _unwrap(_last_box(text))
    if "$" in text or r"\(" in text or r"\[" in text:
        text = _only_formula(text)
    return _unwrap(one_spelling(text)) if text else ""


def _unwrap(text: str) -> str:
    for _ in range(MAX_WRAPPERS):
        peeled = _APPROXIMATELY.sub("", _peel(text.strip()).strip()).strip()
        if peeled == text:
            break
        text = peeled
    return text


def _peel(text: str) -> str:
    """`text` without its outermost wrapper, or without the full stop behind it."""
    for left, right in _DELIMITERS:
        inner = text[len(left) : -len(right)]
        is_wrapped = text.startswith(left) and text.endswith(right) and len(text) > len(left)
        if is_wrapped and inner.strip() and left not in inner and right not in inner:
            return inner
    styled = _STYLED.match(text)
    if styled and closing_brace(text, styled.end()) == len(text) - 1:
        return text[styled.end() + 1 : -1]
    if text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
        return text[1:-1]
    if re.fullmatch(r"\\boxed\s*[^\s{]+", text):
        return text.removeprefix(r"\boxed")
    if re.fullmatch(r"\(([A-Za-z])\)", text):  # a choice
        return text[1]
    if text.endswith((".", ",", ";")) and not text.endswith(("..", r"\,", r"\;")):
        return text[:-1]
    return text


def _last_box(text: str) -> str:
    """The content of the last box, if words or nothing but a formula stand before it.

    Boxes side by side are a list if list's words are between them, and nothing otherwise.
    """
    spans = []
    for match in re.finditer(r"\\boxed\s*(?=\{)", text):
        end = closing_brace(text, match.end())
        if end > 0 and not any(start < match.start() < stop for start, stop, _ in spans):
            spans.append((match.start(), end + 1, text[match.end() + 1 : end]))
    if not spans:
        return text
    gaps = [_LAYOUT_BETWEEN.sub("", text[a[1] : b[0]]) for a, b in pairwise(spans)]
    if gaps and all(gap in ("", ",", "and", "or", ",and", ",or") for gap in gaps):
        return ", ".join(content for *_, content in spans) if all(gaps) else text
    return spans[-1][2]


def _only_formula(text: str) -> str:
    """The formula in a sentence, or the list in `$1$ or $2$`; else `text` as it is.

    Of several formulas without a list's words between them none is the answer, unless
    the last one is announced: `for $n=3$ the answer is $7$`.
    """
    found = list(_MATH.finditer(text))
    if not found:
        return text
    formulas = [_unwrap(next(group for group in match.groups() if group)) for match in found]
    after = text[found[-1].end() :].strip(" .*,;:!")
    if len(found) == 1:
        percent = re.match(r"\\?%|percent", after)
        unit = after if re.fullmatch(r"[A-Za-z^\d/\\{}%]{1,12}( [a-z]+)?", after) else ""
        before = text[: found[0].start()].rstrip()
        if re.search(r"(?i)\bnot\b|=$", before) or re.match(r"[-+*/^=<>]", after):
            return text
        return f"{formulas[0]} {percent[0] if percent else unit}".strip()
    gaps = [text[a.end() : b.start()].strip() for a, b in pairwise(found)]
    between = [gap.strip(" ,") for gap in gaps]
    if all(words in ("", "and", "or") for words in between) and not after:
        return ", ".join(formulas) if all(gaps) else text
    announced = _ANNOUNCES.search(between[-1]) and not re.search(r"(?i)\bnot\b", text)
    return formulas[-1] if announced and not after else text


def is_readable(text: str) -> bool:
    """Whether all of a normalized text may be a formula: no prose, no digits apart."""
    return not (
        len(text) > 2 * MAX_CHARACTERS
        or "$" in text
        or _DIGITS_APART.search(text)
        or _LOWER_WORD.search(_COMMANDS.sub(" ", text))
    )
