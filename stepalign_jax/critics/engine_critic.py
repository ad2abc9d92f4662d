# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A critic that is a model sampled here: the frozen base itself, or a second checkpoint.

`critic.placement` says where a second model's weights are:

    own        on the last `num_devices` devices; training has the others
    shared     beside the weights of the model that is trained, on the same devices
    in_turns   on the same devices; the idle model is offloaded to host memory: the base, the
               trainable weights, optimizer and teacher while the critic is asked, and the
               critic at all other times
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.progress import counting
from stepalign_jax.config.schema import (
    CheckpointCritic,
    EngineCritic,
    InTurns,
    SelfCritic,
)
from stepalign_jax.critics.devices import make_critic_mesh, split_devices
from stepalign_jax.critics.protocol import CriticReply, Surroundings, open_critic
from stepalign_jax.feedback.contexts import Attempt, Context
from stepalign_jax.feedback.critique import Grade, require_answers, validate_critique
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.huggingface.language_model import LanguageModel, open_language_model
from stepalign_jax.parallel.mesh import use_mesh
from stepalign_jax.parallel.offload import Resident
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.kept import Kept
from stepalign_jax.sampling.request import Address, Purpose, SamplingParams, make_requests


@dataclass(frozen=True)
class ModelCritic:
    """A `Critic` that samples critiques from a model.

    Attributes:
      model: the base itself, or a second model; no adapter is on.
      roles: the run's prompts under the critic's own tokenizer and chat template.
      config: what it sees, and how it is sampled.
      grade: checks the answers of a critic that is shown them.
      displaced: what leaves the devices while this model is on them; () where it need not.
      label: names a progress bar while it is asked; "" for none.
      kept: completions on disk, or None.
    """

    model: LanguageModel
    roles: Roles
    config: EngineCritic
    grade: Grade
    displaced: tuple[Resident, ...]
    label: str
    kept: Kept | None

    @property
    def takes_turns(self) -> bool:
        """Whether the model waits in host memory until it is asked."""
        return bool(self.displaced)

    def load(self) -> None:
        """Reads the weights; those of a model that takes turns leave the devices at once.

        Raises:
          UserError: the weights cannot be read.
        """
        self.model.load()
        if self.takes_turns:
            self.model.weights.to_host()

    def review(self, attempts: Sequence[Attempt], addresses: Sequence[Address]) -> CriticReply:
        """Returns the model's critique of each attempt, or why it cannot be used."""
        prompts = [self._prompt(attempt) for attempt in attempts]
        room = self.model.sizes.max_positions - self.config.max_new_tokens
        critiques = [Context("", _why_not_asked(prompt, room)) for prompt in prompts]
        asked = [i for i, critique in enumerate(critiques) if critique.failure is None]
        requests = make_requests(
            [prompts[i] or [] for i in asked],
            [addresses[i]._replace(purpose=Purpose.CRITIC) for i in asked],
            SamplingParams.of(self.config),
        )
        with (
            self._on_devices(),
            use_mesh(self.model.mesh),
            counting(len(requests), self.label) as count,
        ):
            rollouts = self.model.engine.sample(
                {"params": self.model.base},
                requests,
                batch_size=self.config.batch_size,
                progress=count,
                kept=self.kept,
            )
        finished = [bool(is_finished) for is_finished in rollouts.finished]
        for i, text, whole in zip(asked, self.roles.texts(rollouts), finished, strict=True):
            critiques[i] = self._validate(text, whole)
        # A comment names whatever answers it likes; a trace ends in the critic's own.
        if self.config.accepts == "trace" and self.config.sees != "question":
            critiques = require_answers(
                critiques,
                [attempt.problem.expected for attempt in attempts],
                answer_pattern=self.roles.prompts.answer_pattern,
                grade=self.grade,
            )
        return CriticReply(critiques, [int(n) for n in rollouts.lengths], finished)

    def example_prompt(self, problem: Problem) -> str:
        """The prompt as the model reads it; "" where the reference that it sees is missing."""
        prompt = self._prompt(Attempt(problem, "(the rollout)"))
        return self.roles.tokenizer.decode(prompt or [])

    def _prompt(self, attempt: Attempt) -> list[int] | None:
        return self.roles.critic(attempt.problem, attempt.text, self.config.sees)

    def _validate(self, text: str, finished: bool) -> Context:
        prompts = self.roles.prompts
        return validate_critique(
            text,
            finished,
            accepts=self.config.accepts,
            thinking_open=self.roles.critic_opens_thinking(),
            step_pattern=prompts.reasoning_step_pattern,
            answer_pattern=prompts.answer_pattern,
        )

    @contextmanager
    def _on_devices(self) -> Iterator[None]:
        """Within it the model's weights are on its devices, and what they displace is not."""
        if not self.takes_turns:
            yield
            return
        for resident in self.displaced:
            resident.to_host()
        self.model.weights.to_device()
        yield
        self.model.weights.to_host()
        for resident in self.displaced:
            resident.to_device()


def _why_not_asked(prompt: list[int] | None, room: int) -> str | None:
    """The critic lacks the reference, or room beside its own budget; None if it is asked."""
    if prompt is None:
        return "no_reference"
    return "prompt_too_long" if len(prompt) > room else None


@open_critic.register
def _(config: SelfCritic, surroundings: Surroundings) -> ModelCritic:
    model = surroundings.model.with_adapter(None)
    return _model_critic(config, model, surroundings, ())


@open_critic.register
def _(config: CheckpointCritic, surroundings: Surroundings) -> ModelCritic:
    devices = split_devices(config, jax.devices())[1]
    mesh = make_critic_mesh(config, devices)
    model = open_language_model(
        config.path,
        dtype=config.compute_dtype,
        mesh=mesh,
        attention=surroundings.model.attention,
        path_key="critic.path",
        mesh_section="critic",
    )
    displaced = surroundings.others if isinstance(config.placement, InTurns) else ()
    return _model_critic(config, model, surroundings, displaced)


def _model_critic(
    config: EngineCritic,
    model: LanguageModel,
    surroundings: Surroundings,
    displaced: tuple[Resident, ...],
) -> ModelCritic:
    roles = Roles(model.tokenizer, surroundings.prompts)
    check_room(config, roles, surroundings.max_attempt_tokens, model.sizes.max_positions)
    return ModelCritic(
        model,
        roles,
        config,
        surroundings.grade,
        displaced,
        surroundings.label,
        surroundings.kept,
    )


def check_room(
    config: EngineCritic, roles: Roles, max_attempt_tokens: int, max_positions: int
) -> None:
    """Refuses a token budget that the longest prompt of the critic leaves no room for.

    The prompt is the template with the longest problem and rollout that the config admits,
    in tokens of the model that is trained. A prompt that a reference or the critic's own
    tokenizer makes longer fails as `prompt_too_long` when it comes.

    Raises:
      UserError: naming the budget and the room for it.
    """
    nothing = Problem("", "", "", "")
    template = len(roles.critic(nothing, "", config.sees) or [])
    longest = template + roles.prompts.max_problem_tokens + max_attempt_tokens
    if longest + config.max_new_tokens > max_positions:
        raise UserError(
            f"critic.max_new_tokens is {config.max_new_tokens}, but of the critic's "
            f"{max_positions} positions its longest prompt takes {longest} (template, "
            "prompts.max_problem_tokens, sampling.max_new_tokens): lower one of them."
        )
