# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.config import validate as validate_config
from stepalign_jax.config.load import apply_overrides, load_config
from stepalign_jax.config.schema import Config
from stepalign_jax.config.validate import CONDITIONS, validate
from stepalign_jax.feedback import conditions


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(str(Path(__file__).parents[2] / "configs" / "stepalign.py"))


ARITHMETIC = ("problems.source=arithmetic", "problems.max_reasoning_steps=4")
SECOND = ("critic.kind=checkpoint", "critic.path=Qwen/QwQ-32B")
IMPOSSIBLE = [
    ("name=a/b", "name is 'a/b'"),
    ("name=", "name is ''"),
    ("runs_dir=", "runs_dir is empty"),
    ("seed=-1", "seed is -1, but it must be in [0, 4294967296)"),
    ("condition=stepaling", "did you mean 'stepalign'?"),
    ("model.path=", "model.path is empty"),
    ("model.compute_dtype=bf16", "did you mean 'bfloat16'?"),
    ("model.remat=dot", "did you mean 'dots'?"),
    ("trainable.kind=loar", "did you mean 'lora'?"),
    ("trainable.rank=0", "trainable.rank is 0, but a lora adapter needs at least 1"),
    ("trainable.alpha=0", "trainable.alpha is 0.0, but a lora adapter needs it above 0"),
    ("trainable.targets=", "trainable.targets is empty"),
    ("trainable.targets=q_prj", "did you mean 'q_proj'?"),
    ("trainable.targets=q_proj,q_proj", "names a projection twice"),
    ("problems.source=json", "did you mean 'jsonl'?"),
    ("problems.path=", "problems.path is empty"),
    ("problems.num_train=0", "problems.num_train is 0, but it must be at least 1"),
    ("problems.num_test=-1", "problems.num_test is -1, but it must be at least 0"),
    ("problems.num_validation=0", "switch validation off with 0"),
    ("prompts.max_problem_tokens=0", "must be at least 1"),
    ("prompts.max_context_tokens=0", "must be at least 1"),
    ("sampling.temperature=-0.1", "sampling.temperature is -0.1, but it must be at least 0"),
    ("sampling.top_k=-1", "sampling.top_k is -1"),
    ("sampling.top_p=0", "sampling.top_p is 0.0, but it must be in (0, 1]"),
    ("sampling.top_p=1.1", "sampling.top_p is 1.1, but it must be in (0, 1]"),
    ("sampling.max_new_tokens=0", "must be at least 1"),
    ("sampling.batch_size=0", "must be at least 1"),
    ("critic.kind=orakel", "did you mean 'oracle'?"),
    ("critic.kind=oracle", "only arithmetic problems can check their own"),
    ("critic.path=Qwen/QwQ-32B", "critic.kind=self reads no second model"),
    ("critic.compute_dtype=int8", "did you mean"),
    ("critic.placement=inturns", "did you mean 'in_turns'?"),
    ("critic.placement=own", "critic.kind=self has no weights of its own to place"),
    ("critic.num_devices=-1", "must be at least 0"),
    ("critic.num_devices=2", "critic.placement=shared takes all devices; set it to 0"),
    ("critic.tensor=0", "must be at least 1"),
    ("critic.sees=anwser", "did you mean 'answer'?"),
    ("critic.temperature=-1", "must be at least 0"),
    ("critic.max_new_tokens=0", "must be at least 1"),
    ("critic.batch_size=0", "must be at least 1"),
    ("objective.divergence=forward", "did you mean 'forward_kl'?"),
    ("objective.jsd_beta=1.5", "objective.jsd_beta is 1.5, but it must be in [0, 1]"),
    (
        "objective.loss_temperature=0",
        "objective.loss_temperature is 0.0, but it must be above 0",
    ),
    ("objective.element_clip=-0.05", "must be at least 0"),
    ("objective.top_k=-1", "must be at least 0"),
    ("objective.token_tile=0", "must be at least 1"),
    ("objective.grpo_clip=0", "objective.grpo_clip is 0.0, but it must be in (0, 1)"),
    ("teacher.kind=initail", "did you mean 'initial'?"),
    ("teacher.ema_decay=1.1", "teacher.ema_decay is 1.1"),
    ("optimizer.learning_rate=0", "optimizer.learning_rate is 0.0, but it must be above 0"),
    ("optimizer.schedule=cosin", "did you mean 'cosine'?"),
    ("optimizer.warmup_steps=63", "must be below the 63 optimizer steps"),
    ("optimizer.warmup_steps=-1", "optimizer.warmup_steps is -1"),
    ("optimizer.final_fraction=2", "optimizer.final_fraction is 2.0"),
    ("optimizer.b1=1", "optimizer.b1 is 1.0, but it must be in [0, 1)"),
    ("optimizer.b2=-0.5", "optimizer.b2 is -0.5"),
    ("optimizer.weight_decay=-1", "must be at least 0"),
    ("optimizer.clip_norm=-1", "must be at least 0"),
    ("train.num_steps=0", "train.num_steps is 0, but it must be at least 1"),
    ("train.problems_per_step=0", "must be at least 1"),
    ("train.problems_per_step=288", "but there are only 282 problems"),
    ("train.samples_per_problem=0", "must be at least 1"),
    ("train.micro_batches=0", "must be at least 1"),
    ("train.micro_batches=5", "it must divide the 32 sequences of a step"),
    ("train.checkpoint_every_steps=0", "must be at least 1"),
    ("train.checkpoints_to_keep=0", "must be at least 1"),
    ("train.validate_every_steps=-1", "must be at least 0"),
    ("train.sample_texts_every_steps=-1", "must be at least 0"),
    ("evaluation.num_samples=0", "must be at least 1"),
    ("problems.base_avg_below=1.5", "must be"),
    ("problems.base_avg_samples=0", "must be at least 1"),
    ("evaluation.num_validation_samples=0", "must be at least 1"),
    ("evaluation.temperature=-1", "must be at least 0"),
    ("evaluation.top_k=-1", "must be at least 0"),
    ("evaluation.top_p=0", "must be in (0, 1]"),
    ("evaluation.max_new_tokens=0", "must be at least 1"),
    ("evaluation.batch_size=0", "must be at least 1"),
    ("evaluation.num_resamples=0", "must be at least 1"),
    ("evaluation.confidence=1", "evaluation.confidence is 1.0, but it must be in (0, 1)"),
    ("evaluation.grading_secs=0", "must be above 0"),
    ("parallel.fsdp=0", "parallel.fsdp is 0, but it must be at least 1, or -1"),
    ("parallel.fsdp=-1", "parallel.data and parallel.fsdp are -1, but only one axis"),
]


def test_every_named_and_every_bounded_key_is_tried() -> None:
    tried = {override.partition("=")[0] for override, _ in IMPOSSIBLE}
    assert set(validate_config._NAMES) | set(validate_config._RANGES) <= tried


@pytest.mark.parametrize(("override", "sentence"), IMPOSSIBLE)
def test_an_impossible_value_is_refused(config: Config, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        validate(apply_overrides(config, ["--" + override]))
    assert sentence in str(error.value)
    assert override.partition("=")[0] in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (ARITHMETIC, "problems.min_reasoning_steps is 0"),
        ((*ARITHMETIC, "problems.min_reasoning_steps=5"), "problems.max_reasoning_steps 4"),
        (("objective.divergence=jsd", "objective.jsd_beta=0"), "jsd needs it in (0, 1)"),
        (("critic.kind=checkpoint",), "critic.path is empty, but critic.kind=checkpoint reads"),
        ((*SECOND, "critic.placement=own"), "critic.placement=own needs at least 1"),
        (
            (*SECOND, "critic.placement=in_turns", "critic.num_devices=4"),
            "critic.placement=in_turns takes all devices",
        ),
        (
            (*SECOND, "critic.placement=own", "critic.num_devices=4", "critic.tensor=3"),
            "critic.tensor is 3, but it must divide critic.num_devices, which is 4",
        ),
        (
            ("objective.divergence=sampled_token", "objective.element_clip=0.05"),
            "objective.element_clip is 0.05, but objective.divergence=sampled_token reads one",
        ),
        (
            ("objective.divergence=sampled_token", "objective.top_k=20"),
            "objective.top_k is 20, but objective.divergence=sampled_token reads one",
        ),
        (("condition=grpo",), "grpo compares the samples of one problem and needs at least 2"),
        (
            ("condition=grpo", "train.samples_per_problem=8", "sampling.temperature=0"),
            "grpo needs samples that differ",
        ),
        (
            ("trainable.kind=full", "trainable.adapter=somewhere"),
            "trainable.adapter is 'somewhere', but only trainable.kind=lora starts",
        ),
    ],
)
def test_values_at_odds_are_refused(
    config: Config, overrides: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        validate(apply_overrides(config, ["--" + override for override in overrides]))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        (*ARITHMETIC, "problems.min_reasoning_steps=4", "critic.kind=oracle", "problems.path="),
        (*SECOND, "critic.placement=own", "critic.num_devices=4", "critic.tensor=2"),
        (*SECOND, "critic.placement=in_turns", "critic.tensor=3"),
        ("trainable.kind=full", "trainable.rank=0", "trainable.targets="),
        ("train.validate_every_steps=0", "problems.num_validation=0"),
        ("condition=grpo", "train.samples_per_problem=2", "train.micro_batches=64"),
        ("sampling.temperature=0", "sampling.top_p=1", "seed=4294967295"),
        ("objective.divergence=jsd", "objective.jsd_beta=0.1"),
        ("optimizer.warmup_steps=62", "optimizer.clip_norm=0"),
    ],
)
def test_limits_and_unread_keys_pass(config: Config, overrides: tuple[str, ...]) -> None:
    validate(apply_overrides(config, ["--" + override for override in overrides]))


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("train", {"num_steps": True}),
        ("sampling", {"top_p": float("nan")}),
        ("trainable", {"targets": ["q_proj"]}),
        ("prompts", {"solver_thinking": 1}),
    ],
)
def test_values_of_another_type_are_refused(
    config: Config, key: str, wrong: dict[str, Any]
) -> None:
    section = dataclasses.replace(getattr(config, key), **wrong)
    with pytest.raises(UserError, match=f"{key}.{next(iter(wrong))} is .*, but its type is"):
        validate(dataclasses.replace(config, **{key: section}))


def test_an_integer_stands_for_a_float(config: Config) -> None:
    optimizer = dataclasses.replace(config.optimizer, weight_decay=0)
    validate(dataclasses.replace(config, optimizer=optimizer))


def test_conditions_are_those_that_exist() -> None:
    assert set(CONDITIONS) == set(conditions.CONDITIONS)
