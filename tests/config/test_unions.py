# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Sections that are one of several classes: chosen, switched, refused, added to, written."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from support.runs import ROOT

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.fields import alternatives
from stepalign_jax.config.learning import Jsd, ObjectiveConfig
from stepalign_jax.config.load import config_from_json, load_config
from stepalign_jax.config.merge import apply_overrides, from_values
from stepalign_jax.config.schema import (
    CheckpointCritic,
    Config,
    CriticConfig,
    InTurns,
    OracleCritic,
    OwnDevices,
    SamplingConfig,
    SelfCritic,
)
from stepalign_jax.config.sections import section
from stepalign_jax.feedback.contexts import CONDITIONS

SECOND = (
    "--critic=checkpoint",
    "--critic.path=models/second",
    "--critic.compute_dtype=bfloat16",
    "--critic.tensor=2",
    "--critic.placement=own",
    "--critic.placement.num_devices=4",
)
SHIPPED = [
    "tiny",
    "tiny:hard",
    *(f"tiny:{regime}{name}" for regime in ("", "hard-", "natural-") for name in CONDITIONS),
    "small",
    "small:arithmetic",
    *(f"small:{regime}{name}" for regime in ("", "arithmetic-") for name in CONDITIONS),
    *("stepalign", "stepalign:thinking_teacher", "stepalign:checkpoint_critic"),
    *("refsol", "refsol:checkpoint_critic", "grpo"),
]


@section
class HumanCritic(CriticConfig):
    """A person; defined here, as a user's module would."""

    kind: Literal["human"] = "human"
    sees: Literal["question", "answer", "reference"]
    temperature: Literal["calm", "cross"]  # not the number of that name


@section
class TunedCritic(SelfCritic):
    """A base of classes to come: it has no kind of its own."""


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("stepalign")


def refusal(config: Config, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        apply_overrides(config, overrides)
    return str(error.value)


def test_the_classes_of_a_section_are_those_that_have_a_kind() -> None:
    critics = list(alternatives(CriticConfig))
    assert critics[:3] == ["self", "checkpoint", "oracle"] and "human" in critics
    assert list(alternatives(ObjectiveConfig)) == [
        "forward_kl",
        "reverse_kl",
        "jsd",
        "sampled_token",
        "policy_gradient",
        "nll",
    ]


def test_a_switch_keeps_what_both_classes_have_and_drops_the_rest(config: Config) -> None:
    before = config.critic
    critic = apply_overrides(config, SECOND).critic
    assert isinstance(before, SelfCritic) and isinstance(critic, CheckpointCritic)
    assert critic.placement == OwnDevices(num_devices=4) and critic.path == "models/second"
    shared = [field.name for field in dataclasses.fields(SamplingConfig)] + ["sees"]
    assert [getattr(critic, n) for n in shared] == [getattr(before, n) for n in shared]
    assert apply_overrides(config, ["--critic=oracle"]).critic == OracleCritic()
    objective = apply_overrides(config, ["--objective=jsd", "--objective.beta=0.25"]).objective
    assert objective == Jsd(beta=0.25, **without_kind(config.objective))


def without_kind(part: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name != "kind"}


def test_keys_of_one_name_but_another_type_are_not_shared(config: Config) -> None:
    said = refusal(config, "--critic=human")
    assert said.startswith("the kind chosen needs critic.temperature, which")
    human = apply_overrides(config, ["--critic=human", "--critic.temperature=calm"]).critic
    assert human == HumanCritic(sees="answer", temperature="calm")


def test_the_order_of_overrides_does_not_matter(config: Config) -> None:
    expected = apply_overrides(config, SECOND)
    for order in itertools.islice(itertools.permutations(SECOND), 0, 720, 37):
        assert apply_overrides(config, order) == expected


def test_the_kind_may_be_spelled_as_a_key_and_the_last_counts(config: Config) -> None:
    spelled = [override.replace("placement=", "placement.kind=") for override in SECOND]
    spelled[0] = "--critic.kind=checkpoint"
    assert apply_overrides(config, spelled) == apply_overrides(config, SECOND)
    last = ["--critic=oracle", "--critic.kind=self"]
    assert apply_overrides(config, last).critic == config.critic


def test_an_inner_choice_may_change_alone() -> None:
    config = load_config("stepalign:checkpoint_critic", ["--critic.placement=shared"])
    assert isinstance(config.critic, CheckpointCritic)
    assert config.critic.placement.kind == "shared"  # pyright: ignore[reportAttributeAccessIssue]
    assert config.critic.path == "Qwen/QwQ-32B"


def test_all_missing_keys_are_named_at_once_with_an_example_that_works(config: Config) -> None:
    said = refusal(config, "--critic=checkpoint", "--critic.path=here")
    assert said.startswith(
        "the kind chosen needs critic.compute_dtype, critic.placement and critic.tensor, "
        "which the config 'stepalign' does not have; add for example --"
    )
    example = said.partition("for example ")[2].split()
    assert [argument.partition("=")[0] for argument in example] == [
        "--critic.compute_dtype",
        "--critic.placement",
        "--critic.tensor",
    ]
    said = refusal(config, "--critic=checkpoint", "--critic.path=here", *example)
    assert said.startswith("the kind chosen needs critic.placement.num_devices, which")
    example += said.partition("for example ")[2].split()
    apply_overrides(config, ["--critic=checkpoint", "--critic.path=here", *example])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "critic.path=x",
            "critic.path belongs to critic.kind=checkpoint, but critic.kind is",
        ),
        (
            "critic.placement.num_devices=2",
            "critic.placement.num_devices belongs to critic.kind=checkpoint",
        ),
        ("objective.beta=0.5", "objective.beta belongs to objective.kind=jsd"),
        ("problems.min_reasoning_steps=2", "belongs to problems.kind=arithmetic"),
        ("teacher.decay=0.5", "choose --teacher=ema"),
        ("optimizer.schedule.final_fraction=0", "but optimizer.schedule.kind is constant"),
        ("critic=orakel", "critic.kind is 'orakel', which is none of self, checkpoint, oracle"),
        ("critic=orakel", "did you mean 'oracle'?"),
        ("optimizer.schedule=cosin", "did you mean 'cosine'?"),
        ("critik=oracle", "the config has no key 'critik'; did you mean 'critic'?"),
        ("critic.temprature=1", "did you mean 'critic.temperature'?"),
        ("critic.kind.x=1", "the config has no key 'critic.kind.x'"),
        ("train.kind=x", "the config has no key 'train.kind'"),
    ],
)
def test_a_key_or_kind_that_is_not_there_is_refused(
    config: Config, override: str, sentence: str
) -> None:
    assert sentence in refusal(config, f"--{override}")


# A class of a user's own


def test_a_class_defined_elsewhere_goes_through_overrides_and_json(
    config: Config, tmp_path: Path
) -> None:
    asked = apply_overrides(config, ["--critic.temperature=calm", "--critic=human"])
    path = write_json(tmp_path, asked)
    assert config_from_json(path).critic == HumanCritic(sees="answer", temperature="calm")
    with pytest.raises(
        UserError, match=r"critic\.temperature is 'cros', .* did you mean 'cross'"
    ):
        config_from_json(path, ["--critic.temperature=cros"])


def test_a_kind_that_nobody_imported_matters_only_where_it_is_read(
    config: Config, tmp_path: Path
) -> None:
    critic = {"kind": "of_another_module", "words": 3}
    path = write_json(tmp_path, config, critic=critic)
    found = config_from_json(path, ["--model.path=~/here"], ("model", "trainable"))
    assert found.critic == critic and found.model.path == str(Path.home() / "here")
    assert found.trainable == config.trainable
    for read, overrides in ((("critic",), ()), (None, ()), (("model",), ("--critic.words=4",))):
        with pytest.raises(UserError, match=r"critic\.kind is 'of_another_module'"):
            config_from_json(path, overrides, read)


# JSON


def write_json(directory: Path, config: Config, **sections: Any) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(config) | sections))
    return path


@pytest.mark.parametrize("spec", SHIPPED)
def test_every_shipped_config_is_read_back_from_its_json(spec: str) -> None:
    config = load_config(spec)
    assert from_values(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_inner_classes_are_read_back(tmp_path: Path) -> None:
    config = load_config("stepalign:checkpoint_critic")
    found = config_from_json(write_json(tmp_path, config)).critic
    assert isinstance(found, CheckpointCritic) and found.placement == InTurns()
    placed = config_from_json(
        tmp_path / "config.json", ["--critic.placement=own", "--critic.placement.num_devices=4"]
    )
    assert isinstance(placed.critic, CheckpointCritic)
    assert placed.critic.placement == OwnDevices(num_devices=4)


def test_a_run_of_the_older_schema_is_refused_in_one_sentence(
    config: Config, tmp_path: Path
) -> None:
    """Its sections had all keys at once: `problems.source`, `critic.path` of a self critic."""
    problems = {"source": "arithmetic", "path": "", "num_train": 4, "min_reasoning_steps": 3}
    critic = {"kind": "self", "path": "", "placement": "shared", "num_devices": 0}
    objective = {"divergence": "forward_kl", "jsd_beta": 0.5, "grpo_clip": 0.2}
    trainable = {"kind": "full", "rank": 8, "alpha": 16.0, "targets": [], "adapter": ""}
    path = write_json(
        tmp_path,
        config,
        **{"problems": problems, "critic": critic, "objective": objective},
        trainable=trainable,
    )
    for sections in (None, ("model",)):
        with pytest.raises(UserError) as error:
            config_from_json(path, (), sections)
        said = str(error.value)
        assert said.startswith(f"{path}: problems has no kind")
        assert "written by an older version" in said and "\n" not in said


def test_shipped_names_every_file() -> None:
    names = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__"}
    assert {spec.partition(":")[0] for spec in SHIPPED} == names
