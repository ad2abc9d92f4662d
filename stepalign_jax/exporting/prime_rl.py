# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Rollouts in the shape of prime-rl's token exports: JSON Lines, one record per sequence.

A record has columns of one length, that of prompt and completion together. With a prompt of two
tokens and one context:

    token_ids          p0    p1    c0     c1
    loss_mask          false false true   true
    advantages         null  null  A_0    A_1
    trainer_logprobs   null  null  log pi_solver(c0) ...

docs/exports.md maps every field. Numbers are float32 and read back to the same bits; what is
not finite, and what was not measured, is null.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stepalign_jax.base.files import atomic_file
from stepalign_jax.exporting.told import Told

SCHEMA_VERSION = 1  # of prime-rl's records

# What a trainer measures whose sampler is another program, and which masks by it: not we.
_NOT_OURS = (
    *("inference_logprobs", "mismatch_kl", "log_importance_ratio", "importance_ratio"),
    *("prob_delta", "is_masked", "is_masked_high", "is_masked_low"),
)


def token_records(
    rollouts: Sequence[Told], *, run: str, environment: str, context: str | None
) -> Iterator[dict[str, Any]]:
    """Yields one record per rollout.

    Args:
      rollouts: in the order of the file.
      run: its name.
      environment: the name of the set of problems.
      context: the condition whose advantages stand in `advantages`; None: a rollout's first.
        `losses` has all of them.
    """
    for number, told in enumerate(rollouts):
        step = 0 if told.step is None else told.step
        yield {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "export_step": step,
            "rank": 0,
            "micro_step": 0,
            "micro_sequence_idx": number,
            "export_sequence_idx": number,
            "run_id": run,
            "env_name": environment,
            **_columns(told, context),
        }


def write_token_records(path: Path, records: Iterator[dict[str, Any]]) -> int:
    """Writes a file of records, whole or not at all; returns how many.

    Raises:
      UserError: the file cannot be written.
    """
    num_records = 0
    with atomic_file(path) as file:
        for record in records:
            text = json.dumps(record, separators=(",", ":"), allow_nan=False)
            file.write(f"{text}\n".encode())
            num_records += 1
    return num_records


def _columns(told: Told, context: str | None) -> dict[str, list[Any]]:
    num_prompt, num_tokens = len(told.prompt), len(told.tokens)
    length = num_prompt + num_tokens
    channels = told.advantages
    main = next(iter(channels), None) if context is None else context

    def behind_prompt(values: Sequence[float] | None) -> list[float | None]:
        known = [None] * num_tokens if values is None else map(_finite, values)
        return [None] * num_prompt + list(known)

    by_context = {name: behind_prompt(values) for name, values in channels.items()}
    return {
        "token_ids": [*told.prompt, *told.tokens],
        "position_ids": list(range(length)),
        "loss_mask": [False] * num_prompt + [main in channels] * num_tokens,
        "advantages": by_context.get(str(main), [None] * length),
        "losses": [
            {
                name: {"advantage": values[place], "mask": place >= num_prompt}
                for name, values in by_context.items()
            }
            for place in range(length)
        ],
        "rewards": [float(told.correct)] * length,
        "trainer_logprobs": behind_prompt(told.logprobs),
        "entropy": behind_prompt(told.entropy),
        **{name: [None] * length for name in _NOT_OURS},
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
