# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Each kind of rule once, and each rule between keys; the fields' own are in the schema."""

import dataclasses
import math
from typing import Any

import pytest
from support.stub_server import endpoint_critic

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.load import load_config
from stepalign_jax.config.merge import apply_overrides
from stepalign_jax.config.rules import check, fits
from stepalign_jax.config.schema import Config, CriticConfig, SelfCritic

ARITHMETIC = (
    "problems=arithmetic",
    "problems.min_reasoning_steps=3",
    "problems.max_reasoning_steps=4",
)
SECOND = (
    "critic=checkpoint",
    "critic.path=Qwen/QwQ-32B",
    "critic.compute_dtype=bfloat16",
    "critic.tensor=1",
)
OWN_DEVICES = (*SECOND, "critic.placement=own")
GRPO = ("objective=policy_gradient", "objective.clip=0.2")
MIX = ("objective.grpo_mix=0.5",)
JSD = ("objective=jsd", "objective.beta=0.1")


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("stepalign")


def refusal(config: Config, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        check(apply_overrides(config, ["--" + override for override in overrides]))
    return str(error.value)


@pytest.mark.parametrize(
    ("rule", "inside", "outside"),
    [
        ("[1, inf)", (1, 2, 1e30), (0, 0.999, -1, math.inf)),
        ("(0, inf)", (1e-30, 5), (0, -1)),
        ("[0, 1]", (0, 1, 0.5), (-1e-9, 1.001)),
        ("(0, 1]", (1, 0.5), (0, 1.001)),
        ("(0, 1)", (0.5,), (0, 1)),
        ("[0, 1)", (0, 0.999), (1,)),
        ("-1 or [1, inf)", (-1, 1, 7), (0, -2)),
    ],
)
def test_intervals(rule: str, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    assert all(fits(value, rule) for value in inside)
    assert not any(fits(value, rule) for value in outside)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        # Every kind of rule that a field may have.
        (("train.num_steps=0",), "train.num_steps is 0, but it must be at least 1"),
        (("optimizer.learning_rate=0",), "is 0.0, but it must be above 0"),
        (("sampling.top_p=1.1",), "sampling.top_p is 1.1, but it must be in (0, 1]"),
        (("seed=-1",), "seed is -1, but it must be in [0, 4294967296)"),
        (("parallel.fsdp=0",), "parallel.fsdp is 0, but it must be -1 or at least 1"),
        ((*JSD, "objective.beta=1"), "objective.beta is 1.0, but it must be in (0, 1)"),
        (
            ("model.remat=dot",),
            "which is none of none, full, dots; did you mean 'dots'?",
        ),
        (("prompts.teacher_thinking=false",), "which is none of off, on, on+open_tag; did you"),
        (("trainable.targets=q_proj,v_prj",), "did you mean 'v_proj'?"),
        (("trainable.targets=",), "trainable.targets is empty; choose from q_proj, k_proj"),
        (("trainable.targets=v_proj,q_proj,v_proj",), "trainable.targets names v_proj twice"),
        (("objective.token_weights=a,b,a",), "objective.token_weights names a twice"),
        (("model.path=",), "model.path is empty; name a Hugging Face directory, a hub id"),
        (("problems.path=",), "problems.path is empty; name a directory with train.jsonl"),
        (("runs_dir=",), "runs_dir is empty; name a directory"),
        # Rules within a section's class, which its other classes do not have.
        ((*OWN_DEVICES, "critic.placement.num_devices=0"), "at least 1"),
        (("teacher=ema", "teacher.decay=1.1"), "teacher.decay is 1.1"),
        (
            ("optimizer.schedule=cosine", "optimizer.schedule.final_fraction=2"),
            "optimizer.schedule.final_fraction is 2.0, but it must be in [0, 1]",
        ),
        # Between keys.
        (("name=a/b",), "name is 'a/b', but it must be the name of one directory"),
        (("name=",), "name is ''"),
        (("name=..",), "name is '..'"),
        (("name=" + "x" * 256,), "a name has at most 255 bytes"),
        # A byte that is no UTF-8, as Python hands it on.
        (("name=caf\udce9",), r"name is 'caf\udce9', but it must be text that UTF-8 can spell"),
        (("prompts.solver={problem}\udce9",), "prompts.solver is"),
        (("objective.token_weights=a,\udce9",), "it must be text that UTF-8 can spell"),
        (("model.path=a\0b",), "without a NUL"),
        (("runs_dir=~of_nobody/r",), "runs_dir is '~of_nobody/r', but ~ stands for a home"),
        (
            (*ARITHMETIC, "problems.min_reasoning_steps=5"),
            "min_reasoning_steps is 5, but it must not be above problems.max_reasoning_steps",
        ),
        (("critic=oracle",), "problems that can check their own reasoning steps"),
        (
            (
                *OWN_DEVICES,
                "critic.placement.num_devices=4",
                "critic.tensor=3",
            ),
            "critic.tensor is 3, but it must divide critic.placement.num_devices, which is 4",
        ),
        (GRPO, "train.samples_per_problem is 1, but objective.kind=policy_gradient compares"),
        (MIX, "train.samples_per_problem is 1, but objective.grpo_mix=0.5 compares"),
        (
            (*MIX, "train.samples_per_problem=2", "sampling.temperature=0"),
            "sampling.temperature is 0.0, but objective.grpo_mix=0.5 needs samples",
        ),
        (("objective.grpo_mix=1.5",), "objective.grpo_mix is 1.5, but it must be in [0, 1]"),
        (
            (*GRPO, "train.samples_per_problem=8", "sampling.temperature=0"),
            "sampling.temperature is 0.0, but objective.kind=policy_gradient needs samples",
        ),
        (("train.micro_batches=5",), "train.micro_batches is 5, but it must divide the 32"),
        (("train.problems_per_step=288",), "but there are only 282 problems"),
        (("optimizer.warmup_steps=63",), "must be below the 63 optimizer steps"),
        (("problems.num_validation=0",), "switch validation off with 0"),
        (
            (
                "analysis.every_steps=5",
                "train.validate_every_steps=0",
                "problems.num_validation=0",
            ),
            "switch the analysis off with 0",
        ),
        (("analysis.contexts=",), "analysis.contexts is empty; name conditions"),
        (("parallel.fsdp=-1",), "parallel.data and parallel.fsdp are -1, but only one axis"),
    ],
)
def test_the_impossible_is_refused_in_one_sentence(
    config: Config, overrides: tuple[str, ...], sentence: str
) -> None:
    said = refusal(config, *overrides)
    assert sentence in said
    assert any(override.partition("=")[0] in said for override in overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        (*ARITHMETIC, "problems.min_reasoning_steps=4", "critic=oracle"),
        (*OWN_DEVICES, "critic.placement.num_devices=4", "critic.tensor=2"),
        (*SECOND, "critic.placement=in_turns", "critic.tensor=3"),
        ("trainable=full",),
        ("train.validate_every_steps=0", "problems.num_validation=0"),
        (*GRPO, "train.samples_per_problem=2", "train.micro_batches=64"),
        ("sampling.temperature=0", "sampling.top_p=1", "seed=4294967295"),
        JSD,
        ("optimizer.warmup_steps=62", "optimizer.clip_norm=0", "parallel.data=1"),
        ("trainable.adapter=",),
    ],
)
def test_limits_pass(config: Config, overrides: tuple[str, ...]) -> None:
    check(apply_overrides(config, ["--" + override for override in overrides]))


@pytest.mark.parametrize(
    ("section", "wrong", "words"),
    [
        ("train", {"num_steps": True}, "an integer"),
        ("train", {"num_steps": 1.0}, "an integer"),
        ("sampling", {"top_p": True}, "a finite number"),
        ("sampling", {"top_p": math.nan}, "a finite number"),
        ("sampling", {"top_p": "1"}, "a finite number"),
        ("model", {"remat": 3}, "a text"),
        ("trainable", {"targets": ["q_proj"]}, "a comma-separated list"),
        ("trainable", {"targets": (1,)}, "a comma-separated list"),
        ("prompts", {"solver_thinking": 1}, "true or false"),
    ],
)
def test_values_of_another_type_are_refused(
    config: Config, section: str, wrong: dict[str, Any], words: str
) -> None:
    part = dataclasses.replace(getattr(config, section), **wrong)
    (name, value), *_ = wrong.items()
    with pytest.raises(UserError) as error:
        check(dataclasses.replace(config, **{section: part}))
    assert str(error.value) == f"{section}.{name} is {value!r}, but it takes {words}"


def test_an_integer_stands_for_a_float(config: Config) -> None:
    optimizer = dataclasses.replace(config.optimizer, weight_decay=0)
    check(dataclasses.replace(config, optimizer=optimizer))


@pytest.mark.parametrize("value", [3, None, CriticConfig()])
def test_what_is_none_of_a_sections_classes_is_refused(config: Config, value: Any) -> None:
    with pytest.raises(UserError, match=r"critic is .* must be a SelfCritic or Check"):
        check(dataclasses.replace(config, critic=value))
    with pytest.raises(UserError, match=r"train is .* must be a TrainConfig"):
        check(dataclasses.replace(config, train=value))


def test_a_class_under_the_kind_of_another_is_refused(config: Config) -> None:
    assert isinstance(config.critic, SelfCritic)
    critic = dataclasses.replace(config.critic, kind="oracle")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"critic\.kind is 'oracle', which is none of self"):
        check(dataclasses.replace(config, critic=critic))


def test_sections_that_are_not_read_are_not_checked(config: Config) -> None:
    broken = apply_overrides(config, ["--train.num_steps=0", "--problems.num_train=1"])
    check(broken, ("model", "problems"))
    with pytest.raises(UserError, match="num_steps is 0"):
        check(broken, ("model", "train"))
    with pytest.raises(UserError, match="name is ''"):
        check(dataclasses.replace(config, name=""), ("model",))


ENDPOINT = endpoint_critic()


def test_a_secret_in_the_wrong_key_is_refused_and_not_repeated(config: Config) -> None:
    for right in ({}, {"key_variable": ""}, {"url": "https://a.example/v1"}):
        check(dataclasses.replace(config, critic=dataclasses.replace(ENDPOINT, **right)))
    for wrong, words in (
        ({"key_variable": "sk-s3cret"}, "name of an environment variable in capitals"),
        ({"url": "https://me:s3cret@a.example/v1"}, "holds a user, a password or a query"),
        ({"url": "https://a.example/v1?key=s3cret"}, "holds a user, a password or a query"),
        ({"url": "a.example/s3cret"}, "must be a server's address such as http"),
        ({"url": "http://[s3cret"}, "must be a server's address such as http"),
        ({"model": ""}, "the name of a model there"),
    ):
        critic = dataclasses.replace(ENDPOINT, **wrong)
        with pytest.raises(UserError, match=words) as error:
            check(dataclasses.replace(config, critic=critic))
        assert "s3cret" not in str(error.value)


def test_a_greedy_critic_is_not_asked_again(config: Config) -> None:
    retries = dataclasses.replace(config.critiques, max_retries=2)
    with pytest.raises(
        UserError, match=r"critiques\.max_retries is 2, but critic\.temperature"
    ):
        check(dataclasses.replace(config, critiques=retries))
    warm = dataclasses.replace(ENDPOINT, temperature=0.6)
    check(dataclasses.replace(config, critiques=retries, critic=warm))
