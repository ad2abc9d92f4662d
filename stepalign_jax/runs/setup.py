# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""From a config to the objects that commands work with. Cheap checks come first."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.hashing import stable_hash32
from stepalign_jax.config.learning import (
    DivergenceConfig,
    NegativeLogLikelihood,
    ObjectiveConfig,
    PolicyGradient,
)
from stepalign_jax.config.schema import (
    Config,
    EngineCritic,
    EvaluationConfig,
    LoraTrainable,
    SamplingConfig,
    TrainableConfig,
)
from stepalign_jax.critics.devices import split_devices
from stepalign_jax.critics.opening import open_wrapped_critic
from stepalign_jax.critics.protocol import Critic, Surroundings
from stepalign_jax.critics.store import CritiqueStore
from stepalign_jax.evaluation import difficulty
from stepalign_jax.evaluation.evaluate import Evaluation, evaluate
from stepalign_jax.feedback.contexts import Condition, get_condition
from stepalign_jax.feedback.prompts import check_templates
from stepalign_jax.feedback.roles import Roles, Room
from stepalign_jax.grading.grader import Grader, describe_unparsable
from stepalign_jax.huggingface.generation import read_generation_settings
from stepalign_jax.huggingface.language_model import LanguageModel, open_language_model
from stepalign_jax.huggingface.peft_adapters import load_adapter
from stepalign_jax.huggingface.tokenizer import thought_opening
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.objectives.token_weights import check_token_weights
from stepalign_jax.parallel.mesh import make_mesh, put
from stepalign_jax.parallel.offload import Resident
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.sampling.kept import Kept
from stepalign_jax.training.optimizer import make_optimizer
from stepalign_jax.training.packing import check_parts
from stepalign_jax.training.programs import Programs, make_programs
from stepalign_jax.training.state import (
    TrainState,
    abstract_state,
    initial_trainable,
    make_state,
    state_shardings,
)
from stepalign_jax.training.step import Method

GRADING_WORKERS = 2

# By `Condition.learns_by`: the class, and what a config sets.
_OBJECTIVES: dict[str, tuple[type[ObjectiveConfig], str]] = {
    "divergence": (DivergenceConfig, "a divergence, such as forward_kl"),
    "likelihood": (NegativeLogLikelihood, "nll"),
    "reward": (PolicyGradient, "policy_gradient"),
}


def open_solver(config: Config) -> tuple[LanguageModel, Roles]:
    """Opens the model that is trained, with its adapter; weights are not read.

    Raises:
      UserError: for prompts that cannot work, a checkpoint that cannot be had, or an
        adapter that fits neither it nor the config.
    """
    check_templates(config.prompts, sees=getattr(config.critic, "sees", None))
    devices, _ = split_devices(config.critic, jax.devices())
    model = open_language_model(
        config.model.path,
        dtype=config.model.compute_dtype,
        mesh=make_mesh(config.parallel, devices),
        attention=config.model.attention,
    )
    if ignored := str(read_generation_settings(model.directory)):
        print(
            f"note: {ignored}, which is not followed: a run draws as its config says",
            file=sys.stderr,
        )
    if config.prompts.teacher_thinking == "on+open_tag":
        thought_opening(model.tokenizer)  # refuses a template without thoughts
    model = with_trainable(model, config.trainable)
    return model, Roles(model.tokenizer, config.prompts)


def with_trainable(model: LanguageModel, config: TrainableConfig) -> LanguageModel:
    """Returns the model with the adapter that a run trains; as it is where all weights train.

    Raises:
      UserError: the adapter to start from cannot be read, or is another than the config's.
    """
    if not isinstance(config, LoraTrainable):
        return model
    spec = LoraSpec.of(config)
    if config.adapter == "":
        return model.with_adapter(spec)
    found, adapter = load_adapter(Path(config.adapter), model.sizes)
    wanted, actual = _describe(spec), _describe(found)
    for key, value in actual.items():
        if wanted[key] != value:
            raise UserError(
                f"trainable.{key} is {wanted[key]}, but the adapter in {config.adapter} has "
                f"{value}: set trainable.{key}={value} to start from it."
            )
    return model.with_adapter(spec, adapter)


def _describe(spec: LoraSpec) -> dict[str, Any]:
    targets = ",".join(sorted(spec.targets))
    return {"rank": spec.rank, "alpha": spec.alpha, "targets": targets}


def check_problems(
    config: Config,
    model: LanguageModel,
    roles: Roles,
    grader: Grader,
    problems: Mapping[str, Sequence[Problem]],
    *,
    trained: Sequence[str] = (),
    teacher: bool,
) -> None:
    """All that is to be said of problems before weights are read: refusals, and notes.

    Args:
      config: of the run.
      model: that is trained.
      roles: its prompts.
      grader: judges answers.
      problems: by split, or by benchmark.
      trained: see `check_lengths`.
      teacher: see `check_lengths`.

    Raises:
      UserError: as `check_lengths` and `check_golds`.
    """
    name_missing_problems(config, problems)
    check_lengths(config, model, roles, problems, trained=trained, teacher=teacher)
    check_golds(grader, chain.from_iterable(problems.values()))


def check_lengths(
    config: Config,
    model: LanguageModel,
    roles: Roles,
    problems: Mapping[str, Sequence[Problem]],
    *,
    trained: Sequence[str] = (),
    teacher: bool,
) -> None:
    """Refuses, by split, the first problem for which the model has too few positions.

    Args:
      config: of the run.
      model: that is trained.
      roles: its prompts.
      problems: by split.
      trained: the splits that rollouts are sampled from; the others are evaluated.
      teacher: whether a teacher scores, or answers, under contexts. Targets in the rollouts'
        place may be as long as contexts, so they need no more room.

    Raises:
      UserError: naming split, problem, and the keys that leave no room.
    """
    for split, found in problems.items():
        lengths = {"evaluation.max_new_tokens": config.evaluation.max_new_tokens}
        if split in trained:
            rollout = {"sampling.max_new_tokens": config.sampling.max_new_tokens}
            filtered = config.problems.base_avg_below > 0
            lengths = max(
                rollout, lengths if filtered else {}, key=lambda part: sum(part.values())
            )
        context = {"prompts.max_context_tokens": config.prompts.max_context_tokens}
        asks_teacher = teacher and (split in trained or not trained)
        room = Room(
            model.sizes.max_positions, lengths, context | lengths if asks_teacher else {}
        )
        roles.check_problems(found, split, room)


def name_missing_problems(config: Config, problems: Mapping[str, Sequence[Problem]]) -> None:
    """Names on stderr the splits whose source has fewer problems than the config asks for."""
    for split, found in problems.items():
        asked = getattr(config.problems, f"num_{split}", 0)  # a benchmark is asked for whole
        if len(found) < asked:
            print(
                f"note: there are {len(found)} {split} problems; problems.num_{split} asks for "
                f"{asked}",
                file=sys.stderr,
            )


def check_condition(config: Config) -> Condition:
    """Returns the condition that the config names, if its objective is the config's.

    Raises:
      UserError: there is no such condition, it trains by another kind of objective, or on
        critiques that need be no solutions.
    """
    condition = get_condition(config.condition)
    objective, needs = _OBJECTIVES[condition.learns_by]
    if not isinstance(config.objective, objective):
        kind = getattr(config.objective, "kind", type(config.objective).__name__)
        raise UserError(
            f"objective.kind is {kind!r}, but condition={condition.name} needs {needs}: take "
            "a config of that condition, or set the objective to it."
        )
    if condition.targets is not None and getattr(config.critic, "accepts", "") == "any":
        raise UserError(
            f"critic.accepts is 'any', but condition={condition.name} trains the solver to say "
            "what the critic says: set critic.accepts=trace."
        )
    return condition


def make_run_programs(config: Config, model: LanguageModel) -> Programs:
    """Returns the jitted functions of the run's optimizer steps.

    Raises:
      UserError: the devices cannot share a step's sequences equally, a mesh axis does not
        divide the axis of a weight that it cuts, or a token weight is unknown.
    """
    num_rows = config.train.rollouts_per_step
    check_parts(num_rows, config.train.micro_batches, model.mesh)
    check_token_weights(config.objective.token_weights)
    method = Method(
        model.module(config.model.remat),
        make_optimizer(config.optimizer, config.train.num_steps),
        config.objective,
        config.teacher,
    )
    return make_programs(method, shardings=_shardings(config, model))


def initial_state(config: Config, model: LanguageModel) -> TrainState:
    """Returns the state before the first optimizer step, laid out over the mesh."""
    trainable = initial_trainable(
        model.base, model.sizes, model.lora, model.adapter, seed=config.seed
    )
    return put(_state_maker(config, model)(trainable), _shardings(config, model))


def _state_maker(config: Config, model: LanguageModel) -> Callable[[Any], TrainState]:
    return partial(
        make_state,
        optimizer=make_optimizer(config.optimizer, config.train.num_steps),
        teacher=config.teacher,
        starts_from_adapter=model.adapter is not None,
    )


def _shardings(config: Config, model: LanguageModel) -> TrainState:
    make = _state_maker(config, model)
    return state_shardings(abstract_state(model.mesh, model.sizes, model.lora, make))


def open_run_critic(
    config: Config,
    model: LanguageModel,
    grader: Grader,
    others: Iterable[Resident],
    *,
    label: str = "",
    kept: Kept | None = None,
    run: RunDirectory | None = None,
) -> Critic:
    """Opens the critic that the config names; weights are not read.

    Args:
      config: of the run.
      model: that is trained.
      grader: judges the answers of critiques.
      others: what is on the devices beside the critic.
      label: see `Surroundings`.
      kept: see `Surroundings`.
      run: whose store of critiques is read and written; None: that of no run.

    Raises:
      UserError: the critic cannot be used.
    """
    surroundings = Surroundings(
        model=model,
        prompts=config.prompts,
        max_attempt_tokens=config.sampling.max_new_tokens,
        grade=grader.grade,
        others=tuple(others),
        label=label,
        kept=kept,
        store=_open_store(config, run),
    )
    critic = config.critic
    if run is not None and isinstance(critic, EngineCritic):
        # With the run's own number also before the first step, so that nothing compiles twice.
        critic = replace(critic, batch_size=config.train.filled_slots(critic.batch_size))
    return open_wrapped_critic(critic, config.critiques, surroundings)


def step_sampling(config: Config) -> SamplingConfig:
    """How the rollouts of a step are sampled: with no more slots than it has rollouts."""
    how = config.sampling
    return replace(how, batch_size=config.train.filled_slots(how.batch_size))


def _open_store(config: Config, run: RunDirectory | None) -> CritiqueStore:
    shared = config.critiques.shared_store
    place = run.path.resolve() if run else Path.cwd() / "no-run"
    # Two runs of one name in two places must not write one file.
    name = f"{config.name}-{stable_hash32(str(place)):08x}"
    return CritiqueStore(
        run.critiques_file if run else None, Path(shared) if shared else None, name
    )


def make_grader(config: Config) -> Grader:
    """Returns the judge of answers; use it as a context manager."""
    return Grader(deadline_secs=config.evaluation.grading_secs, num_workers=GRADING_WORKERS)


def check_golds(grader: Grader, problems: Iterable[Problem]) -> None:
    """Tries scorers; names on stderr expected answers that only the same text is right by.

    Raises:
      UserError: a task's own scorer cannot judge.
    """
    expected = dict.fromkeys(problem.expected for problem in problems)
    grader.check_scorers(expected)
    golds = [gold for gold in expected if isinstance(gold, str)]
    if found := grader.unparsable(golds):
        print(f"note: {describe_unparsable(found, len(golds))}", file=sys.stderr)


def select_problems(
    config: Config,
    model: LanguageModel,
    roles: Roles,
    grader: Grader,
    problems: list[Problem],
    split: str,
) -> list[Problem]:
    """Returns the problems that the untrained solver seldom solves, if the config asks.

    Raises:
      UserError: none is left.
    """
    initial = initial_solver(model, roles, grader)
    return difficulty.select_problems(
        config, problems, split, fingerprint=lambda: model.fingerprint, evaluate=initial
    )


def initial_solver(model: LanguageModel, roles: Roles, grader: Grader) -> difficulty.Evaluate:
    """Returns the evaluation of the untrained solver that the difficulty filter asks for."""

    def initial(
        asked: Sequence[Problem], how: EvaluationConfig, label: str, kept: Kept | None
    ) -> Evaluation:
        return evaluate(
            model.engine, model.variables(), roles, grader, asked, how,
            seed=difficulty.SEED, label=label, kept=kept,
        )  # fmt: skip

    return initial


def example_prompts(roles: Roles, critic: Critic | None, problem: Problem) -> dict[str, Any]:
    """The prompts of all roles as the model reads them, for one problem."""
    decode = roles.tokenizer.decode
    return {
        "solver": decode(roles.solver(problem)),
        "teacher": decode(roles.teacher(problem, "(the context)")),
        "critic": "" if critic is None else critic.example_prompt(problem),
    }
