# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One problem."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      text: the question as the solver sees it.
      answer: the expected final answer.
      reference: a worked solution (RefSol's context), or None.
      source: which problem set made it; `arithmetic` problems can check reasoning steps.
    """

    text: str
    answer: str
    reference: str | None
    source: str
