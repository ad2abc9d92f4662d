# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The child process that judges answers. Started by file path, without JAX.

Simplifying an expression that a model wrote may take for ever, take all memory, or end
the interpreter. So it happens here, in a process without JAX that its parent may kill.
Its one argument names the module that judges: `values` (SymPy) or `scorers` (a task's own
scorer). The protocol is one JSON value per line:

    worker  {"error": null}            once, when it is ready (or why it cannot be)
    parent  ["grade", gold, answer, seconds] | ["read", text, "", seconds]
    worker  "equal" | "different"            | "readable" | "unreadable"
    parent  ["score", scorer, answer, seconds]
    worker  "right" | "wrong"

Texts that `values` judges are normalized (`normalise.py`). Of this package only files beside
this one are imported, which need nothing but SymPy, or `reasoning_gym`.

The process ends when its input closes, and by an alarm of its own some seconds after a
deadline, so it cannot outlive its parent for long. POSIX only.
"""

import contextlib
import importlib
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

MAX_MEMORY_BYTES = 4 * 2**30  # a tower of powers fills any memory within its deadline
ORPHAN_GRACE_SECS = 5.0  # past the deadline the parent has killed us, if there is a parent


def judge(kind: str, first: str, second: str) -> str:
    """The verdict on one request; see the module's docstring."""
    if kind == "score":
        from stepalign_jax.grading import scorers  # here, as the parent imports this file

        return "right" if scorers.judge(first, second) else "wrong"
    from stepalign_jax.grading import values

    if kind == "read":
        return "readable" if values.read(first) else "unreadable"
    return "equal" if values.judge(first, second) else "different"


def answer_request(request: list[Any]) -> str:
    """Judges one request; an error in a library is the verdict on a text that says nothing."""
    kind, first, second, deadline_secs = request
    # The default action of SIGALRM ends the process: an orphan stops working too.
    signal.setitimer(signal.ITIMER_REAL, deadline_secs + ORPHAN_GRACE_SECS)
    try:
        return judge(kind, first, second)
    except Exception:
        return {"grade": "different", "read": "unreadable", "score": "wrong"}[kind]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def claim_stdout() -> TextIO:
    """The pipe to the parent; prints of other code go nowhere instead of into the protocol."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    # Some systems have no such limit; the deadline still holds there.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def main() -> None:
    replies = claim_stdout()
    limit_memory()
    logging.disable(logging.CRITICAL)
    error = None
    try:
        # Imported before the clock of an answer runs. Our directory comes last on the path:
        # no file of ours can hide another package's.
        sys.path.append(str(Path(__file__).resolve().parents[2]))
        importlib.import_module(f"stepalign_jax.grading.{sys.argv[1]}")
    except ImportError as exception:
        error = str(exception)
    print(json.dumps({"error": error}), file=replies, flush=True)
    if error is not None:
        return
    for line in sys.stdin:
        print(json.dumps(answer_request(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
