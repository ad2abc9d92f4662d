# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What decides an evaluation, so that one that was measured is not measured again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepalign_jax.base.hashing import content_hash
from stepalign_jax.config.schema import Config, EvaluationConfig
from stepalign_jax.huggingface.fingerprint import fingerprint_adapter
from stepalign_jax.problems.problem import Problem


def evaluation_inputs(
    config: Config,
    how: EvaluationConfig,
    checkpoint: Mapping[str, str],
    problems: Sequence[Problem],
    *,
    seed: int,
) -> dict[str, Any]:
    """All that decides the per-problem values of the initial solver, as JSON.

    What does not is left out: batch sizes, intervals, the other roles' prompts.

    Args:
      config: the model's precision, the adapter that it starts from, and the prompts.
      how: k and how to sample.
      checkpoint: the fingerprint of the one that the solver starts from.
      problems: what is asked, in order.
      seed: of the samples.
    """
    adapter, prompts = getattr(config.trainable, "adapter", ""), config.prompts
    return {
        "model": dict(checkpoint),
        "start_adapter": fingerprint_adapter(Path(adapter)) if adapter else None,
        "compute_dtype": config.model.compute_dtype,
        "prompts": {
            "solver": prompts.solver,
            "solver_thinking": prompts.solver_thinking,
            "answer_pattern": prompts.answer_pattern,
        },
        "num_samples": how.num_samples,
        "sampling": {
            "temperature": how.temperature,
            "top_k": how.top_k,
            "top_p": how.top_p,
            "max_new_tokens": how.max_new_tokens,
        },
        "grading_secs": how.grading_secs,
        "seed": seed,
        "problems": content_hash([[problem.text, problem.expected] for problem in problems]),
    }
