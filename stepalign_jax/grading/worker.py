# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The child process that runs math-verify. Started by file path; imports nothing of ours.

Simplifying an expression that a model wrote may take for ever, take all memory, or end
the interpreter. So it happens here, in a process without JAX that its parent may kill.
The protocol is one JSON value per line:

    worker  {"error": null}            once, when it is ready (or why it cannot be)
    parent  ["grade", gold, answer, seconds]
    worker  "equal" | "different" | "unparsable_gold"

The process ends when its input closes, and by an alarm of its own some seconds after a
deadline, so it cannot outlive its parent for long. POSIX only.
"""

import contextlib
import functools
import json
import logging
import os
import resource
import signal
import sys
from typing import Any, TextIO

MAX_MEMORY_BYTES = 4 * 2**30  # a tower of powers fills any memory within its deadline
ORPHAN_GRACE_SECS = 5.0  # past the deadline the parent has killed us, if there is a parent


@functools.lru_cache(maxsize=1024)  # the samples of one problem share a gold answer
def parse_answer(text: str) -> tuple[Any, ...]:
    """What math-verify reads in `text`: SymPy expressions, and a string as its fallback."""
    from math_verify import parse  # here and below: reading this file must not need it

    text = text.replace("\\$", "")  # currency, not the end of a formula
    if "$" not in text and "\\boxed" not in text:
        text = f"${text}$"
    return tuple(parse(text, parsing_timeout=0))


def is_parsed(expressions: tuple[Any, ...]) -> bool:
    return any(not isinstance(expression, str) for expression in expressions)


def judge(kind: str, gold: str, answer: str) -> str:
    """The verdict on one pair; see the module's docstring.

    Args:
      kind: `grade` measures `answer` by `gold`; math-verify is not symmetric (it unwraps
        `x=5` for the gold answer 5). `equivalent` accepts either direction.
      gold: the expected answer, or one of the two that are compared.
      answer: the answer under judgement.
    """
    from math_verify import verify

    parsed_gold, parsed_answer = parse_answer(gold), parse_answer(answer)
    if not is_parsed(parsed_gold):
        return "unparsable_gold"
    if not is_parsed(parsed_answer):
        return "different"
    pairs = [(parsed_gold, parsed_answer)]
    if kind == "equivalent":
        pairs.append((parsed_answer, parsed_gold))
    equal = any(verify(list(a), list(b), timeout_seconds=0) for a, b in pairs)
    return "equal" if equal else "different"


def answer_request(request: list[Any]) -> str:
    """Judges one request; an error inside math-verify or SymPy is the verdict `different`."""
    kind, gold, answer, deadline_secs = request
    # The default action of SIGALRM ends the process: an orphan stops working too.
    signal.setitimer(signal.ITIMER_REAL, deadline_secs + ORPHAN_GRACE_SECS)
    try:
        return judge(kind, gold, answer)
    except Exception:
        return "different"
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
        import math_verify  # noqa: F401  (imported before the clock of an answer runs)
    except ImportError as exception:
        error = str(exception)
    print(json.dumps({"error": error}), file=replies, flush=True)
    if error is not None:
        return
    for line in sys.stdin:
        print(json.dumps(answer_request(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
