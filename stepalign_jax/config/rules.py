# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which values of a `Config` are possible: the rules of its fields, and those between keys.

Code below the config relies on them. What depends on the model, the tokenizer, the devices or
a file is checked where that is known.
"""

import math
import os
import re
import urllib.parse
from collections.abc import Callable, Collection, Sequence
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.names import nearest
from stepalign_jax.base.paths import check_path
from stepalign_jax.base.text import surrogate_at
from stepalign_jax.config.comments import comments
from stepalign_jax.config.critics import EndpointCritic
from stepalign_jax.config.fields import (
    FieldType,
    alternatives,
    annotations,
    field_type,
    is_choice,
    is_section,
)
from stepalign_jax.config.learning import DivergenceConfig, PolicyGradient
from stepalign_jax.config.schema import (
    ArithmeticProblems,
    CheckpointCritic,
    Config,
    OracleCritic,
    OwnDevices,
)


def check(config: Config, sections: Collection[str] | None = None) -> None:
    """Refuses a config that no run could follow.

    Args:
      config: what a file, or a run's directory, and overrides gave.
      sections: the sections that the caller reads; the others are not checked. None: all.

    Raises:
      UserError: one sentence on the first value found to be of another type than the
        schema's, no known name, out of its range, or at odds with another value.
    """
    read = set(annotations(Config)) if sections is None else set(sections)
    _check_fields(config, "", read)
    for needed, rule in _RULES_BETWEEN_KEYS:
        if read.issuperset(needed):
            rule(config)


def check_name(key: str, name: str, names: Sequence[str]) -> None:
    """Refuses a name that is none of `names`.

    Raises:
      UserError: lists them and says which is nearest.
    """
    if name not in names:
        raise UserError(
            f"{key} is {name!r}, which is none of {', '.join(names)}; "
            f"did you mean {nearest(name, names)!r}?"
        )


def fits(value: float, rule: str) -> bool:
    """Whether a number keeps a rule such as "[1, inf)" or "-1 or [1, inf)"."""
    return any(_is_in(value, part) for part in rule.split(" or "))


def _is_in(value: float, part: str) -> bool:
    """Whether `value` is the number that `part` is, or lies in the interval."""
    if part[0] not in "[(":
        return value == float(part)
    low, high = (float(bound) for bound in part[1:-1].split(","))
    above = value > low or (part[0] == "[" and value == low)
    return above and (value < high or (part[-1] == "]" and value == high))


def _need(rule: str) -> str:
    """The rule in words where they are plainer: "[1, inf)" is "at least 1"."""

    def words(part: str) -> str:
        if part.endswith(" inf)"):
            return f"{'at least' if part[0] == '[' else 'above'} {part[1:].partition(',')[0]}"
        return f"in {part}" if part[0] in "[(" else part

    return " or ".join(map(words, rule.split(" or ")))


def _require(possible: bool, sentence: str) -> None:
    if not possible:
        raise UserError(sentence)


# Rules of one field


def check_value(key: str, value: Any, annotation: Any) -> None:
    """Refuses a value that breaks the rule of its annotation, such as `sections.Count`.

    Raises:
      UserError: it names the value as `key`.
    """
    _check_leaf(value, field_type(annotation), key)


def _check_fields(section: Any, prefix: str, read: Collection[str] | None = None) -> None:
    """Checks all fields of a section; of the inner sections those in `read`, or all."""
    for name, annotation in annotations(type(section)).items():
        key, value = prefix + name, getattr(section, name)
        if not is_section(annotation):
            kind = field_type(annotation)
            if kind.rule == "path" and value == "":
                what = comments(type(section)).get(name) or "a path"
                raise UserError(f"{key} is empty; name {what}")
            _check_leaf(value, kind, key)
            if kind.rule.startswith("path") and value:
                check_path(key, value)
        elif read is None or name in read:
            _check_class(value, annotation, key)
            _check_fields(value, f"{key}.")


def _check_class(value: Any, annotation: type, key: str) -> None:
    classes = list(alternatives(annotation).values()) if is_choice(annotation) else [annotation]
    names = " or ".join(found.__name__ for found in classes)
    is_one = isinstance(value, annotation) and (len(classes) == 1 or hasattr(value, "kind"))
    _require(is_one, f"{key} is {value!r}, but it must be a {names}")


def _check_leaf(value: Any, kind: FieldType, key: str) -> None:
    _require(_has_type(value, kind.base), f"{key} is {value!r}, but it takes {kind.words}")
    if kind.base in (str, tuple):
        spelled = surrogate_at("".join(value)) is None
        _require(
            spelled,
            f"{key} is {value!r}, but it must be text that UTF-8 can spell; set LC_ALL=C.UTF-8 "
            "if it is",
        )
    if kind.base is tuple:
        _check_entries(value, kind.names, key)
    elif kind.names:
        check_name(key, value, kind.names)
    elif kind.rule and kind.base is not str:
        _require(fits(value, kind.rule), f"{key} is {value}, but it must be {_need(kind.rule)}")


def _has_type(value: Any, base: type) -> bool:
    if base is tuple:
        return isinstance(value, tuple) and all(isinstance(entry, str) for entry in value)
    if isinstance(value, bool):  # which Python takes for an integer
        return base is bool
    if base is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, base)


def _check_entries(entries: tuple[str, ...], names: tuple[str, ...], key: str) -> None:
    if names:
        _require(bool(entries), f"{key} is empty; choose from {', '.join(names)}")
        for entry in entries:
            check_name(key, entry, names)
    twice = sorted({entry for entry in entries if entries.count(entry) > 1})
    _require(not twice, f"{key} names {', '.join(twice)} twice: {', '.join(entries)}")


# Rules between keys


def _check_run_name(config: Config) -> None:
    plain = config.name not in ("", ".", "..") and not set("/\\") & set(config.name)
    _require(plain, f"name is {config.name!r}, but it must be the name of one directory")
    check_path("name", os.path.join(config.runs_dir, config.name))


def _check_reasoning_steps(config: Config) -> None:
    if isinstance(config.problems, ArithmeticProblems):
        low, high = config.problems.min_reasoning_steps, config.problems.max_reasoning_steps
        _require(
            low <= high,
            f"problems.min_reasoning_steps is {low}, but it must not be above "
            f"problems.max_reasoning_steps, which is {high}",
        )


def _check_oracle(config: Config) -> None:
    _require(
        config.problems.self_checking or not isinstance(config.critic, OracleCritic),
        "critic.kind is 'oracle', but it needs problems that can check their own reasoning "
        "steps; use --critic=self, or --problems=arithmetic",
    )


def _check_own_devices(config: Config) -> None:
    critic = config.critic
    if isinstance(critic, CheckpointCritic) and isinstance(critic.placement, OwnDevices):
        num_devices = critic.placement.num_devices
        _require(
            num_devices % critic.tensor == 0,
            f"critic.tensor is {critic.tensor}, but it must divide "
            f"critic.placement.num_devices, which is {num_devices}",
        )


def _check_endpoint(config: Config) -> None:
    critic = config.critic
    if not isinstance(critic, EndpointCritic):
        return
    # Neither sentence repeats the value: it may be a secret that was put in the wrong place.
    _require(
        re.fullmatch(r"([A-Z_][A-Z0-9_]*)?", critic.key_variable) is not None,
        "critic.key_variable must be the name of an environment variable in capitals, such as "
        "OPENAI_API_KEY, and not the key itself",
    )
    try:
        url = urllib.parse.urlsplit(critic.url)
    except ValueError:
        url = urllib.parse.urlsplit("")
    _require(
        url.scheme in ("http", "https") and bool(url.hostname) and critic.model != "",
        "critic.url must be a server's address such as http://localhost:8000/v1, and "
        "critic.model the name of a model there",
    )
    _require(
        not (url.username or url.password or url.query),
        "critic.url holds a user, a password or a query: name the address alone, and the key's "
        "environment variable in critic.key_variable",
    )


def _check_critique_retries(config: Config) -> None:
    temperature = getattr(config.critic, "temperature", None)
    _require(
        not config.critiques.max_retries or temperature is None or temperature > 0,
        f"critiques.max_retries is {config.critiques.max_retries}, but critic.temperature "
        "is 0, and a greedy critic says the same again; set it above 0",
    )


def _check_policy_gradient(config: Config) -> None:
    objective = config.objective
    if isinstance(objective, PolicyGradient):
        what = "objective.kind=policy_gradient"
    elif isinstance(objective, DivergenceConfig) and objective.grpo_mix > 0:
        what = f"objective.grpo_mix={objective.grpo_mix}"
    else:
        return
    samples = config.train.samples_per_problem
    _require(
        samples >= 2,
        f"train.samples_per_problem is {samples}, but {what} compares the samples of one "
        "problem and needs at least 2",
    )
    _require(
        config.sampling.temperature > 0,
        f"sampling.temperature is {config.sampling.temperature}, but {what} needs samples that "
        "differ; set it above 0",
    )


def _check_batches(config: Config) -> None:
    train, num_train = config.train, config.problems.num_train
    sequences = train.rollouts_per_step
    _require(
        sequences % train.micro_batches == 0,
        f"train.micro_batches is {train.micro_batches}, but it must divide the {sequences} "
        "sequences of a step (train.problems_per_step * train.samples_per_problem)",
    )
    _require(
        train.problems_per_step <= num_train,
        f"train.problems_per_step is {train.problems_per_step}, but there are only "
        f"{num_train} problems (problems.num_train), and a step takes each once",
    )


def _check_warmup(config: Config) -> None:
    warmup, num_steps = config.optimizer.warmup_steps, config.train.num_steps
    _require(
        warmup < num_steps,
        f"optimizer.warmup_steps is {warmup}, but it must be below the {num_steps} "
        "optimizer steps of the run (train.num_steps)",
    )


def _check_validation(config: Config) -> None:
    every = config.train.validate_every_steps
    _require(
        every == 0 or config.problems.num_validation >= 1,
        f"train.validate_every_steps is {every}, but problems.num_validation is 0; give it "
        "problems, or switch validation off with 0",
    )


def _check_analysis(config: Config) -> None:
    every, contexts = config.analysis.every_steps, config.analysis.contexts
    _require(
        every == 0 or config.problems.num_validation >= 1,
        f"analysis.every_steps is {every}, but problems.num_validation is 0, and its rollouts "
        "are of these; give it problems, or switch the analysis off with 0",
    )
    _require(bool(contexts), "analysis.contexts is empty; name conditions, such as stepalign")


def _check_parallel(config: Config) -> None:
    axes = annotations(type(config.parallel))
    left = [f"parallel.{axis}" for axis in axes if getattr(config.parallel, axis) == -1]
    _require(
        len(left) <= 1,
        f"{' and '.join(left)} are -1, but only one axis can take the devices that are left",
    )


# Each with the sections that it reads.
_RULES_BETWEEN_KEYS: tuple[tuple[tuple[str, ...], Callable[[Config], None]], ...] = (
    ((), _check_run_name),
    (("problems",), _check_reasoning_steps),
    (("problems", "critic"), _check_oracle),
    (("critic",), _check_own_devices),
    (("critic",), _check_endpoint),
    (("critic", "critiques"), _check_critique_retries),
    (("objective", "train", "sampling"), _check_policy_gradient),
    (("problems", "train"), _check_batches),
    (("optimizer", "train"), _check_warmup),
    (("problems", "train"), _check_validation),
    (("problems", "analysis"), _check_analysis),
    (("parallel",), _check_parallel),
)
