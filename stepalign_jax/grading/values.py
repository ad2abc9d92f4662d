# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether two texts have the same value, by SymPy. Only a worker process imports this.

Rational numbers are compared exactly. Other numbers are compared by 50 digits, relative to
their size, so 10^-34 is not 10^-31. Expressions with letters are compared at points.
math-verify decides what none of these can.
"""

import functools
import re
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import verify

from stepalign_jax.grading.forms import read_form, same_form
from stepalign_jax.grading.normalise import MAX_CHARACTERS, is_readable
from stepalign_jax.grading.spelling import rational
from stepalign_jax.grading.units import factor_between, split_unit, word

DIGITS = 50
_SIZES = {"%": sympy.Rational(1, 100), "degree": sympy.pi / 180}
TOLERANCE = sympy.Float(10, DIGITS) ** -40  # relative: 10 digits fewer than are computed
# Values for letters, of both signs: sqrt(x^2) is not x.
_POINTS = [
    [sympy.Rational(sign * (37 + 61 * i % 83), 29 + 7 * i) for i in range(12)]
    for sign in (1, -1)
]
_POINTS.append([sympy.Rational((-1) ** i * (3 + i), 11 + 5 * i) for i in range(12)])
_DECIMAL = re.compile(r"(?<![\d.])(\d*\.\d+|\d+\.(?=\D|$))")
_DEGREES = re.compile(r"(\d+|\{[^{}]*\}|\([^()]*\))\\degree")
_RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|[<>=]")


class Unreadable(Exception):
    """A text is no formula that the parser can read as a whole."""


def judge(gold: str, answer: str) -> bool:
    """Whether two normalized texts are equal."""
    return same_form(gold, answer, same)


def read(text: str) -> bool:
    """Whether a normalized text is a word or can be read, and computed, as mathematics.

    Its parts are evaluated, so this does not end for a number that cannot be written down.
    """
    if len(text) > 2 * MAX_CHARACTERS:
        return False
    if word(text) is not None:
        return True
    form = read_form(text)
    texts = form.items
    if form.kind == "region":
        texts = [end for interval in form.items for end in (interval.low, interval.high)]
    nested = any(read_form(part).kind != "value" for part in texts)
    return all((read(part) if nested and part != text else _reads(part)) for part in texts)


def _reads(text: str) -> bool:
    if word(text) is not None or rational(text) is not None:
        return True
    try:
        for side in _RELATION.split(split_unit(text).value):
            expression = parse(side)
            if isinstance(expression, sympy.Expr) and not _symbols(expression):
                _number(expression)
    except Unreadable:
        return False
    return True


def same(gold: str, answer: str) -> bool:
    """Whether two texts that are one element each have the same value."""
    if gold == answer:
        return True
    words = word(gold), word(answer)
    if words[0] is not None and words[1] is not None:
        return words[0] == words[1]
    first, second = split_unit(gold), split_unit(answer)
    if first.unit and second.unit:
        factor = factor_between(first.unit, second.unit)
        if factor is None:
            return False
        return _same_scaled(first.value, second.value, factor)
    with_unit, other = (first, second) if first.unit else (second, first)
    # 12.5% is 0.125, and it is 12.5 where the question asked for percent.
    size = _SIZES.get(with_unit.unit)
    if size is not None and _same_scaled(with_unit.value, other.value, size):
        return True
    return _same_scaled(first.value, second.value, 1) or _tight(gold) == _tight(answer)


def _tight(text: str) -> str:
    """`12 m` as a product, which is spelled `12m` too."""
    return re.sub(r"(?<=\d) (?=[A-Za-z])", "", text)


def _same_scaled(gold: str, answer: str, factor: Any) -> bool:
    first, second = rational(gold), rational(answer)
    if first is not None and second is not None and factor == 1:
        return first == second
    try:
        if _RELATION.search(gold) or _RELATION.search(answer):
            return _same_relations(gold, answer)
        expressions = parse(gold), parse(answer)
    except Unreadable:
        return False
    scaled = expressions[0] if factor == 1 else expressions[0] * sympy.sympify(factor)
    return same_expressions(scaled, expressions[1])


@functools.lru_cache(maxsize=2048)  # the samples of one problem share a gold answer
def parse(text: str) -> Any:
    """The expression that the whole of a normalized text is, decimals as fractions.

    Raises:
      Unreadable: it is not one.
    """
    if not text or not is_readable(text):
        raise Unreadable(text)
    text = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = _DECIMAL.sub(_fraction, text)
    try:
        expression: Any = latex2sympy(
            text,
            is_real=True,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),  # M+m is not 2m
        )
    except Exception as error:  # the parser raises its own, ANTLR's and SymPy's
        raise Unreadable(text) from error
    if isinstance(expression, sympy.Basic):
        return expression.subs(sympy.Symbol("i", real=True), sympy.I)
    return expression


def _fraction(match: re.Match[str]) -> str:
    value = Fraction(match.group())
    return rf"(\frac{{{value.numerator}}}{{{value.denominator}}})"


def same_expressions(first: Any, second: Any) -> bool:
    """Whether two parsed expressions are equal, matrices element by element."""
    if isinstance(first, sympy.MatrixBase) and isinstance(second, sympy.MatrixBase):
        return first.shape == second.shape and all(
            same_expressions(a, b) for a, b in zip(first.flat(), second.flat(), strict=True)
        )
    if isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr):
        symbols = _symbols(first) | _symbols(second)
        if not symbols:
            return _same_numbers(_number(first), _number(second))
        verdicts = _at_points(first, second, sorted(symbols, key=str))
        if verdicts:
            return all(verdicts)
    return bool(verify([first], [second], timeout_seconds=0))


def _symbols(expression: Any) -> set[Any]:
    return set(getattr(expression, "free_symbols", ()))


def _number(expression: Any) -> Any:
    """A rational number exactly, another to 50 digits."""
    try:
        expression = expression.doit()
    except Exception:
        return sympy.nan
    if expression.is_Rational or expression.is_infinite:
        return expression
    return _digits(expression)


def _digits(expression: Any) -> Any:
    return sympy.N(expression, DIGITS, maxn=400)


def _same_numbers(first: Any, second: Any) -> bool:
    if first is sympy.nan or second is sympy.nan or first is sympy.zoo or second is sympy.zoo:
        return False
    if first.is_infinite or second.is_infinite or (first.is_Rational and second.is_Rational):
        return bool(first == second)
    parts = [_parts(number) for number in (first, second)]
    if None in parts:
        return False
    (left, right), (left_imaginary, right_imaginary) = zip(*parts, strict=True)
    size = max(map(abs, (left, right, left_imaginary, right_imaginary)))
    gap = max(abs(left - right), abs(left_imaginary - right_imaginary))
    return bool(gap <= TOLERANCE * size)


def _parts(number: Any) -> tuple[Any, Any] | None:
    """(real, imaginary) part; a part of which no digit is certain is a zero."""
    if not number.is_number or not number.is_finite:
        return None
    real, imaginary = (
        sympy.Float(part, DIGITS) if part.is_Rational else part
        for part in number.as_real_imag()
    )
    if not (real.is_Float and imaginary.is_Float):
        return None
    # SymPy marks a sum that cancels entirely by a precision of one bit.
    zero = sympy.Float(0)
    return (zero if real._prec < 10 else real, zero if imaginary._prec < 10 else imaginary)


def _at_points(first: Any, second: Any, symbols: list[Any]) -> list[bool]:
    """The verdict at each point where both are real numbers.

    Without such a point it is taken where both are complex. So sqrt(1/n) is 1/sqrt(n).
    """
    verdicts, at_real = [], []
    for point in _POINTS:
        values = dict(zip(symbols, point, strict=False))
        try:
            numbers = [_digits(e.subs(values).doit()) for e in (first, second)]
            if all(number.is_number and number.is_finite for number in numbers):
                verdicts.append(_same_numbers(*numbers))
                at_real += verdicts[-1:] if all(n.is_real for n in numbers) else []
        except Exception:
            continue
    return at_real or verdicts


def _same_relations(gold: str, answer: str) -> bool:
    """One equation or inequality each, equal if one is the other times a constant."""
    (sign, first), (other_sign, second) = _difference(gold), _difference(answer)
    if sign != other_sign:
        return False
    symbols = sorted(_symbols(first) | _symbols(second), key=str)
    if _symbols(first) != _symbols(second) or not symbols:
        return False
    ratios = []
    for point in _POINTS:
        values = dict(zip(symbols, point, strict=False))
        above, below = (_digits(e.subs(values).doit()) for e in (first, second))
        if below == 0 or not (above.is_number and below.is_number):
            return False
        ratios.append(above / below)
    is_constant = all(_same_numbers(ratios[0], ratio) for ratio in ratios[1:])
    return is_constant and bool(ratios[0] != 0 and (sign == "=" or ratios[0] > 0))


def _difference(text: str) -> tuple[str, Any]:
    r"""(sign, left - right) of `left = right`, `left < right` or `left \le right`."""
    signs = [match.group() for match in _RELATION.finditer(text)]
    sides = _RELATION.split(text)
    if set(signs) == {"="}:
        sides, signs = [sides[0], sides[-1]], ["="]
    if len(signs) != 1:
        raise Unreadable(text)
    left, right = (parse(side.strip()) for side in sides)
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        raise Unreadable(text)
    flipped = signs[0] in (">", r"\ge")
    sign = {">": "<", r"\ge": r"\le"}.get(signs[0], signs[0])
    return sign, right - left if flipped else left - right
