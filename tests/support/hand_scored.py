# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Scored rollouts made of texts, in the miniature's tokens, with scores that are told."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stepalign_jax.analysis.scored import TOP, ScoredRollouts
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.huggingface.tokenizer import token_spans
from stepalign_jax.problems.problem import Problem
from stepalign_jax.tiny.tokenizer import END, VOCABULARY


def scored_texts(
    roles: Roles,
    problems: Sequence[Problem],
    texts: Sequence[str],
    contexts: Sequence[str] = ("stepalign",),
    **arrays: Any,
) -> ScoredRollouts:
    """Rollouts of these texts, one per problem; all else is drawn or as in `arrays`."""
    ids = [[*roles.plain(text), VOCABULARY[END]] for text in texts]
    offsets = np.cumsum([0, *map(len, ids)])
    num, num_tokens, num_contexts = len(texts), int(offsets[-1]), len(contexts)
    ends, inside = [], []
    for text, row in zip(texts, ids, strict=True):
        spans = token_spans(roles.tokenizer, row)[1]
        ends += [end for _, end in spans]
        inside += [_step_at(roles, text, start) if end > start else -1 for start, end in spans]
    rng = np.random.default_rng(0)

    def real(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    values = {
        "offsets": offsets.astype(np.int64),
        "tokens": np.concatenate(ids).astype(np.int32),
        "ends": np.array(ends, np.int32),
        "reasoning_step": np.array(inside, np.int32),
        "markup": np.concatenate([roles.markup(row) for row in ids]),
        "correct": np.zeros(num, bool),
        "first_error": np.full(num, -2, np.int32),
        "usable": np.ones((num_contexts, num), bool),
        "solver_logprobs": -np.abs(real(num_tokens)),
        "teacher_logprobs": -np.abs(real(num_contexts, num_tokens)),
        "kl": np.abs(real(num_contexts, num_tokens)),
        "solver_entropy": np.abs(real(num_tokens)),
        "teacher_entropy": np.abs(real(num_contexts, num_tokens)),
        "solver_top_ids": np.zeros((num_tokens, TOP), np.int32),
        "solver_top_logprobs": real(num_tokens, TOP),
        "teacher_top_ids": np.zeros((num_contexts, num_tokens, TOP), np.int32),
        "teacher_top_logprobs": real(num_contexts, num_tokens, TOP),
    }
    rows = [
        {
            "id": f"{number}",
            "problem": problem.text,
            "answer": problem.answer,
            "rollout": text,
            "step": 7,
            "reference": problem.reference,
            "contexts": [f"a context of {name}" for name in contexts],
            "failures": [None] * num_contexts,
            "steps": [[step.start, step.end] for step in roles.trace.steps(text)],
        }
        for number, (problem, text) in enumerate(zip(problems, texts, strict=True))
    ]
    return ScoredRollouts(contexts=list(contexts), rows=rows, **{**values, **arrays})


def _step_at(roles: Roles, text: str, place: int) -> int:
    found = [step.index for step in roles.trace.steps(text) if step.start <= place < step.end]
    return found[0] if found else -1
