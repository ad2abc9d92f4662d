# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Contexts that differ from `stepalign` in one thing, so that its effect can be told apart.

They are made from the same rollout and the same critique, without another call of a model. `f`
is the first reasoning step in which the two differ; the critique copies all before it.

    rollout            Step 1: 3*8=24 | Step 2: 47+24=61 | Step 3: 61-12=49 | Answer: 49
    critique           Step 1: 3*8=24 | Step 2: 47+24=71 | Step 3: 71-12=59 | Answer: 59
                                        f = 1
    answer_only        59
    critique_full      the rollout, then the critique
    critique_omit                       Step 2: 47+24=71 | Step 3: 71-12=59 | Answer: 59
    paraphrased_prefix Step 1: 24=3*8 | Step 2: 47+24=71 | Step 3: 71-12=59 | Answer: 59
    random_step        Step 1: 24=3*8 | Step 2: 47+24=61 | Step 3: 61-12=49 | Answer: 49
    shifted            Step 1: 3*8=24 | Step 2: 47+24=61 | Step 3: 71-12=59 | Answer: 59

The paper compares copying the rollout in full, in part (`stepalign`) and not at all; its
wordings are not known to us, so these have none of their own. The other controls are ours. A
rollout without an error has nothing to shift or to omit: its context is the critique.
"""

from collections.abc import Callable, Sequence

from stepalign_jax.base.hashing import stable_hash32
from stepalign_jax.feedback.contexts import Attempt, Context, condition
from stepalign_jax.feedback.mathematics import reworded
from stepalign_jax.feedback.reasoning_steps import ReasoningStep, TraceFormat, with_body

_Control = Callable[[Attempt, str, TraceFormat], Context]


def first_difference(
    attempt: Sequence[ReasoningStep], critique: Sequence[ReasoningStep]
) -> int | None:
    """Returns the index of the first reasoning step whose words differ; None if all agree.

    Spaces do not count. A missing reasoning step differs.
    """
    words = [["".join(step.text.split()) for step in trace] for trace in (attempt, critique)]
    for index in range(max(map(len, words))):
        if words[0][index : index + 1] != words[1][index : index + 1]:
            return index
    return None


@condition("answer_only", needs_critiques=False)
def answer_only(
    attempts: Sequence[Attempt], _critiques: Sequence[Context], _trace: TraceFormat
) -> list[Context]:
    """The final answer, and no way to it."""
    return [Context(attempt.problem.answer, None) for attempt in attempts]


def _control(name: str) -> Callable[[_Control], _Control]:
    """Registers a function of (attempt, text of its critique); failed critiques pass it by."""

    def register(control: _Control) -> _Control:
        def contexts(
            attempts: Sequence[Attempt], critiques: Sequence[Context], trace: TraceFormat
        ) -> list[Context]:
            return [
                critique if critique.failure else control(attempt, critique.text, trace)
                for attempt, critique in zip(attempts, critiques, strict=True)
            ]

        condition(name, needs_critiques=True)(contexts)
        return control

    return register


@_control("critique_full")
def critique_full(attempt: Attempt, critique: str, _trace: TraceFormat) -> Context:
    """The whole rollout, its error too, then the critique."""
    return Context(f"{attempt.text}\n{critique}", None)


@_control("critique_omit")
def critique_omit(attempt: Attempt, critique: str, trace: TraceFormat) -> Context:
    """The critique without the reasoning steps that it copied."""
    theirs = trace.steps(critique)
    first = first_difference(trace.steps(attempt.text), theirs)
    if first is None or first >= len(theirs):
        return Context(critique, None)
    return Context(critique[theirs[first].start :], None)


@_control("paraphrased_prefix")
def paraphrased_prefix(attempt: Attempt, critique: str, trace: TraceFormat) -> Context:
    """The critique, each reasoning step that it copied said in other words."""
    theirs = trace.steps(critique)
    first = first_difference(trace.steps(attempt.text), theirs)
    return _with_reworded(critique, theirs[:first])


@_control("random_step")
def random_step(attempt: Attempt, critique: str, trace: TraceFormat) -> Context:
    """The rollout, its error left, with one right reasoning step said in other words.

    Which one is drawn by a hash of problem and rollout.
    """
    ours = trace.steps(attempt.text)
    right = ours[: first_difference(ours, trace.steps(critique))]
    if not right:
        return Context(attempt.text, "no_right_step")
    place = stable_hash32(f"{attempt.problem.text}\n{attempt.text}") % len(right)
    return _with_reworded(attempt.text, [right[place]])


@_control("shifted")
def shifted(attempt: Attempt, critique: str, trace: TraceFormat) -> Context:
    """The critique's correction one reasoning step too late: the error is copied too."""
    ours, theirs = trace.steps(attempt.text), trace.steps(critique)
    first = first_difference(ours, theirs)
    if first is None:
        return Context(critique, None)
    if first >= len(ours) or first + 1 >= len(theirs):
        return Context(critique, "no_later_step")
    return Context(attempt.text[: ours[first].end] + critique[theirs[first + 1].start :], None)


def _with_reworded(text: str, steps: Sequence[ReasoningStep]) -> Context:
    """`text` with these reasoning steps, which stand in their order, in other words."""
    for step in reversed(steps):
        body = reworded(step.text)
        if body is None:
            return Context(text, "not_reworded")
        text = with_body(text, step, body)
    return Context(text, None)
