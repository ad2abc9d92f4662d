# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What the teacher sees beyond the question, and the conditions that differ in it.

A condition is a function from the rollouts and their critiques to one context per rollout. The
distilled conditions differ in that function alone.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.names import nearest
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.problems.problem import Problem


class Failure(NamedTuple):
    """Why a rollout has no context.

    Attributes:
      meaning: in words.
      mend: what to change where most contexts fail like this.
    """

    meaning: str
    mend: str


_ANOTHER_CRITIC = "change prompts.critic, or take another critic"
_WITHOUT_CHECK = "change prompts.critic, or leave this check out of critiques.checks"

# In the order in which they are looked for.
FAILURES: dict[str, Failure] = {
    "prompt_too_long": Failure(
        "the critic's prompt leaves no room for critic.max_new_tokens",
        "lower critic.max_new_tokens or sampling.max_new_tokens",
    ),
    "missing": Failure(
        "the store that is replayed holds no such critique",
        "replay a store of equal rollouts, or ask a critic",
    ),
    "timeout": Failure(
        "the server took longer than critic.timeout_secs",
        "raise critic.timeout_secs, or lower critic.concurrency",
    ),
    "unavailable": Failure(
        "the server was busy, failed, or hung up",
        "lower critic.concurrency or critic.requests_per_minute, or raise critic.max_retries",
    ),
    "rejected": Failure(
        "the server rejected the request, with a status of 4xx",
        "see what the server allows: critic.model, critic.max_new_tokens, the key",
    ),
    "malformed": Failure(
        "the server's reply is no chat completion",
        "see whether critic.url is that of an OpenAI-compatible server",
    ),
    "wrong_model": Failure(
        "the server answered with another model",
        "set critic.model to the name that the server gives its model",
    ),
    "refused": Failure("the server's model declined to answer", _ANOTHER_CRITIC),
    "truncated_thinking": Failure(
        "ended inside <think>, most often by the token budget",
        "raise critic.max_new_tokens, or set prompts.critic_thinking=false",
    ),
    "truncated": Failure("the token budget ended the critique", "raise critic.max_new_tokens"),
    "empty": Failure("nothing but whitespace", _ANOTHER_CRITIC),
    "unparsable": Failure(
        "no reasoning step, or no answer",
        "change prompts.critic, or set critic.accepts=any for free text",
    ),
    "wrong_answer": Failure(
        "ends in another answer than the expected one",
        "let the critic see more (critic.sees), change prompts.critic, or take another critic",
    ),
    "foreign_markup": Failure("text or markup that is not in the trace format", _WITHOUT_CHECK),
    "quoted_error": Failure(
        "repeats the wrong reasoning step that it should replace", _WITHOUT_CHECK
    ),
    "answer_leaked": Failure(
        "speaks of an answer or a solution that the solver does not see", _WITHOUT_CHECK
    ),
    "invented_number": Failure(
        "a number of a new reasoning step comes out of nothing", _WITHOUT_CHECK
    ),
    "low_fidelity": Failure(
        "copies right reasoning steps less than critiques.min_copy_fidelity",
        "change prompts.critic, or lower critiques.min_copy_fidelity",
    ),
    "too_long": Failure("over prompts.max_context_tokens", "raise prompts.max_context_tokens"),
    "no_reference": Failure(
        "the problem has no reference solution",
        "give the problems reference solutions, or take another condition",
    ),
    "no_other_problem": Failure(
        "no valid critique of another problem in the batch", "raise train.problems_per_step"
    ),
    "no_right_step": Failure(
        "the rollout's first reasoning step is wrong already",
        "take a condition that needs no right step, or easier problems",
    ),
    "no_later_step": Failure(
        "the first error is the last reasoning step",
        "take a condition that needs no later step, or longer problems",
    ),
    "not_reworded": Failure(
        "a reasoning step holds no equation whose sides could change places",
        "take a condition that rewords nothing, or problems with equations",
    ),
}


class Attempt(NamedTuple):
    """A rollout as text, with the problem it answers."""

    problem: Problem
    text: str


@dataclass(frozen=True)
class Context:
    """What the teacher sees of one rollout beyond the question: a critique, for example.

    Attributes:
      text: the teacher's context. Only shown to people if `failure` is set.
      failure: a name from `FAILURES`, or None. A failed context masks its rollout out of the
        loss, and is counted.
    """

    text: str
    failure: str | None


ContextFunction = Callable[[Sequence[Attempt], Sequence[Context], TraceFormat], list[Context]]
TargetFunction = Callable[[Sequence[Attempt], Sequence[Context], Sequence[bool]], list[Context]]


class Condition(NamedTuple):
    """One of the conditions that are compared.

    Attributes:
      name: its key in `CONDITIONS`.
      contexts: (attempts, critiques, how traces are read) -> one context per attempt; None
        where no teacher is asked, and the reward alone trains.
      needs_critiques: whether the critic is asked; else the function gets no critiques.
      targets: (attempts, contexts, whether each answer is right) -> the texts whose likelihood
        trains, in place of the rollouts, without a teacher; None: the rollouts train.
    """

    name: str
    contexts: ContextFunction | None
    needs_critiques: bool
    targets: TargetFunction | None

    @property
    def learns_by(self) -> Literal["divergence", "likelihood", "reward"]:
        """Which of the three kinds of objective it needs."""
        if self.targets is not None:
            return "likelihood"
        return "reward" if self.contexts is None else "divergence"

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher scores the rollouts under the contexts."""
        return self.learns_by == "divergence"


CONDITIONS: dict[str, Condition] = {}


def condition(
    name: str, *, needs_critiques: bool
) -> Callable[[ContextFunction], ContextFunction]:
    """Registers the decorated function as the contexts of the condition `name`."""

    def register(contexts: ContextFunction) -> ContextFunction:
        CONDITIONS[name] = Condition(name, contexts, needs_critiques, targets=None)
        return contexts

    return register


def get_condition(name: str) -> Condition:
    """Returns the condition called `name`.

    Raises:
      UserError: if there is none, with the nearest valid name.
    """
    if name not in CONDITIONS:
        raise UserError(
            f"condition {name!r} is unknown; the nearest valid name is "
            f"{nearest(name, CONDITIONS)!r} of {', '.join(CONDITIONS)}."
        )
    return CONDITIONS[name]


@condition("stepalign", needs_critiques=True)
def own_critique(
    _attempts: Sequence[Attempt], critiques: Sequence[Context], _trace: TraceFormat
) -> list[Context]:
    """A critique of this very rollout."""
    return list(critiques)


@condition("refsol", needs_critiques=False)
def reference(
    attempts: Sequence[Attempt], _critiques: Sequence[Context], _trace: TraceFormat
) -> list[Context]:
    """The problem's reference solution."""
    references = [attempt.problem.reference for attempt in attempts]
    return [Context(r or "", "no_reference" if r is None else None) for r in references]


CONDITIONS["grpo"] = Condition("grpo", contexts=None, needs_critiques=False, targets=None)


@condition("no_context", needs_critiques=False)
def empty(
    attempts: Sequence[Attempt], _critiques: Sequence[Context], _trace: TraceFormat
) -> list[Context]:
    """Control: the teacher's template with nothing in the context's place."""
    return [Context("", None)] * len(attempts)


@condition("other_problem", needs_critiques=True)
def other_problem(
    attempts: Sequence[Attempt], critiques: Sequence[Context], _trace: TraceFormat
) -> list[Context]:
    """Control: the critique of another problem's rollout.

    All critiques move on by one shift, and past failures and the rollout's own problem. While
    no critique fails and such a shift exists, each critique is used exactly once.
    """
    texts = [attempt.problem.text for attempt in attempts]
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
    row: int, shift: int, texts: Sequence[str], critiques: Sequence[Context]
) -> Context:
    count = len(texts)
    for distance in range(shift, shift + count):
        donor = (row + distance) % count
        if texts[donor] != texts[row] and critiques[donor].failure is None:
            return critiques[donor]
    return Context("", "no_other_problem")


def fit_budget(
    contexts: Sequence[Context], count_tokens: Callable[[str], int], budget: int
) -> list[Context]:
    """Returns the contexts; those over `budget` tokens fail as `too_long` and are never cut."""
    return [
        replace(context, failure="too_long")
        if context.failure is None and count_tokens(context.text) > budget
        else context
        for context in contexts
    ]


def count_failures(contexts: Sequence[Context]) -> dict[str, int]:
    """Returns how often each failure occurs, with a 0 for those of `FAILURES` that do not."""
    counts = Counter(context.failure for context in contexts if context.failure is not None)
    return dict.fromkeys(FAILURES, 0) | counts


def describe_failures(contexts: Sequence[Context]) -> tuple[str, str]:
    """Returns the failures in words, and what to change against the most frequent one."""
    counts = Counter(context.failure for context in contexts if context.failure is not None)
    worst = counts.most_common(1)[0][0]
    known = FAILURES.get(worst)
    return in_words(counts), known.mend if known else "change the condition or its critic"


def in_words(counts: Counter[str]) -> str:
    """Returns counted failures in words, the most frequent first.

    A context of one's own may fail under a name of its own, which stands for itself.
    """
    return ", ".join(
        f"{number} {name} ({FAILURES[name].meaning})"
        if name in FAILURES
        else f"{number} {name}"
        for name, number in counts.most_common()
    )
