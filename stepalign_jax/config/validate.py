# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which values of a `Config` are possible: names, ranges, and rules between keys.

Templates and patterns are checked by `feedback.prompts.check_templates`.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Sequence
from typing import Any

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import Config
from stepalign_jax.config.validate_critic import check_critic

CONDITIONS = ("stepalign", "refsol", "grpo", "no_context", "other_problem")
LORA_TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)

_NAMES: dict[str, tuple[str, ...]] = {
    "condition": CONDITIONS,
    "model.compute_dtype": ("float32", "bfloat16", "float16"),
    "model.remat": ("none", "full", "dots"),
    "trainable.kind": ("lora", "full"),
    "problems.source": ("arithmetic", "jsonl"),
    "critic.kind": ("self", "checkpoint", "oracle"),
    "critic.compute_dtype": ("float32", "bfloat16", "float16"),
    "critic.placement": ("own", "in_turns", "shared"),
    "critic.sees": ("question", "answer", "reference"),
    "objective.divergence": ("forward_kl", "reverse_kl", "jsd", "sampled_token"),
    "teacher.kind": ("initial", "ema", "live"),
    "optimizer.schedule": ("constant", "cosine"),
}

# In the usual notation: [1, inf) includes the 1, (0, 1] excludes the 0.
_RANGES: dict[str, str] = {
    "seed": "[0, 4294967296)",
    "problems.num_train": "[1, inf)",
    "problems.num_validation": "[0, inf)",
    "problems.num_test": "[0, inf)",
    "prompts.max_problem_tokens": "[1, inf)",
    "problems.base_avg_below": "[0, 1]",
    "problems.base_avg_samples": "[1, inf)",
    "prompts.max_context_tokens": "[1, inf)",
    "sampling.temperature": "[0, inf)",
    "sampling.top_k": "[0, inf)",
    "sampling.top_p": "(0, 1]",
    "sampling.max_new_tokens": "[1, inf)",
    "sampling.batch_size": "[1, inf)",
    "critic.num_devices": "[0, inf)",
    "critic.tensor": "[1, inf)",
    "critic.max_new_tokens": "[1, inf)",
    "critic.temperature": "[0, inf)",
    "critic.batch_size": "[1, inf)",
    "objective.jsd_beta": "[0, 1]",
    "objective.loss_temperature": "(0, inf)",
    "objective.element_clip": "[0, inf)",
    "objective.top_k": "[0, inf)",
    "objective.token_tile": "[1, inf)",
    "objective.grpo_clip": "(0, 1)",
    "teacher.ema_decay": "[0, 1]",
    "optimizer.learning_rate": "(0, inf)",
    "optimizer.warmup_steps": "[0, inf)",
    "optimizer.final_fraction": "[0, 1]",
    "optimizer.b1": "[0, 1)",
    "optimizer.b2": "[0, 1)",
    "optimizer.weight_decay": "[0, inf)",
    "optimizer.clip_norm": "[0, inf)",
    "train.num_steps": "[1, inf)",
    "train.problems_per_step": "[1, inf)",
    "train.samples_per_problem": "[1, inf)",
    "train.micro_batches": "[1, inf)",
    "train.checkpoint_every_steps": "[1, inf)",
    "train.checkpoints_to_keep": "[1, inf)",
    "train.validate_every_steps": "[0, inf)",
    "train.sample_texts_every_steps": "[0, inf)",
    "evaluation.num_samples": "[1, inf)",
    "evaluation.num_validation_samples": "[1, inf)",
    "evaluation.temperature": "[0, inf)",
    "evaluation.top_k": "[0, inf)",
    "evaluation.top_p": "(0, 1]",
    "evaluation.max_new_tokens": "[1, inf)",
    "evaluation.batch_size": "[1, inf)",
    "evaluation.num_resamples": "[1, inf)",
    "evaluation.confidence": "(0, 1)",
    "evaluation.grading_secs": "(0, inf)",
}


def validate(config: Config) -> None:
    """Refuses a config that no run could follow.

    Raises:
      UserError: one sentence on the first value found to be of another type than the
        schema's, no known name, out of its range, or at odds with another value.
    """
    _check_types(config)
    for key, names in _NAMES.items():
        _check_name(key, _value(config, key), names)
    for key, interval in _RANGES.items():
        _check_range(key, _value(config, key), interval)
    check_critic(config.critic)
    for check in (
        _check_run_name,
        _check_trainable,
        _check_problems,
        _check_objective,
        _check_batches,
        _check_periods,
        _check_parallel,
    ):
        check(config)


def _value(config: Config, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)


def _require(possible: bool, sentence: str) -> None:
    if not possible:
        raise UserError(sentence)


def _check_types(section: Any, prefix: str = "") -> None:
    for name, annotation in typing.get_type_hints(type(section)).items():
        value = getattr(section, name)
        fits = _fits(value, annotation)
        _require(fits, f"{prefix}{name} is {value!r}, but its type is {_type_name(annotation)}")
        if dataclasses.is_dataclass(value):
            _check_types(value, f"{prefix}{name}.")


def _type_name(annotation: Any) -> str:
    return str(annotation) if typing.get_origin(annotation) else annotation.__name__


def _fits(value: Any, annotation: Any) -> bool:
    if annotation == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if annotation in (int, float) and isinstance(value, bool):
        return False
    if annotation is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, annotation)


def _check_name(key: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise UserError(
            f"{key} is {name!r}, which is none of {', '.join(names)}; did you mean {nearest!r}?"
        )


def _check_range(key: str, value: float, interval: str) -> None:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low or (interval[0] == "[" and value == low)
    below = value < high or (interval[-1] == "]" and value == high)
    if interval.endswith("inf)"):
        need = f"at least {low:g}" if interval[0] == "[" else f"above {low:g}"
    else:
        need = f"in {interval}"
    _require(above and below, f"{key} is {value}, but it must be {need}")


def _check_run_name(config: Config) -> None:
    plain = config.name not in ("", ".", "..") and not set("/\\") & set(config.name)
    _require(plain, f"name is {config.name!r}, but it must be the name of one directory")
    _require(config.runs_dir != "", "runs_dir is empty; name the directory for the runs")
    _require(
        config.model.path != "",
        "model.path is empty; name a Hugging Face directory, a hub id, or packaged:tiny",
    )


def _check_trainable(config: Config) -> None:
    trainable = config.trainable
    if trainable.kind != "lora":
        _require(
            trainable.adapter == "",
            f"trainable.adapter is {trainable.adapter!r}, but only trainable.kind=lora starts "
            "from an adapter; to train all weights, merge it and give the result as model.path",
        )
        return
    _require(
        trainable.rank >= 1,
        f"trainable.rank is {trainable.rank}, but a lora adapter needs at least 1",
    )
    _require(
        trainable.alpha > 0,
        f"trainable.alpha is {trainable.alpha}, but a lora adapter needs it above 0",
    )
    _require(
        trainable.targets != (),
        f"trainable.targets is empty; choose from {', '.join(LORA_TARGETS)}",
    )
    for target in trainable.targets:
        _check_name("trainable.targets", target, LORA_TARGETS)
    _require(
        len(set(trainable.targets)) == len(trainable.targets),
        f"trainable.targets names a projection twice: {', '.join(trainable.targets)}",
    )


def _check_problems(config: Config) -> None:
    problems = config.problems
    if problems.source == "jsonl":
        _require(
            problems.path != "",
            "problems.path is empty; name a directory with train.jsonl, validation.jsonl and "
            "test.jsonl",
        )
        _require(
            config.critic.kind != "oracle",
            "critic.kind is 'oracle', but only arithmetic problems can check their own "
            "reasoning steps; use critic.kind=self with problems.source=jsonl",
        )
        return
    low, high = problems.min_reasoning_steps, problems.max_reasoning_steps
    _require(
        1 <= low <= high,
        f"problems.min_reasoning_steps is {low} and problems.max_reasoning_steps {high}, but "
        "the first must be at least 1 and the second not below it",
    )


def _check_objective(config: Config) -> None:
    objective, samples = config.objective, config.train.samples_per_problem
    _require(
        objective.divergence != "jsd" or 0 < objective.jsd_beta < 1,
        f"objective.jsd_beta is {objective.jsd_beta}, but jsd needs it in (0, 1); "
        "forward_kl and reverse_kl are divergences of their own",
    )
    for key, value in (("element_clip", objective.element_clip), ("top_k", objective.top_k)):
        _require(
            value == 0 or objective.divergence != "sampled_token",
            f"objective.{key} is {value}, but objective.divergence=sampled_token reads one "
            "vocabulary entry only; set it to 0",
        )
    if config.condition != "grpo":
        return
    _require(
        samples >= 2,
        f"train.samples_per_problem is {samples}, but grpo compares the samples of one "
        "problem and needs at least 2",
    )
    _require(
        config.sampling.temperature > 0,
        "sampling.temperature is 0, but grpo needs samples that differ; set it above 0",
    )


def _check_batches(config: Config) -> None:
    train, num_train = config.train, config.problems.num_train
    sequences = train.problems_per_step * train.samples_per_problem
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


def _check_periods(config: Config) -> None:
    train, warmup = config.train, config.optimizer.warmup_steps
    _require(
        warmup < train.num_steps,
        f"optimizer.warmup_steps is {warmup}, but it must be below the {train.num_steps} "
        "optimizer steps of the run (train.num_steps)",
    )
    _require(
        train.validate_every_steps == 0 or config.problems.num_validation >= 1,
        f"train.validate_every_steps is {train.validate_every_steps}, but "
        "problems.num_validation is 0; give it problems, or switch validation off with 0",
    )


def _check_parallel(config: Config) -> None:
    sizes = dataclasses.asdict(config.parallel)
    for axis, size in sizes.items():
        _require(
            size == -1 or size >= 1,
            f"parallel.{axis} is {size}, but it must be at least 1, or -1 for the devices left",
        )
    open_axes = [f"parallel.{axis}" for axis, size in sizes.items() if size == -1]
    _require(
        len(open_axes) <= 1,
        f"{' and '.join(open_axes)} are -1, but only one axis can take the devices left",
    )
