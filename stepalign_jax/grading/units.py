# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The unit behind a number, and words in place of a number."""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

# name: (dimension, size, other spellings)
_UNITS = {
    "m": ("length", "1", "meter meters metre metres"),
    "cm": ("length", "1/100", "centimeter centimeters centimetre centimetres"),
    "mm": ("length", "1/1000", "millimeter millimeters millimetre millimetres"),
    "km": ("length", "1000", "kilometer kilometers kilometre kilometres"),
    "inch": ("length", "127/5000", "inches in"),
    "ft": ("length", "381/1250", "foot feet"),
    "yd": ("length", "1143/1250", "yard yards"),
    "mile": ("length", "201168/125", "miles mi"),
    "g": ("mass", "1", "gram grams"),
    "kg": ("mass", "1000", "kilogram kilograms"),
    "mg": ("mass", "1/1000", "milligram milligrams"),
    "s": ("time", "1", "sec secs second seconds"),
    "min": ("time", "60", "mins minute minutes"),
    "h": ("time", "3600", "hr hrs hour hours"),
    "day": ("time", "86400", "days"),
    "week": ("time", "604800", "weeks"),
    "month": ("months", "1", "months"),
    "year": ("months", "12", "years"),
    "L": ("volume", "1", "l liter liters litre litres"),
    "mL": ("volume", "1/1000", "ml milliliter milliliters millilitre millilitres"),
    "dollar": ("money", "1", r"dollars \dollar usd USD"),
    "cent": ("money", "1/100", "cents \\cent"),
    "degree": ("angle", "1", r"degrees \degree deg"),
    "unit": ("unit", "1", "units"),
    "mph": ("mph", "1", ""),
}
_NAMES = {
    word: name for name, (_, _, others) in _UNITS.items() for word in (name, *others.split())
}
_LONG = [name for name in _NAMES if name.isalpha() and len(name) > 1]
_WORDS = "|".join(sorted(_LONG, key=len, reverse=True))
_UNIT = rf"(?:(?:square|sq|cubic) )?(?:{_WORDS}|[mgshLl])(?:\^\{{?[23]\}}?)?"
_TEXT = r"(?:\\(?:text|mathrm|mbox|textrm|operatorname)\{[^{}]*\}(?:\^\{?[23]\}?)?)"
_QUANTITY = re.compile(
    rf"(?P<value>.*[\d)}}|a-z])(?: ?(?P<text>{_TEXT}(?:/{_TEXT})?)"
    rf"|(?:(?<=[\d}}])| )(?P<word>(?:{_WORDS})(?:\^\{{?[23]\}}?)?(?:/{_UNIT})?)"
    rf"|(?:(?<=}})| )(?P<noun>[a-z]{{3,}}(?: [a-z]{{3,}})?)"
    rf"| (?P<words>{_UNIT}(?:(?:/| per ){_UNIT})?)"
    rf"| ?(?P<sign>\\%|\\degree|\\dollar|\\cent|\\euro))"
)
_SHORT_WORDS = ("no", "yes", "odd", "all", "red", "one", "two", "six", "ten")
_MONEY = re.compile(r"(-?)\\(dollar|euro|pound) ?(.+)")
_BASE = re.compile(r"(\d+)_\{?(\d+)\}?")
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_NO_UNIT = re.compile(r"\b(?:or|and|if|for|where|mod|base|is)\b")
_WORD = re.compile(
    r"(?:\\(angle|triangle|overline|overrightarrow))? ?\{?([A-Za-z][A-Za-z '-]*)\}?"
)


class Quantity(NamedTuple):
    """A value's text and its unit's: `12 cm^{2}` is (`12`, `cm^2`); no unit is empty."""

    value: str
    unit: str


@functools.lru_cache(maxsize=65536)
def split_unit(text: str) -> Quantity:
    """Takes the unit off a normalized text."""
    if money := _MONEY.fullmatch(text):
        return Quantity(f"{money[1]}{money[3]}", money[2])
    if based := _BASE.fullmatch(text):
        return Quantity(based[1], f"base {based[2]}")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return Quantity(text, "")
    value, *units = match.groups()
    unit = re.sub(r"\\[a-z]+\{([^{}]*)\}", r"\1", next(filter(None, units)))
    if "{" in value and value.count("{") != value.count("}"):
        return Quantity(text, "")
    if unit == r"\degree" and _FUNCTION.search(value):  # an angle inside
        return Quantity(text, "")
    if _NO_UNIT.search(unit) or not re.search(r"\d|\\pi", value):
        return Quantity(text, "")
    return Quantity(value.strip(), _unit_name(unit))


def _unit_name(unit: str) -> str:
    unit = unit.replace("{", "").replace("}", "").strip(" .")
    if unit == r"\%":
        return "%"
    unit = re.sub(r"\b(?:square|sq) (\w+)", r"\1^2", re.sub(r"\bcubic (\w+)", r"\1^3", unit))
    unit = unit.replace(" per ", "/")
    return re.sub(r"\\?[A-Za-z]+", _base_name, unit)


def _base_name(match: re.Match[str]) -> str:
    spelled = match.group()
    return _NAMES.get(spelled) or _NAMES.get(spelled.lower(), spelled)


def factor_between(first: str, second: str) -> Fraction | None:
    """Size of unit `first` in units of `second`; None if the two cannot be compared."""
    if first == second:
        return Fraction(1)
    (name, _, power), (other, _, other_power) = first.partition("^"), second.partition("^")
    if power != other_power or name not in _UNITS or other not in _UNITS:
        return None
    (dimension, size, _), (other_dimension, other_size, _) = _UNITS[name], _UNITS[other]
    if dimension != other_dimension:
        return None
    return (Fraction(size) / Fraction(other_size)) ** int(power or 1)


def word(text: str) -> str | None:
    r"""The word that a normalized text is, in one spelling; None if it may be a product.

    `ADCB` and `Tuesday` are words, and `No` is `no`. One letter and two or three small ones
    may be numbers. Letters that name a figure may be read from either end where the
    figure is the same: `\angle ABC` is `\angle CBA`.
    """
    plain = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r"\1", text).strip(" .")
    match = _WORD.fullmatch(plain)
    if match is None:
        return None
    figure, letters = match[1], match[2].strip()
    if figure:
        letters = letters.replace(" ", "")
        turned = figure in ("angle", "overline") and letters > letters[::-1]
        return f"{figure} {letters[::-1] if turned else letters}"
    if letters.isupper():
        return letters.replace(" ", "") if len(letters) > 1 else None
    is_product = re.fullmatch(r"[a-z ]{1,3}|[A-Za-z]|(?:[A-Za-z] ){1,5}[A-Za-z]", letters)
    if is_product and letters not in _SHORT_WORDS:
        return None
    return " ".join(letters.lower().split())
