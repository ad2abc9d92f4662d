# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a program takes of a chip, by the compiler that will make it there.

Compiling takes up to minutes, so answers are kept by what they depend on: the program, the
topology, the versions of JAX and libtpu, and this package's code.
"""

import hashlib
import importlib.metadata
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax

from stepalign_jax.base.files import read_json, write_json
from stepalign_jax.planning.program import Program

_CODE = ("model", "objectives", "parallel", "sampling", "training")


class Compiled(NamedTuple):
    """Bytes of one chip that a program takes while it runs, and how long it took to compile.

    Attributes:
      arguments: weights, state, cache and rows that it is given.
      results: what it returns beside the arguments that it overwrites (donated ones).
      temporaries: activations and whatever else it needs.
      code: of the program itself.
      accessed: bytes that it reads and writes, every branch and each loop's body once.
      seconds: of tracing and compiling, of all processors together, when that was done.
      refusal: "" or the compiler's own words, when it made no program: then all bytes are 0.
    """

    arguments: int
    results: int
    temporaries: int
    code: int
    accessed: float
    seconds: float
    refusal: str


def compile_program(program: Program, topology: str) -> Compiled:
    """Compiles for a topology, or remembers having done so.

    Answers lie beside JAX's cache of programs; without one nothing is kept.
    """
    programs = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if not programs:
        return compile_afresh(program)
    file = Path(programs).parent / "plans" / f"{_digest(program, topology)}.json"
    if file.is_file() and (kept := read_json(file)).keys() == set(Compiled._fields):
        return Compiled(**kept)
    found = compile_afresh(program)
    write_json(file, found._asdict())
    return found


def compile_afresh(program: Program) -> Compiled:
    """Compiles for the chips of the program's mesh; an answer is not kept."""
    started = time.process_time()
    lowered = program.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = " ".join(str(error).split())[:300]
        return Compiled(0, 0, 0, 0, 0.0, time.process_time() - started, words)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        accessed=cost.get("bytes accessed", 0.0),
        seconds=time.process_time() - started,
        refusal="",
    )


def _digest(program: Program, topology: str) -> str:
    parts = (program.key, topology, *_versions(), _code_digest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _versions() -> tuple[str, ...]:
    return tuple(importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu"))


@cache
def _code_digest() -> str:
    """Of the code that makes programs."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(file for room in _CODE for file in (package / room).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
