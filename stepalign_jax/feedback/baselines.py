# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Baselines that train on texts instead of asking a teacher, with the same critiques.

They need a critic whose replies are traces, and `objective.kind=nll`: the loss is the negative
log-likelihood of each target's tokens, and of the token that ends a completion, after the
solver's own prompt. No teacher is asked. What else a run does is that of `stepalign`: the same
problems, the same rollouts of the current solver, the same critiques, as many optimizer steps.

    rollout             its critique        target of sft    target of rejection
    right               accepted            the critique     the rollout
    right               failed              none: masked     the rollout
    wrong               accepted            the critique     the critique
    wrong               failed              none: masked     none: masked

`sft` is supervised fine-tuning on every accepted critique. `rejection` is rejection sampling
with two proposals, the solver's own and then the critic's: the first whose final answer is
right is the target, as in STaR with rationalisation (https://arxiv.org/abs/2203.14465), the
critique in the place of its rationalised answer. Only wrong rollouts learn from the critic, so
that a difference of `sft` and `rejection` is that of critiques of rollouts that were right.

Both definitions are ours: arXiv 2606.11173 is not known to have such baselines. Neither text is
thought about: where the solver thinks before it answers, `sft` teaches it not to.
"""

from collections.abc import Callable, Sequence

from stepalign_jax.feedback.contexts import (
    CONDITIONS,
    Attempt,
    Condition,
    Context,
    TargetFunction,
    own_critique,
)


def _baseline(name: str) -> Callable[[TargetFunction], TargetFunction]:
    """Registers what a condition that asks the critic, and no teacher, trains on."""

    def register(targets: TargetFunction) -> TargetFunction:
        CONDITIONS[name] = Condition(name, own_critique, needs_critiques=True, targets=targets)
        return targets

    return register


@_baseline("sft")
def accepted_critiques(
    _attempts: Sequence[Attempt], critiques: Sequence[Context], _correct: Sequence[bool]
) -> list[Context]:
    """Every accepted critique."""
    return list(critiques)


@_baseline("rejection")
def first_right(
    attempts: Sequence[Attempt], critiques: Sequence[Context], correct: Sequence[bool]
) -> list[Context]:
    """The rollout where its answer is right, its critique elsewhere."""
    return [
        Context(attempt.text, None) if right else critique
        for attempt, critique, right in zip(attempts, critiques, correct, strict=True)
    ]
