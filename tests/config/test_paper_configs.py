# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""configs/{stepalign,refsol,grpo}.py carry the numbers reported of the paper."""

from pathlib import Path

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.critics import EndpointCritic
from stepalign_jax.config.fields import leaves
from stepalign_jax.config.load import load_config
from stepalign_jax.config.schema import CheckpointCritic, Config, EngineCritic, SelfCritic
from stepalign_jax.feedback.contexts import get_condition
from stepalign_jax.feedback.prompts import check_templates, critic_prompt, teacher_prompt
from stepalign_jax.feedback.reasoning_steps import parse_reasoning_steps
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.normalise import normalize
from stepalign_jax.problems.problem import Problem

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("stepalign", "refsol", "grpo")
PROBLEM = Problem("What is 6*7?", "42", "Six sevens are 42.", "jsonl")


def load(name: str) -> Config:
    return load_config(f"{CONFIGS / name}.py")


def differing_keys(a: Config, b: Config) -> set[str]:
    left, right = ({key: value for key, _, _, value in leaves(config)} for config in (a, b))
    return {key for key in left | right if left.get(key) != right.get(key)}


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_its_condition(name: str) -> None:
    config = load(name)
    assert (config.name, config.condition) == (name, name)
    assert get_condition(config.condition).name == name
    assert isinstance(config.critic, EngineCritic)
    check_templates(config.prompts, sees=config.critic.sees)


def test_refsol_differs_in_the_context_alone() -> None:
    assert differing_keys(load("stepalign"), load("refsol")) == {"name", "condition"}


def test_grpo_differs_in_the_objective_and_the_groups_alone() -> None:
    grpo = load("grpo")
    assert differing_keys(load("stepalign"), grpo) == {
        "name",
        "condition",
        "objective.kind",
        "objective.clip",
        "objective.element_clip",
        "objective.top_k",
        "objective.grpo_mix",
        "train.samples_per_problem",
        "train.micro_batches",
    }
    assert grpo.train.problems_per_step * grpo.train.samples_per_problem == 256


def test_as_many_sequences_at_once_in_every_condition() -> None:
    at_once = {
        config.train.problems_per_step
        * config.train.samples_per_problem
        // config.train.micro_batches
        for config in map(load, NAMES)
    }
    assert at_once == {4}


@pytest.mark.parametrize("name", ["stepalign", "refsol"])
def test_the_reported_thinking_pair_is_a_variant(name: str) -> None:
    base = load(name)
    variant = load_config(f"{CONFIGS / name}.py:thinking_teacher")
    assert differing_keys(base, variant) == {"name", "prompts.teacher_thinking"}
    thinking = (base.prompts.teacher_thinking, variant.prompts.teacher_thinking)
    assert thinking == ("off", "on")


def test_the_reported_critic_is_a_variant() -> None:
    base, variant = load("stepalign"), load_config(f"{CONFIGS}/stepalign.py:checkpoint_critic")
    assert isinstance(base.critic, SelfCritic) and isinstance(variant.critic, CheckpointCritic)
    assert (variant.model.path, variant.critic.path) == ("Qwen/Qwen3-1.7B", "Qwen/QwQ-32B")
    assert variant.prompts.critic_thinking and not base.prompts.critic_thinking
    assert variant.critic.temperature == 0
    assert differing_keys(base, variant) == {
        "name",
        "prompts.critic_thinking",
        "critic.kind",
        "critic.path",
        "critic.compute_dtype",
        "critic.placement.kind",
        "critic.tensor",
        "critic.max_new_tokens",
        "critic.batch_size",
    }


def test_the_reported_critic_behind_a_server_is_a_variant() -> None:
    base, variant = load("stepalign"), load_config(f"{CONFIGS}/stepalign.py:endpoint_critic")
    assert isinstance(variant.critic, EndpointCritic)
    assert (variant.critic.model, variant.critic.sees) == ("Qwen/QwQ-32B", "answer")
    others = {key for key in differing_keys(base, variant) if not key.startswith("critic.")}
    assert others == {"name"}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_variants_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="no variant"):
        load_config(f"{CONFIGS / name}.py:thinkin_teacher")


def test_the_patterns_read_the_format_that_the_prompts_ask_for() -> None:
    prompts = load("stepalign").prompts
    trace = "<step_1>\nsix sevens\n</step_1>\n<step_2>\n42\n<answer>\n\\boxed{42}\n</answer>"
    patterns = prompts.reasoning_step_pattern, prompts.answer_pattern
    assert [step.text for step in parse_reasoning_steps(trace, *patterns)] == [
        "six sevens",
        "42",
    ]
    for ending in ("", "</answer>", "</answer> so there", "<answer>\\boxed{42}"):
        text = trace.removesuffix("</answer>") + ending
        assert normalize(extract_answer(text, prompts.answer_pattern) or "") == "42"


def test_the_critic_is_told_what_it_may_see_and_no_more() -> None:
    prompts = load("stepalign").prompts
    shown = {
        sees: critic_prompt(prompts, PROBLEM, "ATTEMPT", sees) or ""
        for sees in ("question", "answer", "reference")
    }
    assert [("42" in text, "Six sevens" in text) for text in shown.values()] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    for text in shown.values():
        assert PROBLEM.text in text and "ATTEMPT" in text
        assert [case for case in "ABCD" if f"\n{case}. " in text] == list("ABCD")


def test_an_empty_context_leaves_the_teachers_wording_alone() -> None:
    prompts = load("stepalign").prompts
    full, empty = (teacher_prompt(prompts, PROBLEM, text) for text in ("CONTEXT", ""))
    assert full.replace("CONTEXT", "") == empty
