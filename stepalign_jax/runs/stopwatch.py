# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the time of an optimizer step went: seconds by phase, rates, padding.

Phases of timings.jsonl, which add up to `total`: sample, critique, score (the teacher's
forward pass), update (the solver's forward and backward pass, and the optimizer), host
(everything else that the devices wait for) and, at some steps, validate and analyze.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from stepalign_jax.base.watch import moved


class Stopwatch:
    """Seconds spent in each named phase of one optimizer step.

    Attributes:
      seconds: by phase.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
        started = time.monotonic()
        yield
        moved()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def remaining(seconds: Mapping[str, float], compile_seconds: float, num_steps: int) -> str:
    """Returns in words how long `num_steps` more take, from a step that took `seconds`.

    Its evaluation and its compilations are left out.
    """
    own = sum(seconds.values()) - looks(seconds) - compile_seconds
    steps = "1 step remains" if num_steps == 1 else f"{num_steps} steps remain"
    return f"{steps}: about {duration(max(own, 0.0) * num_steps)}, evaluation not counted"


def looks(seconds: Mapping[str, float]) -> float:
    """Seconds of what trains nothing: validation and analysis."""
    return seconds.get("validate", 0.0) + seconds.get("analyze", 0.0)


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best: 42 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def token_rates(
    seconds: Mapping[str, float], num_tokens: Mapping[str, int], num_devices: int
) -> dict[str, float]:
    """Tokens per second per device of each phase that took time and handled tokens."""
    return {
        f"tokens_per_second_per_device/{phase}": tokens / seconds[phase] / num_devices
        for phase, tokens in num_tokens.items()
        if tokens and seconds.get(phase)
    }


def padding_shares(positions: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """The share of positions that hold padding, from (positions used, all positions)."""
    return {f"padding/{name}": 1.0 - used / all_ for name, (used, all_) in positions.items()}
