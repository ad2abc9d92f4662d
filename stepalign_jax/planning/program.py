# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A program that nobody has compiled yet, and what of a chip's memory holds what."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from stepalign_jax.model.cache import LayerCache
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.planning.fits import bytes_per_device
from stepalign_jax.training.state import TrainState
from stepalign_jax.training.step import Sums

# What memory is held for; "rows" are tokens, places, and the teacher's states.
KINDS = ("weights", "optimizer", "cache", "rows")
Bytes = Counter[str]  # by kind


class Program(NamedTuple):
    """One program of a phase, not yet compiled.

    Attributes:
      phase: of a step, or "evaluate".
      name: of the program, with its shape.
      made_of: what its compiled form depends on beside name, mesh, code and compiler; its
        text is the same in every process.
      function: jitted.
      arguments: makes its arguments, shapes with shardings.
      mesh: where it runs.
      given: bytes per chip of its arguments.
      beside: bytes per chip that lie there while it runs and are no argument of it.
      returns: kind of what it returns.
      results: bytes per chip that it returns in memory of their own, about.
      temporaries: bytes per chip that it needs in between, about. Both stand in for the
        compiler's numbers where there is no compiler.
      shapes: in how many shapes a run may meet it in this phase, about.
      decides: whether its shape is the largest, which decides whether the phase fits.
    """

    phase: str
    name: str
    made_of: tuple[Any, ...]
    function: Any
    arguments: Callable[[], tuple[Any, ...]]
    mesh: Any
    given: Bytes
    beside: Bytes
    returns: str
    results: int
    temporaries: int
    shapes: int = 1
    decides: bool = True

    @property
    def key(self) -> str:
        """All that its compiled form depends on, beside the code and the compiler."""
        return repr((self.name, self.made_of, self.mesh.shape))

    def lower(self) -> Any:
        """Traces it; the mesh needs devices for it, though none that exist."""
        with use_mesh(self.mesh):
            return self.function.lower(*self.arguments())


def held(*arguments: Any) -> Bytes:
    """Bytes of each chip by kind, of arguments that are shapes with shardings.

    A gradient counts as the optimizer's. What has no sharding, as slots, is next to nothing.
    """
    found: Bytes = Counter()
    for argument in arguments:
        found.update(_held(argument))
    return found


def _held(argument: Any) -> dict[str, int]:
    match argument:
        case TrainState():
            weights = _placed(argument.trainable) + _placed(argument.teacher)
            return {"weights": weights, "optimizer": _placed(argument.opt_state)}
        case Sums():
            return {"optimizer": _placed(argument)}
        case LayerCache() | (LayerCache(), *_):
            return {"cache": _placed(argument)}
        case dict():
            return {"weights": _placed(argument)}
        case _:
            return {"rows": _placed(argument)}


def _placed(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return bytes_per_device([leaf for leaf in leaves if getattr(leaf, "sharding", None)])
