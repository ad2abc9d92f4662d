# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What each role is told: the templates of the config, filled in.

A template is plain text with placeholders `{problem}`, `{context}`, `{attempt}`,
`{answer}`, `{reference}`. Only `{name}` is a placeholder: `\\boxed{}` is ordinary text,
and `{{name}}` stands for a literal `{name}`.

The critic's template serves all values of `critic.sees`. One rule decides what it
shows: a line with `{answer}` or `{reference}` is dropped, whole, when the critic does
not see that section. `question` shows neither, `answer` the answer, `reference` both.
"""

import re

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.names import nearest
from stepalign_jax.config.schema import PromptsConfig
from stepalign_jax.problems.problem import Problem

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{([A-Za-z_]\w*)\}")
SECTIONS = ("problem", "context", "attempt", "answer", "reference")
SEES: dict[str, tuple[str, ...]] = {
    "question": (),
    "answer": ("answer",),
    "reference": ("answer", "reference"),
}
_OPTIONAL = SEES["reference"]
_REQUIRED = {
    "solver": ("problem",),
    "teacher": ("problem", "context"),
    "critic": ("problem", "attempt"),
}


def placeholders(template: str) -> list[str]:
    """Returns the placeholder names of a template, in order."""
    return [m.group(2) for m in _PLACEHOLDER.finditer(template) if m.group(2)]


def render(template: str, **sections: str) -> str:
    """Returns `template` with every placeholder replaced, in one pass.

    What is put in is never looked at again: braces in a section stay as they are.

    Raises:
      UserError: if the template has a placeholder that is not in `sections`.
    """

    def replacement(match: re.Match[str]) -> str:
        literal, name = match.groups()
        if literal:
            return f"{{{literal}}}"
        if name in sections:
            return sections[name]
        raise UserError(
            f"The template's {{{name}}} has no section here; the nearest is "
            f"{{{nearest(name, sections or SECTIONS)}}} (write {{{{{name}}}}} for the "
            f"text {{{name}}} itself)."
        )

    return _PLACEHOLDER.sub(replacement, template)


def check_templates(prompts: PromptsConfig, *, sees: str | None = None) -> None:
    """Checks templates and patterns, so that a mistake costs no compilation.

    Args:
      prompts: the config's section.
      sees: `critic.sees`, for runs whose critic reads the critic's template.

    Raises:
      UserError: for an unknown, misplaced or missing placeholder, an unknown `sees`, a
        pattern that does not compile or matches nothing at all (an empty text), or an
        answer pattern without exactly one group.
    """
    templates = {"solver": prompts.solver, "teacher": prompts.teacher, "critic": prompts.critic}
    for role, template in templates.items():
        _check_placeholders(role, template)
    _check_optional_lines(prompts.critic)
    if sees is not None:
        _check_visible(prompts.critic, sees)
    _check_pattern("reasoning_step_pattern", prompts.reasoning_step_pattern)
    answer = _check_pattern("answer_pattern", prompts.answer_pattern)
    if answer.groups != 1:
        raise UserError(
            f"prompts.answer_pattern {prompts.answer_pattern!r} has {answer.groups} groups; it "
            "needs exactly one, around the answer (write (?:...) for the others)."
        )


def _check_placeholders(role: str, template: str) -> None:
    allowed = _REQUIRED[role] + (_OPTIONAL if role == "critic" else ())
    found = placeholders(template)
    for name in found:
        if name not in allowed:
            raise UserError(
                f"prompts.{role} may not contain {{{name}}}; the nearest valid placeholder is "
                f"{{{nearest(name, allowed)}}} (write {{{{{name}}}}} for the text itself)."
            )
    for name in _REQUIRED[role]:
        if name not in found:
            raise UserError(f"prompts.{role} must contain {{{name}}}; add it to the template.")


def _check_optional_lines(template: str) -> None:
    for line in template.splitlines():
        names = set(placeholders(line))
        if len(names) > 1 and names & set(_OPTIONAL):
            raise UserError(
                f"prompts.critic has {{answer}} or {{reference}} beside another placeholder in "
                f"the line {line!r}; such a line is dropped when the critic does not see the "
                "section, so give it a line of its own."
            )


def _check_visible(template: str, sees: str) -> None:
    for name in _visible(sees)[-1:]:  # what is new at this level of sight
        if name not in placeholders(template):
            raise UserError(
                f"critic.sees is {sees!r}, but prompts.critic does not contain {{{name}}}; "
                "add a line with it, or let the critic see less."
            )


def _visible(sees: str) -> tuple[str, ...]:
    if sees not in SEES:
        raise UserError(
            f"critic.sees {sees!r} is unknown; the nearest valid name is "
            f"{nearest(sees, SEES)!r} of {', '.join(SEES)}."
        )
    return SEES[sees]


def _check_pattern(key: str, pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"prompts.{key} {pattern!r} is not a regular expression: {error}."
        ) from error
    if compiled.search("") is not None:
        raise UserError(
            f"prompts.{key} {pattern!r} matches the empty text, so it matches everywhere; make "
            "it start with text that must be there."
        )
    return compiled


def solver_prompt(prompts: PromptsConfig, problem: Problem) -> str:
    """Returns the solver's user message."""
    return render(prompts.solver, problem=problem.text)


def teacher_prompt(prompts: PromptsConfig, problem: Problem, context: str) -> str:
    """Returns the teacher's user message; an empty `context` leaves its place empty."""
    return render(prompts.teacher, problem=problem.text, context=context)


def critic_prompt(
    prompts: PromptsConfig, problem: Problem, attempt: str, sees: str
) -> str | None:
    """Returns the critic's user message, lines of unseen sections dropped.

    None if the critic should see a reference that this problem does not have: the
    rollout's critique then fails with `no_reference`.

    Raises:
      UserError: if `sees` is unknown.
    """
    visible = _visible(sees)
    if "reference" in visible and problem.reference is None:
        return None
    unseen = set(_OPTIONAL) - set(visible)
    lines = prompts.critic.splitlines(keepends=True)
    template = "".join(line for line in lines if not unseen & set(placeholders(line)))
    return render(
        template,
        problem=problem.text,
        attempt=attempt,
        answer=problem.answer,
        reference=problem.reference or "",
    )


def check_problem_budget(problem: Problem, where: str, num_tokens: int, budget: int) -> None:
    """Refuses a problem whose text is longer than `prompts.max_problem_tokens`.

    A question is never cut: what the solver would answer then is another question.

    Raises:
      UserError: naming the problem and both numbers.
    """
    if num_tokens > budget:
        raise UserError(
            f"{where}, {_shortened(problem)}, has {num_tokens} tokens, over "
            f"prompts.max_problem_tokens={budget}; raise the budget or leave the problem out."
        )


def check_room(
    where: str, problem: Problem, role: str, taken: int, rest: dict[str, int], positions: int
) -> None:
    """Refuses a problem that leaves a prompt's other parts too few positions.

    Args:
      where: which problem, in words.
      problem: it.
      role: whose prompt.
      taken: tokens of that prompt.
      rest: tokens of what else there is at most, by the key that sets it.
      positions: the model's.

    Raises:
      UserError: naming the keys and what is left for them.
    """
    left = positions - taken
    if sum(rest.values()) > left:
        keys = " and ".join(f"{key}={tokens}" for key, tokens in rest.items())
        raise UserError(
            f"{where}, {_shortened(problem)}, takes {taken} of the model's {positions} "
            f"positions in the {role}'s prompt, so {keys} do not fit into the other {left}: "
            f"lower them by {sum(rest.values()) - left} in all, or leave the problem out."
        )


def _shortened(problem: Problem) -> str:
    text = problem.text
    return repr(text if len(text) <= 80 else text[:77] + "...")
