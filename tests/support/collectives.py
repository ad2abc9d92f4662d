# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads from the text of a compiled program what devices send each other and what they copy.

found = collectives(compiled.as_text())
found[0].kind, found[0].elements, found[0].path     "all-reduce", 256, ".../down_proj/..."
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|ragged-all-to-all"
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])")
_COPY = re.compile(r"= (\S+) (?:copy|transpose)\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|\w*_computations?)=(\{[^}]*\}|[%\w.-]+)"
)


class Collective(NamedTuple):
    """One exchange between devices.

    Attributes:
      kind: all-gather, all-reduce, ...
      shapes: of its results on one device, those of all arrays that it exchanges at once.
      num_bytes: of these results.
      path: where it comes from, in the names of modules and JAX's primitives.
      computation: that holds it.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    num_bytes: int
    path: str
    computation: str

    @property
    def elements(self) -> int:
        """Of the largest array."""
        return max(map(math.prod, self.shapes))


def collectives(text: str) -> list[Collective]:
    """Every exchange of the program, those in loops and branches once.

    One along axes of a single device is none, though it may stand in the text.
    """
    found = []
    for computation, line in _lines(text):
        if (operation := _OPERATION.search(line)) is None or _group_size(line) == 1:
            continue
        results, kind, started = operation.groups()
        arrays = _ARRAY.findall(results)
        if started and kind != "all-reduce":  # (operands, results, counters)
            arrays = [array for array in arrays if array[1] or array[0] != "u32"]
            arrays = arrays[len(arrays) // 2 :]
        shapes = tuple(_shape(dims) for _, dims in arrays)
        sizes = [_bits(dtype) * math.prod(_shape(dims)) for dtype, dims in arrays]
        path = re.search(r'op_name="([^"]*)"', line)
        found.append(
            Collective(
                kind, shapes, sum(sizes) // 8, path.group(1) if path else "", computation
            )
        )
    return found


def copied_shapes(text: str) -> set[tuple[int, ...]]:
    """Shapes of what a device copies or transposes."""
    return {
        _shape(dims)
        for _, line in _lines(text)
        for copy in _COPY.finditer(line)
        for _, dims in _ARRAY.findall(copy.group(1))
    }


def in_loop(text: str) -> list[Collective]:
    """The exchanges of one turn of the outermost loop, such as a decode step."""
    called: dict[str, set[str]] = {}
    bodies = set()
    for computation, line in _lines(text):
        names = re.findall(r"[\w.-]+", " ".join(_CALLED.findall(line)))
        called.setdefault(computation, set()).update(names)
        bodies.update(re.findall(r"\bbody=%?([\w.-]+)", line))

    def reached(name: str) -> set[str]:
        seen, waiting = set(), [name]
        while waiting:
            seen.add(one := waiting.pop())
            waiting += called.get(one, set()) - seen
        return seen

    turn = max(map(reached, bodies), key=len)
    return [one for one in collectives(text) if one.computation in turn]


def _group_size(line: str) -> int | None:
    """How many devices take part in one exchange; None where all do, or by pairs."""
    if (groups := _GROUPS.search(line)) is None:
        return None
    first, size = groups.groups()
    return int(size) if size else len(first.split(","))


def _lines(text: str) -> Iterator[tuple[str, str]]:
    computation = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            computation = start.group(1)
        yield computation, line


def _shape(dims: str) -> tuple[int, ...]:
    return tuple(int(size) for size in dims.split(",") if size)


def _bits(dtype: str) -> int:
    """Of an element."""
    return {"pred": 8, "bf16": 16}.get(dtype) or int(dtype[1:])
