# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
r"""The form of an answer, and the comparison of two by form: text, no mathematics.

A form is a tuple, a set, a list, named values, a region of the line, or one value. Elements
are compared by a function that the caller gives (`values.same`), so brackets, order and
names are never left to an algebra system, which reads `(1,2)` as an interval, a point or a
product.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

# (gold, answer) -> whether two texts without a form of their own have the same value.
Same = Callable[[str, str], bool]

_OPEN, _CLOSE = "([{", ")]}"
_RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|[<>]")
_LETTER = re.compile(r"(?:[A-Za-z]|\\(?!infty|pi)[a-z]+)(?:_\{?\w+\}?)?(?:\([a-z]\))?")
_WORDS_BETWEEN = re.compile(
    r",? ?\\(?:text|mathrm|mbox)\{ ?(?:and|or) ?\},? ?"
    r"|(?:,? |(?<=[^A-Za-z ]))(?:and|or)(?: |(?=[^A-Za-z]))"
    r"|\\(?:lor|vee|land|wedge)(?![A-Za-z]) ?|; ?"
)
_IN = re.compile(r"(?:[A-Za-z]|\\[a-z]+)\\in(?![A-Za-z]) ?")
_SET_BUILDER = re.compile(r"\\\{([A-Za-z])[|:]\1? ?(.*)\\\}")
_FORMS = ("tuple", "set", "region")  # that say by themselves what they are
_SET_UNION = re.compile(r"\\\} ?\\cup ?\\\{")
_RATIO = re.compile(r"[^:]+(?::[^:]+)+")
_LINE = ("-\\infty", "\\infty")


class Interval(NamedTuple):
    low: str
    low_open: bool
    high: str
    high_open: bool


class Form(NamedTuple):
    """kind: value, tuple, set, list, named or region.

    items: the elements' texts; for `region` its intervals.
    names: of `named` values, or the one before a value, as `("x",)` in `x=5`, or of the
      variable of a region; () where there is none.
    brackets: of a tuple, as `(]`.
    """

    kind: str
    items: tuple
    names: tuple[str, ...] = ()
    brackets: str = ""


def split_outside(text: str, separator: str) -> list[str]:
    """Splits at `separator` outside all brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0 and character == separator:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


@functools.lru_cache(maxsize=4096)
def read_form(text: str) -> Form:
    """The form of a normalized text."""
    text = _IN.sub("", text, count=1) if _IN.match(text) else text
    if builder := _SET_BUILDER.fullmatch(text):
        text = builder[2]
    name, _, rest = text.partition("=")
    if rest and "=" not in rest and _is_name(name) and read_form(rest).kind in _FORMS:
        return read_form(rest)
    if (region := _read_region(text)) is not None:
        return region
    text = _WORDS_BETWEEN.sub(", ", _SET_UNION.sub(", ", text))
    if text.startswith(r"\{") and text.endswith(r"\}") and r"\}" not in text[2:-2]:
        return Form("set", tuple(dict.fromkeys(_plus_minus(split_outside(text[2:-2], ",")))))
    pair = text[:1] in ("(", "[") and text[-1:] in (")", "]")
    if pair or (text.startswith(r"\langle") and text.endswith(r"\rangle")):
        inner = text[1:-1] if pair else text[7:-7]
        parts = split_outside(inner, ",")
        if len(parts) > 1 and all(parts) and (not pair or _is_one_bracket(text)):
            return Form("tuple", tuple(parts), brackets=text[0] + text[-1] if pair else "()")
    if "=" not in text and _RATIO.fullmatch(text):
        return Form("tuple", tuple(_lowest_terms(text.split(":"))), brackets="::")
    parts = [part for part in split_outside(text, ",") if part]
    if len(parts) > 1:
        return _read_list(parts)
    values = _plus_minus([text])
    if len(values) > 1:
        return _read_list(values)
    return _read_value(text)


def _is_one_bracket(text: str) -> bool:
    """Whether the first bracket closes at the end: not so in `(1,2),(3,4)`."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0:
            return index == len(text) - 1
    return False


def _lowest_terms(parts: list[str]) -> list[str]:
    if not all(re.fullmatch("[1-9][0-9]*", part) for part in parts):  # 12:00 is a time
        return parts
    divisor = math.gcd(*map(int, parts)) or 1
    return [str(int(part) // divisor) for part in parts]


def _plus_minus(parts: Sequence[str]) -> list[str]:
    found = []
    for part in parts:
        if part.count(r"\pm") + part.count(r"\mp") != 1:
            found.append(part)
            continue
        for sign in "+-":
            signed = re.sub(r"\\[pm]{2}(?![A-Za-z]) ?", sign, part)
            found.append(re.sub(r"(^|[=(])\+", r"\1", signed))
    return found


def _read_list(parts: list[str]) -> Form:
    values = [_read_value(part) for part in _plus_minus(parts)]
    names = [value.names[0] if value.names else "" for value in values]
    texts = tuple(value.items[0] for value in values)
    if all(names) and len(set(names)) == len(names):
        return Form("named", texts, tuple(names))
    named = set(filter(None, names))
    # `x=1, 2` and `x=1, x=2` list the values of one name.
    return Form("list", texts, tuple(named) if len(named) == 1 and names[0] else ())


def _read_value(text: str) -> Form:
    parts = split_outside(text, "=")
    if len(parts) > 1 and all(parts) and _is_name(parts[0]):
        return Form("value", ("=".join(parts[1:]),), (parts[0],))
    if len(parts) == 2 and all(parts) and _is_name(parts[1]):
        return Form("value", (parts[0],), (parts[1],))
    return Form("value", (text,))


def _is_name(text: str) -> bool:
    r"""`x`, `f(2)`, `(x,y)`, `\angle ABC`, `\text{Area}`, `|AB|`, `\frac{NO}{BO}`, `S_1:S`.

    No sums, powers and multiples: `2x=6` names nothing.
    """
    plain = re.sub(r"_(?:\{\w+\}|\w)|(?<=[A-Za-z])\([A-Za-z0-9, ]+\)'*", "", text)
    plain = re.sub(r"\\[A-Za-z]+", " x", plain)
    return re.fullmatch(r"[A-Za-z {}|:/(),]*[A-Za-z][A-Za-z {}|:/(),]*", plain) is not None


# --- regions of the line ---


def _read_region(text: str) -> Form | None:
    r"""`-1\le x<2`, `x<1 or x>2`, `(-\infty, 1)\cup(2, \infty)`, `\mathbb{R}`."""
    if text == r"\mathbb{R}":
        return Form("region", (Interval(_LINE[0], True, _LINE[1], True),))
    pieces, intervals, names = [text], [], set()
    if r"\cup" in text:
        pieces = re.split(r"\\cup(?![A-Za-z]) ?", text)
    elif _RELATION.search(text):
        pieces = _WORDS_BETWEEN.split(text)
        if len(pieces) == 1:
            pieces = split_outside(text, ",")
        if re.search(r"\band\b|\\land|\\wedge", text):
            return None
    for piece in pieces:
        found = _read_inequality(piece) or (len(pieces) > 1 and _read_interval(piece))
        if not found:
            return None
        name, found_intervals = found
        intervals += found_intervals
        names.add(name)
    names.discard("")
    return Form("region", tuple(intervals), tuple(names)) if len(names) < 2 else None


def _read_interval(text: str) -> tuple[str, list[Interval]] | None:
    parts = split_outside(text[1:-1], ",")
    if len(parts) != 2 or text[0] not in "([" or text[-1] not in ")]":
        return None
    return "", [Interval(parts[0], text[0] == "(", parts[1], text[-1] == ")")]


def _read_inequality(text: str) -> tuple[str, list[Interval]] | None:
    signs = [match.group() for match in _RELATION.finditer(text)]
    sides = [side.strip() for side in _RELATION.split(text)]
    if "=" in text or not all(sides):
        return None
    if len(signs) == 2 and _LETTER.fullmatch(sides[1]):
        if signs[0] in (">", r"\ge"):
            signs, sides = [_flip(sign) for sign in signs[::-1]], sides[::-1]
        if any(sign not in ("<", r"\le") for sign in signs):
            return None
        low, name, high = sides
        return name, [Interval(low, signs[0] == "<", high, signs[1] == "<")]
    if len(signs) != 1:
        return None
    (sign,), (left, right) = signs, sides
    if _LETTER.fullmatch(right) and not _LETTER.fullmatch(left):
        sign, left, right = _flip(sign), right, left
    if not _LETTER.fullmatch(left) or re.search(r"(?<!\\)\b[a-zA-Z]\b", right.replace("e", "")):
        return None
    if sign == r"\ne":
        return left, [
            Interval(_LINE[0], True, right, True),
            Interval(right, True, _LINE[1], True),
        ]
    if sign in ("<", r"\le"):
        return left, [Interval(_LINE[0], True, right, sign == "<")]
    return left, [Interval(right, sign == ">", _LINE[1], True)]


def _flip(sign: str) -> str:
    return {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}.get(sign, sign)


# --- comparison ---


def same_form(gold: str, answer: str, same: Same) -> bool:
    """Whether two normalized texts have one form and equal elements.

    A list has no order and no brackets. It equals a set, and it equals a tuple in round
    brackets whose elements stand in its order. `x=6, y=5` equals `(6,5)`. A set never
    equals a tuple. A region equals an interval, which is written like a tuple of two.
    """
    first, second = read_form(gold), read_form(answer)
    if "region" in (first.kind, second.kind):
        if _same_regions(first, second, same):
            return True
        return all(map(_RELATION.search, (gold, answer))) and same(gold, answer)  # -x>-1 is x<1
    if first.kind == second.kind == "value":
        return _same_values(first, second, gold, answer, same)
    if first.kind == second.kind == "named":
        return sorted(first.names) == sorted(second.names) and _in_order(
            _by_name(first), _by_name(second), same
        )
    if first.kind == second.kind == "tuple":
        return first.brackets == second.brackets and _in_order(first.items, second.items, same)
    if "::" in (first.brackets, second.brackets):
        return _is_quotient(first, second, same) or _is_quotient(second, first, same)
    first, second = _single(first), _single(second)
    kinds = {first.kind, second.kind}
    if kinds <= {"set", "list"}:
        return _names_agree(first, second) and _in_any_order(first.items, second.items, same)
    if "tuple" in kinds and kinds <= {"tuple", "list", "named"}:
        round_brackets = "()" in (first.brackets, second.brackets)
        return round_brackets and _in_order(_by_name(first), _by_name(second), same)
    if kinds == {"named", "list"}:
        return _in_order(first.items, second.items, same)
    return False


def _is_quotient(ratio: Form, value: Form, same: Same) -> bool:
    """Whether a ratio of two is the value: 3:2 is 3/2."""
    if ratio.brackets != "::" or len(ratio.items) != 2 or value.kind != "value":
        return False
    return same(rf"\frac{{{ratio.items[0]}}}{{{ratio.items[1]}}}", value.items[0])


def _names_agree(first: Form, second: Form) -> bool:
    return not first.names or not second.names or first.names == second.names


def _single(form: Form) -> Form:
    """One value beside a set is a list of one."""
    return form._replace(kind="list") if form.kind == "value" else form


def _by_name(form: Form) -> tuple:
    if form.kind != "named":
        return form.items
    return tuple(form.items[form.names.index(name)] for name in sorted(form.names))


def _in_order(first: Sequence[str], second: Sequence[str], same: Same) -> bool:
    return len(first) == len(second) and all(
        same_form(a, b, same) for a, b in zip(first, second, strict=True)
    )


def _in_any_order(first: Sequence[str], second: Sequence[str], same: Same) -> bool:
    if len(first) != len(second):
        return False
    left = list(second)
    for text in first:
        match = next((other for other in left if same_form(text, other, same)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_values(first: Form, second: Form, gold: str, answer: str, same: Same) -> bool:
    """One value each: a name before one of them alone says nothing."""
    are_equations = ["=" in text for text in (gold, answer)]
    if all(are_equations) and (first.names != second.names or not first.names):
        return same(gold, answer)  # perhaps one equation in two forms: y=2x, x=y/2
    if are_equations[0] and not are_equations[1] and not first.names and _has_letter(gold):
        return False  # 2x+z=1 is not answered by 1, though 7 is answered by x+y=7
    values = []
    for form in (first, second):
        *earlier, last = split_outside(form.items[0], "=")
        # A chain is right by its end if its numbers agree: 3+4=7, but not 8=7.
        if not last or not all(same(part, last) for part in earlier if not _has_letter(part)):
            return False
        values.append(last)
    last_gold, last_answer = values
    if values == [gold, answer]:
        return same(last_gold, last_answer)
    return same_form(last_gold, last_answer, same)


def _has_letter(text: str) -> bool:
    plain = re.sub(r"\\(?!alpha|beta|gamma|theta|lambda|mu|phi|omega)[A-Za-z]+", "", text)
    return re.search(r"[A-Za-z]", plain) is not None


def _same_regions(first: Form, second: Form, same: Same) -> bool:
    intervals = []
    for form in (first, second):
        if form.kind == "tuple" and len(form.items) == 2:
            form = _as_region(form)
        if form.kind != "region":
            return False
        intervals.append(form.items)
    if not _names_agree(first, second) or len(intervals[0]) != len(intervals[1]):
        return False
    left = list(intervals[1])
    for one in intervals[0]:
        match = next((other for other in left if _same_interval(one, other, same)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _as_region(pair: Form) -> Form:
    (low, high), brackets = pair.items, pair.brackets
    return Form("region", (Interval(low, brackets[0] == "(", high, brackets[1] == ")"),))


def _same_interval(first: Interval, second: Interval, same: Same) -> bool:
    return (
        (first.low_open, first.high_open) == (second.low_open, second.high_open)
        and same(first.low, second.low)
        and same(first.high, second.high)
    )
