# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The mathematics in the text of a reasoning step: numbers, and equations with their sides.

What is compared leaves out brackets and articles, so that other words around the same equation
are no change. What is exchanged keeps them, so that an equation moves as a whole.
"""

import re

_DIGITS, _COMMAND = r"\d+(?:\.\d+)?", r"\\[A-Za-z]+"

NUMBER = re.compile(_DIGITS)
_RELATION = re.compile(r"=|≈|\\approx|\b(?:gives|equals|is)\b")
RESULT = re.compile(
    rf"(?:{_RELATION.pattern})[\s$({{\[-]*({_DIGITS})"
)  # group 1, behind a relation

# A number, a letter that stands alone (but no article), a TeX command or a sign.
_COMPARED = re.compile(
    rf"{_DIGITS}|(?<![A-Za-z\\])[B-HJ-Zb-z](?![A-Za-z])|{_COMMAND}|[-+*/^<>!|]"
)
# A number, a letter that stands alone, a TeX command or a sign; words of a sentence are none.
_EXCHANGED = rf"(?:{_DIGITS}|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|{_COMMAND}|[-+*/^(){{}}!|])"
_SIDE = rf"{_EXCHANGED}(?: ?{_EXCHANGED})*"
_EQUATION = re.compile(rf"({_SIDE})( ?= ?)({_SIDE})")


def sides(text: str) -> list[list[str]]:
    """47+24=71 and "71 is 47+24" -> [[47, +, 24], [71]]; sides of words alone are left out."""
    found = [_COMPARED.findall(side) for side in _RELATION.split(text)]
    return sorted(side for side in found if side)


def reworded(text: str) -> str | None:
    """Returns `text` with the sides of its first equation exchanged; None if it has none.

    It says the same thing in other tokens: 47+24=71 becomes 71=47+24.
    """
    found = _EQUATION.search(text)
    if found is None:
        return None
    return text[: found.start()] + found[3] + found[2] + found[1] + text[found.end() :]
