# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The configuration schema. It holds types and checks, and not one default.

Every value stands once, in a file under `configs/`, which exposes
`get_config(variant: str) -> Config`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str  # Hugging Face directory or hub id; "packaged:tiny" is the model in this package
    compute_dtype: str  # float32 | bfloat16 | float16
    remat: str  # none | full | dots (matmul outputs saved)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainableConfig:
    kind: str  # lora | full
    rank: int
    alpha: float
    targets: tuple[str, ...]  # of q_proj k_proj v_proj o_proj gate_proj up_proj down_proj
    adapter: str  # directory in PEFT's layout to start from; "" is a fresh adapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemsConfig:
    source: str  # arithmetic | jsonl
    path: str  # jsonl: directory with train.jsonl, validation.jsonl, test.jsonl
    num_train: int
    num_validation: int
    num_test: int
    min_reasoning_steps: int  # arithmetic only
    max_reasoning_steps: int
    base_avg_below: float  # keep problems with initial Avg@n below this (paper: 5/16); 0: all
    base_avg_samples: int  # that n (paper: 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """User messages of the three roles; {problem} {context} {attempt} {answer} {reference}."""

    solver: str
    teacher: str
    critic: str
    reasoning_step_pattern: str  # regex that opens a reasoning step
    answer_pattern: str  # regex whose group 1 is the final answer
    solver_thinking: bool
    teacher_thinking: bool
    critic_thinking: bool
    max_problem_tokens: int  # budgets per section; what does not fit is refused or masked
    max_context_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    temperature: float  # 0 is greedy
    top_k: int  # 0 is off
    top_p: float  # 1 is off
    max_new_tokens: int
    batch_size: int  # sequences decoded together


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticConfig:
    kind: str  # self (the model trained, its base) | checkpoint (a second model) | oracle
    path: str  # checkpoint: as model.path; "" for the others, as the next four are at rest
    compute_dtype: str  # checkpoint: float32 | bfloat16 | float16
    # checkpoint: own (its own devices) | in_turns (all devices, which idle weights leave for
    # host memory) | shared (all devices, which hold both models)
    placement: str
    num_devices: int  # own: the critic takes so many of the last devices; 0 for the others
    tensor: int  # checkpoint: devices that share one copy of its weights; more hold more copies
    sees: str  # question | answer | reference
    max_new_tokens: int  # thinking included
    temperature: float
    batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    divergence: str  # forward_kl | reverse_kl | jsd | sampled_token
    jsd_beta: float
    loss_temperature: float
    element_clip: float  # largest term of one vocabulary entry; 0 is off
    top_k: int  # the teacher's k most probable entries and one for the rest; 0 is off
    token_tile: int  # tokens whose logits exist at once
    grpo_clip: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    kind: str  # initial | ema | live
    ema_decay: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: float
    schedule: str  # constant | cosine
    warmup_steps: int
    final_fraction: float  # of learning_rate, at the last step of the cosine
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float  # 0 is off


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    num_steps: int
    problems_per_step: int
    samples_per_problem: int  # G
    micro_batches: int  # gradient accumulation: parts one step's sequences are cut into
    checkpoint_every_steps: int
    checkpoints_to_keep: int
    validate_every_steps: int  # 0 is off
    sample_texts_every_steps: int  # 0 is off


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    num_samples: int  # k
    num_validation_samples: int  # k of the validation curve
    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    batch_size: int
    num_resamples: int  # bootstrap
    confidence: float
    grading_secs: float  # deadline for judging one answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    data: int  # mesh axis sizes; -1 takes the devices that are left
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    runs_dir: str
    seed: int
    condition: str  # a name from feedback/conditions.py
    model: ModelConfig
    trainable: TrainableConfig
    problems: ProblemsConfig
    prompts: PromptsConfig
    sampling: SamplingConfig
    critic: CriticConfig
    objective: ObjectiveConfig
    teacher: TeacherConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    evaluation: EvaluationConfig
    parallel: ParallelConfig
