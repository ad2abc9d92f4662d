# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A task's own scorer judges its answers. Runs in a worker process (`worker.py`).

A problem carries its scorer as JSON:

    {"task": "countdown", "entry": {...}, "options": {"max_value": 50}}

`task` is a data set of reasoning_gym, `entry` what it generated (question, answer, metadata),
and `options` its settings where they are not its own defaults: some scorers read them. An
answer is right if `score_answer` gives it `RIGHT`; a wrong one in the right format gets less.
"""

import functools
import importlib
import json
from typing import Any

from stepalign_jax.grading.guard import guarded

reasoning_gym: Any = importlib.import_module("reasoning_gym")  # an extra
RIGHT = 1.0

_warm: set[tuple[str, str]] = set()


def judge(scorer: str, answer: str) -> bool:
    """Whether the scorer gives an answer full marks.

    Raises:
      Exception: whatever the task raises over a text that it cannot read, or that it may not
        evaluate (`guard.py`).
    """
    parts = json.loads(scorer)
    entry, options = parts["entry"], json.dumps(parts.get("options", {}), sort_keys=True)
    task = _task(parts["task"], options)
    if (parts["task"], options) not in _warm:
        # What is imported at first use may evaluate code of its own.
        task.score_answer(entry["answer"], entry)
        _warm.add((parts["task"], options))
    with guarded():
        return task.score_answer(answer, entry) >= RIGHT


@functools.lru_cache(maxsize=16)
def _task(name: str, options: str) -> Any:
    return reasoning_gym.create_dataset(name, **json.loads(options))
