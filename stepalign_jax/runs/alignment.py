# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Before the first step: do solver and teacher read a rollout alike?

Two checks, on a few tokens that the solver finds most probable:

    same prompt      the teacher behind the solver's prompt must say what the solver says
    empty context    behind its own prompt it must not wait for a token of the template, such
                     as <think>, in a place where the rollout has none
"""

import sys
from typing import Any, NamedTuple

import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.progress import say
from stepalign_jax.config.schema import Config
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.huggingface.tokenizer import is_of_template
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.record import LARGEST_LOGPROB_GAP
from stepalign_jax.training.scoring import make_logprobs_program, whole_logprobs
from stepalign_jax.training.state import TrainState, teacher_variables

NUM_TOKENS = 4  # of the rollout that are looked at
MOST_OF_ITS_MASS = 0.5


class Artefact(NamedTuple):
    """A token of the template where the teacher waits for it.

    Attributes:
      position: in the rollout, from 0.
      token: what the teacher waits for.
      probability: that it gives to it.
      rollout: the token that the rollout has there.
    """

    position: int
    token: int
    probability: float
    rollout: int


def check_alignment(
    config: Config, model: LanguageModel, state: TrainState, roles: Roles, problem: Problem
) -> dict[str, Any]:
    """Makes both checks, and warns on stderr of artefacts. Call it within `use_mesh`.

    Args:
      config: of the run.
      model: weights loaded.
      state: before the first step.
      roles: the prompts.
      problem: whose prompts are read.

    Returns:
      What prompts.json keeps: the largest divergence behind the same prompt, and artefacts.

    Raises:
      UserError: behind the same prompt teacher and solver differ by more than rounding.
    """
    solver = {"params": model.base} | state.trainable
    teacher = teacher_variables(state, model.base, config.teacher)
    program = make_logprobs_program(model.module(config.model.remat))
    prompts = [roles.solver(problem), roles.teacher(problem, "")]

    def read(variables: dict[str, Any], completion: list[int]) -> np.ndarray:
        return whole_logprobs(program, variables, prompts, completion, mesh=model.mesh)

    # Of one length throughout, so that one program serves; what follows changes no token.
    rollout, ours = [0] * NUM_TOKENS, np.zeros(0)
    for t in range(NUM_TOKENS):
        ours = read(solver, rollout)
        rollout[t] = int(ours[0, t].argmax())
    length = next((t + 1 for t, i in enumerate(rollout) if i in model.stop_ids), NUM_TOKENS)
    theirs = read(teacher, rollout)
    gap = _check_same_prompt(ours[0, :length], theirs[0, :length], config.model.compute_dtype)
    found = find_artefacts(roles.tokenizer, theirs[1, :length], rollout)
    return {"same_prompt_kl": gap, "template_artefacts": [_said(a, roles) for a in found]}


def _check_same_prompt(ours: np.ndarray, theirs: np.ndarray, dtype: str) -> float:
    """The largest |KL(teacher || solver)| of a token, in nats."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    kl = float(np.abs((np.exp(theirs) * (theirs - ours)).sum(-1)).max())
    limit = LARGEST_LOGPROB_GAP[dtype] ** 2  # it is of second order in that gap
    if not kl <= limit:  # NaN is refused too
        raise UserError(
            f"before the first step teacher and solver diverge by {kl:.2g} nats behind the "
            f"same prompt (rounding explains {limit:.2g}): the loss would not be the "
            "context's, so please report this with the run's config.json."
        )
    return kl


def find_artefacts(tokenizer: Any, teacher: np.ndarray, rollout: list[int]) -> list[Artefact]:
    """Returns the places where most of the teacher's mass is on another, template's, token.

    Args:
      tokenizer: the model's.
      teacher: [T, V] its log-probabilities under an empty context.
      rollout: at least T tokens, which the solver expects.
    """
    best = teacher.argmax(-1)
    mass = np.exp(teacher.max(-1))
    return [
        Artefact(t, int(token), float(mass[t]), rollout[t])
        for t, token in enumerate(best)
        if token != rollout[t]
        and mass[t] > MOST_OF_ITS_MASS
        and is_of_template(tokenizer, int(token))
    ]


def _said(artefact: Artefact, roles: Roles) -> dict[str, Any]:
    """Warns of it, and returns it in words."""
    token, rollout = map(roles.tokenizer.decode, ([artefact.token], [artefact.rollout]))
    say(
        f"warning: template artefact: at position {artefact.position} of a rollout the teacher "
        f"expects {token!r} with probability {artefact.probability:.2f}, where the solver "
        f"writes {rollout!r}: the loss there is the template's, not the context's (set "
        "prompts.teacher_thinking=off or on+open_tag, or objective.token_weights=skip_first:"
        f"{artefact.position + 1})",
        to=sys.stderr,
    )
    return {**artefact._asdict(), "token": token, "rollout": rollout}
