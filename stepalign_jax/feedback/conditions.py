# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The conditions that are compared: what the teacher sees, and which objective trains.

The distilled conditions differ in their context alone. A new one is a line in
`CONDITIONS` and, where its context is new, a function in `CONTEXTS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stepalign_jax.base.errors import UserError
from stepalign_jax.feedback.critique import Critique
from stepalign_jax.feedback.prompts import nearest_name
from stepalign_jax.problems.problem import Problem

_NO_TEXT = Critique("", None)


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
      name: its key in `CONDITIONS`.
      context: a key of `CONTEXTS`; `none` where no teacher is asked.
      objective: `divergence` (to the teacher) or `policy_gradient` (of the reward).
      description: one line for the report.
    """

    name: str
    context: str
    objective: str
    description: str

    @property
    def needs_critiques(self) -> bool:
        """Whether the critic has to be asked."""
        return self.context in ("critique", "other_problem")


CONDITIONS: dict[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition(
            "stepalign", "critique", "divergence", "the teacher sees a critique of the rollout"
        ),
        Condition(
            "refsol", "reference", "divergence", "the teacher sees the reference solution"
        ),
        Condition("grpo", "none", "policy_gradient", "no teacher; reward of the final answer"),
        Condition(
            "no_context",
            "empty",
            "divergence",
            "control: the teacher's template with nothing in the critique's place",
        ),
        Condition(
            "other_problem",
            "other_problem",
            "divergence",
            "control: the teacher sees the critique of another problem's rollout",
        ),
    )
}


def get_condition(name: str) -> Condition:
    """Returns the condition called `name`.

    Raises:
      UserError: if there is none, with the nearest valid name.
    """
    if name not in CONDITIONS:
        raise UserError(
            f"condition {name!r} is unknown; the nearest valid name is "
            f"{nearest_name(name, CONDITIONS)!r} of {', '.join(CONDITIONS)}."
        )
    return CONDITIONS[name]


def build_contexts(
    condition: Condition, problems: Sequence[Problem], critiques: Sequence[Critique] | None
) -> list[Critique]:
    """Returns the context, or its failure, of each rollout.

    Without a teacher, and for the empty context, the text is empty and nothing fails.

    Args:
      condition: which context.
      problems: the problem of each rollout; G rollouts of one problem name it G times.
      critiques: the critique of each rollout; None if `needs_critiques` is False.
    """
    if condition.needs_critiques and critiques is None:
        raise ValueError(f"{condition.name} needs critiques")
    if critiques is not None and len(critiques) != len(problems):
        raise ValueError(f"{len(critiques)} critiques for {len(problems)} rollouts")
    return CONTEXTS[condition.context](problems, critiques or ())


def _empty(problems: Sequence[Problem], _critiques: Sequence[Critique]) -> list[Critique]:
    return [_NO_TEXT] * len(problems)


def _own_critique(
    _problems: Sequence[Problem], critiques: Sequence[Critique]
) -> list[Critique]:
    return list(critiques)


def _reference(problems: Sequence[Problem], _critiques: Sequence[Critique]) -> list[Critique]:
    return [
        Critique("", "no_reference") if p.reference is None else Critique(p.reference, None)
        for p in problems
    ]


def _other_problem(
    problems: Sequence[Problem], critiques: Sequence[Critique]
) -> list[Critique]:
    """Moves all critiques on by one shift, and past failures and the rollout's own problem.

    While no critique fails and such a shift exists, each critique is used exactly once.
    """
    texts = [problem.text for problem in problems]
    shift = _shift(texts)
    return [_next_other(row, shift, texts, critiques) for row in range(len(texts))]


def _shift(texts: Sequence[str]) -> int:
    """Returns the smallest shift that gives no row its own problem; 1 if there is none."""
    count = len(texts)
    for shift in range(1, count):
        if all(texts[row] != texts[(row + shift) % count] for row in range(count)):
            return shift
    return 1


def _next_other(
    row: int, shift: int, texts: Sequence[str], critiques: Sequence[Critique]
) -> Critique:
    count = len(texts)
    for distance in range(shift, shift + count):
        donor = (row + distance) % count
        if texts[donor] != texts[row] and critiques[donor].failure is None:
            return critiques[donor]
    return Critique("", "no_other_problem")


CONTEXTS: dict[str, Callable[[Sequence[Problem], Sequence[Critique]], list[Critique]]] = {
    "critique": _own_critique,
    "reference": _reference,
    "other_problem": _other_problem,
    "empty": _empty,
    "none": _empty,
}
