# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
r"""One spelling of a formula: `1\,234.50` is `1234.50`, `\dfrac\pi4` is `\frac{\pi}{4}`.

Text in, text out. Only `rational` gives a value, of a text that is a number and no more.
"""

import functools
import re
from fractions import Fraction

_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]ig+[lrm]?|displaystyle|textstyle|limits|nolimits|quad|qquad|enspace"
    r"|hfill|phantom\{[^{}]*\}|hspace\*?\{[^{}]*\}|mathstrut|strut)(?![A-Za-z])\.?"
)
_FRACTION_NAMES = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SYNONYMS = [
    (re.compile(pattern), text)
    for pattern, text in [
        (r"\\(?:leq|leqslant|leqq)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant|geqq)(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\(?:lt)(?![A-Za-z])", "<"),
        (r"\\(?:gt)(?![A-Za-z])", ">"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])", r"\\degree "),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:R|reals|mathbf\{R\}|Bbb\s*R)(?![A-Za-z])|\\mathbb\s*R", r"\\mathbb{R}"),
        (r"\\mathrm\{(i|e|d)\}|\\(?:imath|iu)(?![A-Za-z])", lambda m: m[1] or "i"),
        (r"\\(?:text(?:bf|it|rm|normal)|math(?:rm|bf|it)|mbox)(?=\{)", r"\\text"),
        (r"\*\*", "^"),
        (r"\\ast(?![A-Za-z])|\*", r"\\cdot "),
        (r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])", "|"),
        (r"\.\.\.|\\[cd]?dots(?![A-Za-z])", r"\\ldots "),
        (r"(^|[\[(,] ?)\+(?=\\infty)", r"\1"),
        (r"\\%|%|(?<=\d)\s*(?:percent(?:age)?|pct)\b", r"\\%"),
    ]
]

# The thousands separators; a group behind one has three digits.
_SEPARATOR = (
    r"(?:\{,\}|\{\\,\}|\\text\{,\}|\\mathord\{,\}|,\\! ?|,|\\[,;:! ]|\\thinspace\s?|\\space\s?"
    r"|~|['_ ]|\{ \})"
)
_THOUSANDS = re.compile(
    rf"(?<![\d.,'_])[1-9]\d{{0,2}}({_SEPARATOR})\d{{3}}(?:\1\d{{3}})*(?!\d)"
)
_EUROPEAN = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.])")
_INDIAN = re.compile(r"(?<![\d.,])[1-9]\d?(?:,\d{2})+,\d{3}(?![\d,])")
_DECIMAL_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d)|(?<=^0),(?=\d+$)|(?<=^-0),(?=\d+$)")
_SPACES = re.compile(
    r"(?<!\\)\\[,;:! ]|\\(?:thinspace|space|thickspace|medspace)(?![A-Za-z])|~"
)
_SCIENTIFIC = re.compile(r"(?<![\w.\\}])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?!\w)")

_FUNCTIONS = (
    "sqrt|pi|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|gcd|theta"
    "|alpha|beta|gamma|infty|cup|cap|pm|le|ge|times|cdot"
)
_PLAIN = re.compile(rf"(?<![\\A-Za-z{{])({_FUNCTIONS})(?![A-Za-z])")
_INFINITY = re.compile(r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])")
_TOKEN = r"(?:\\[A-Za-z]+|[A-Za-z0-9])"
_MIXED = re.compile(r"(?<![\d.}^_])(\d+)(?:\s|\\ )*\\frac\{(\d+)\}\{(\d+)\}")
_PLAIN_MIXED = re.compile(r"(?<![\d./^_])(\d+)[ -](\d+)/(\d+)(?![\d./])")
_POWER = re.compile(r"\^\s*(-?\d+(?![\d.])|\\[A-Za-z]+)")
_SUBSCRIPT = re.compile(r"_\s*(\d+|[A-Za-z])")
_BARE_ROOT = re.compile(r"\\sqrt\s*(\d+|[A-Za-z]|\\[A-Za-z]+)")
_REPEATING = re.compile(
    r"(\d*)\.(\d*)(?:\\(?:overline|bar|overbar)\s*(?:\{(\d+)\}|(\d))|\((\d+)\)"
    r"|\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?)"
)
_DOTS = re.compile(r"(?<!\d)(\d+)\.(\d*?)(\d{1,6}?)\3{2,}\s*(?:\\[lc]?dots|\.\.\.)")


def one_spelling(text: str) -> str:
    r"""`text`, a formula without wrappers, without layout and in plain digits."""
    text = _FRACTION_NAMES.sub(r"\\frac", _LAYOUT.sub(" ", text))
    text = _INDIAN.sub(_digits, _plain_thousands(text))
    text = _EUROPEAN.sub(_digits, text)
    text = _SPACES.sub(" ", _DECIMAL_COMMA.sub(".", text))
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    text = _SCIENTIFIC.sub(_power_of_ten, text)
    text = _REPEATING.sub(_repeating, _DOTS.sub(r"\1.\2\\overline{\3}", text))
    text = _INFINITY.sub(r"\\infty ", _PLAIN.sub(r"\\\1 ", text))
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", _braced(text, re.compile(r"(\\sqrt|\^)\s*\(")))
    text = _PLAIN_MIXED.sub(_mixed, _MIXED.sub(_mixed, _full_fractions(text)))
    text = _SUBSCRIPT.sub(r"_{\1}", _POWER.sub(r"^{\1}", text))
    return _tight(text)


def _digits(match: re.Match[str]) -> str:
    return re.sub(r"\D", "", re.sub(r"\\[a-z]+", "", match.group()))


def _plain_thousands(text: str) -> str:
    """Takes separators out of numbers; a comma between brackets separates elements."""

    def plain(match: re.Match[str]) -> str:
        before = text[: match.start()]
        depth = sum(map(before.count, "([")) - sum(map(before.count, ")]"))
        depth += before.count(r"\{") - before.count(r"\}")
        return match.group() if match[1] == "," and depth > 0 else _digits(match)

    return _THOUSANDS.sub(plain, text)


def _power_of_ten(match: re.Match[str]) -> str:
    return rf"{match[1]}\times 10^{{{int(match[2])}}}"


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, bar, short, brackets, first, middle, last = (g or "" for g in match.groups())
    period = bar or short or brackets or f"{first}{middle}{last}"
    value = Fraction(int(f"{whole}{fixed}{period}") - int(f"0{whole}{fixed}"))
    value /= (10 ** len(period) - 1) * 10 ** len(fixed)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(match: re.Match[str]) -> str:
    whole, above, below = (int(group) for group in match.groups())
    if above >= below:
        return match.group()
    return rf"\frac{{{whole * below + above}}}{{{below}}}"


def _braced(text: str, opening: re.Pattern[str]) -> str:
    """`\\sqrt(...)` and `^(...)` with braces in place of the brackets."""
    position = 0
    while (match := opening.search(text, position)) is not None:
        depth, end = 0, match.end() - 1
        for end in range(match.end() - 1, len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if depth == 0:
                break
        if depth:
            return text
        inner = text[match.end() : end]
        text = f"{text[: match.start()]}{match[1]}{{{inner}}}{text[end + 1 :]}"
        position = match.start() + 1
    return text


def _full_fractions(text: str) -> str:
    r"""`\frac` with braces around both arguments: `\frac\pi4` is `\frac{\pi}{4}`."""
    parts, position = [], 0
    while (match := re.compile(r"\\frac(?![A-Za-z])").search(text, position)) is not None:
        first, end = _argument(text, match.end())
        second, end = _argument(text, end)
        if not first or not second:
            break
        parts += [text[position : match.start()]]
        parts += [rf"\frac{{{_full_fractions(first)}}}{{{_full_fractions(second)}}}"]
        position = end
    return "".join(parts) + text[position:]


def _argument(text: str, start: int) -> tuple[str, int]:
    """(a command's argument at `start`, where it ends): a braced group or one token."""
    while start < len(text) and text[start] == " ":
        start += 1
    if text[start : start + 1] == "{":
        end = closing_brace(text, start)
        return (text[start + 1 : end].strip(), end + 1) if end > 0 else ("", start)
    token = re.compile(_TOKEN).match(text, start)
    return (token.group(), token.end()) if token else ("", start)


def _tight(text: str) -> str:
    """No spaces but between two letters or digits, and one behind a comma or command."""
    text = re.sub(r"\s*([^\w\s\\])\s*|\s+(?=\\[A-Za-z{])", r"\1", text)
    text = re.sub(r"(\\[A-Za-z]+)\s+(?![A-Za-z])", r"\1", text)
    return re.sub(r"\s+", " ", text.replace(",", ", ")).strip()


def closing_brace(text: str, opening: int) -> int:
    """Index of the brace that closes the one at `opening`; -1 if none does."""
    depth = 0
    for brace in re.compile(r"\\[{}\\]|[{}]").finditer(text, opening):
        depth += (brace.group() == "{") - (brace.group() == "}")
        if depth == 0:
            return brace.start()
    return -1


_DECIMAL = r"\d+(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"([+-]*)(?:(?P<plain>{_DECIMAL})(?:\\(?:times|cdot)10\^\{{(?P<ten>-?\d{{1,5}})\}})?"
    rf"|\\frac\{{(?P<a>-?(?:{_DECIMAL}))\}}\{{(?P<b>-?(?:{_DECIMAL}))\}}"
    rf"|\(?(?P<c>-?(?:{_DECIMAL}))\)?/\(?(?P<d>-?(?:{_DECIMAL}))\)?)"
)


@functools.lru_cache(maxsize=65536)
def rational(text: str) -> Fraction | None:
    """The value of a normalized text that is a decimal or a fraction of two; else None."""
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > 4000:
        return None
    above, below = match["plain"] or match["a"] or match["c"], match["b"] or match["d"] or "1"
    if not Fraction(below):
        return None
    sign = -1 if match[1].count("-") % 2 else 1
    return sign * Fraction(above) / Fraction(below) * Fraction(10) ** int(match["ten"] or 0)
