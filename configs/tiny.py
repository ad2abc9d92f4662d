# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The miniature: a 0.8 M parameter Qwen3 that forgets its carries, distilled on a CPU.

    python -m stepalign_jax.train --config tiny            (StepAlignFB)
    python -m stepalign_jax.train --config tiny:refsol     (or any condition)
    python -m stepalign_jax.train --config tiny:hard-grpo  (long problems)
    python -m stepalign_jax.train --config tiny:natural    (mistakes that nobody planted)

A minute and a half on 2 cores, one once compiled; Avg@12 rises from 0.35 to 0.85
(docs/results.md).
Every value here is ours: the paper has no miniature.
"""

import dataclasses

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.learning import (
    Cosine,
    ForwardKl,
    InitialTeacher,
    NegativeLogLikelihood,
    OptimizerConfig,
    PolicyGradient,
)
from stepalign_jax.config.schema import (
    AnalysisConfig,
    ArithmeticProblems,
    Config,
    CritiquesConfig,
    EvaluationConfig,
    FullTrainable,
    HostsConfig,
    ModelConfig,
    ParallelConfig,
    PromptsConfig,
    SamplingConfig,
    SelfCritic,
    TrainConfig,
)
from stepalign_jax.feedback.contexts import CONDITIONS

FORWARD_KL = ForwardKl(
    token_tile=1024,
    token_weights=(),
    loss_temperature=1.0,
    grpo_mix=0.0,
    element_clip=0.0,
    top_k=0,
)
POLICY_GRADIENT = PolicyGradient(
    token_tile=1024,
    token_weights=(),
    loss_temperature=1.1,  # that of the rollouts
    clip=0.2,  # never active: one update per rollout
)
LIKELIHOOD = NegativeLogLikelihood(
    token_tile=1024,
    token_weights=(),
    loss_temperature=1.0,
)
OBJECTIVES = {"divergence": FORWARD_KL, "likelihood": LIKELIHOOD, "reward": POLICY_GRADIENT}


def get_config(variant: str = "") -> Config:
    """Returns the miniature's config.

    Args:
      variant: a condition, a regime (`hard`, `natural`), or `REGIME-CONDITION`.
    """
    variant = f"{variant}-stepalign" if variant in _REGIMES else variant or "stepalign"
    regime, _, condition = variant.rpartition("-")
    if condition not in CONDITIONS or regime not in ("", *_REGIMES):
        raise UserError(
            f"it has no variant {variant!r}; it knows {', '.join(CONDITIONS)}, "
            f"each also with the prefix {' or '.join(repr(f'{name}-') for name in _REGIMES)}."
        )
    config = _easy(condition)
    return _REGIMES[regime](config) if regime else config


def _easy(condition: str) -> Config:
    group = 8 if condition == "grpo" else 1
    return Config(
        name=f"tiny-{condition}",  # the run lives in runs_dir/name
        runs_dir="runs",
        seed=0,
        condition=condition,
        model=ModelConfig(
            path="packaged:tiny",
            compute_dtype="float32",  # a CPU is 10 to 20 times slower in bfloat16
            attention="auto",  # splash on a TPU, cuDNN on a GPU, else XLA
            remat="full",  # on a CPU what it saves in memory traffic is worth its arithmetic
        ),
        trainable=FullTrainable(),
        problems=ArithmeticProblems(
            num_train=4096,
            num_validation=100,
            num_test=200,
            min_reasoning_steps=3,
            max_reasoning_steps=4,
            base_avg_below=0.0,
            base_avg_samples=16,
        ),
        prompts=PromptsConfig(
            solver="{problem}",
            teacher="{problem}\nFeedback:\n{context}",
            critic="{problem}\nExpected: {answer}\nAttempt:\n{attempt}",
            reasoning_step_pattern=r"Step \d+: ",
            answer_pattern=r"Answer: (-?\d+)",
            solver_thinking=False,  # the packaged model does not think
            teacher_thinking="off",
            critic_thinking=False,
            max_problem_tokens=48,
            max_context_tokens=160,
        ),
        sampling=SamplingConfig(
            temperature=1.1,
            top_k=0,
            top_p=1.0,
            max_new_tokens=56,
            batch_size=64,
        ),
        critic=SelfCritic(
            sees="answer",
            accepts="trace",
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=56,
            batch_size=64,
        ),
        critiques=CritiquesConfig(
            checks=(),
            min_copy_fidelity=0.0,
            max_retries=0,
            noise="wrong_verdict",  # of none of them, at a share of 0
            noise_share=0.0,
            store="paid",
            shared_store="",
        ),
        objective=OBJECTIVES[CONDITIONS[condition].learns_by],
        teacher=InitialTeacher(),
        optimizer=OptimizerConfig(
            learning_rate=3e-4,
            schedule=Cosine(final_fraction=0.02),
            warmup_steps=10,
            b1=0.9,
            b2=0.95,
            weight_decay=0.0,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            num_steps=60,
            problems_per_step=64 // group,  # 64 rollouts per step in every condition
            samples_per_problem=group,
            micro_batches=1,
            checkpoint_every_steps=20,
            checkpoints_to_keep=2,
            preflight_problems=64,  # one batch of sampling
            validate_every_steps=10,
            sample_texts_every_steps=20,
            max_empty_steps=5,
            allow_changed_inputs=False,
        ),
        evaluation=EvaluationConfig(
            num_samples=12,
            num_validation_samples=4,
            temperature=1.1,
            top_k=0,
            top_p=1.0,
            max_new_tokens=56,
            batch_size=240,
            num_resamples=2000,
            confidence=0.95,
            grading_secs=5.0,
        ),
        analysis=AnalysisConfig(
            every_steps=0,
            num_rollouts=200,
            contexts=(
                *("stepalign", "refsol", "no_context", "other_problem"),
                *("critique_full", "critique_omit"),
            ),
            batch_size=64,
        ),
        parallel=ParallelConfig(data=1, fsdp=1, tensor=1),
        hosts=HostsConfig(
            checkpoints_dir="", heartbeat_timeout_secs=90.0, progress_timeout_secs=1800.0
        ),
    )


def _hard(config: Config) -> Config:
    """6 to 10 reasoning steps; docs/results.md states the regime."""
    replace = dataclasses.replace
    return replace(
        config,
        name=config.name.replace("tiny-", "tiny-hard-"),
        problems=replace(
            config.problems,
            num_train=1024,
            min_reasoning_steps=6,
            max_reasoning_steps=10,
            base_avg_below=5 / 16,  # the paper's rule, applied to this model
        ),
        sampling=replace(config.sampling, max_new_tokens=120),
        critic=replace(config.critic, max_new_tokens=120),
        evaluation=replace(config.evaluation, max_new_tokens=120),
    )


def _natural(config: Config) -> Config:
    """The hard problems, for a base with nothing planted; its critic reads a reference.

    `pretrain --config tiny:natural --recipe natural --to bases/natural` makes the base.
    """
    replace, config = dataclasses.replace, _hard(config)
    critic = "{problem}\nExpected: {reference}\nAttempt:\n{attempt}"  # words that it knows
    return replace(
        config,
        name=config.name.replace("tiny-hard-", "tiny-natural-"),
        model=replace(config.model, path="bases/natural"),
        prompts=replace(config.prompts, critic=critic),
        critic=replace(config.critic, sees="reference"),
    )


_REGIMES = {"hard": _hard, "natural": _natural}
