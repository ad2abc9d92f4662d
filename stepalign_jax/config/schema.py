# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The configuration schema: every key, its type, and the rule that its value keeps.

Every value stands once, in a file under `configs/`, which exposes
`get_config(variant: str) -> Config`. This file holds no default but the `kind` of each
alternative.

A rule is part of its field's type: a `Literal` lists names, and an `Annotated` number carries
an interval in the usual notation, [ and ] including the bound. Rules between keys are in
`rules.py`. The comments beside the fields are what `--help` prints.

A section that derives from `Choice` is one of several classes, each with the keys that it alone
needs. `--critic=oracle` chooses a class on the command line, `--critic.sees=answer` sets one of
its keys. A class that derives from the section's base and has a `kind` of its own is one more
alternative, in whatever module it stands (docs/extending.md).
"""

import dataclasses
from typing import Annotated, ClassVar, Literal, TypeVar, dataclass_transform

Count = Annotated[int, "[1, inf)"]
Natural = Annotated[int, "[0, inf)"]
Seed = Annotated[int, "[0, 4294967296)"]
AxisSize = Annotated[int, "-1 or [1, inf)"]
Positive = Annotated[float, "(0, inf)"]
NonNegative = Annotated[float, "[0, inf)"]
Share = Annotated[float, "[0, 1]"]
PositiveShare = Annotated[float, "(0, 1]"]
InnerShare = Annotated[float, "(0, 1)"]
Momentum = Annotated[float, "[0, 1)"]
Place = Annotated[str, "path"]  # not empty; a leading ~ expands on the command line
OptionalPlace = Annotated[str, "path or empty"]

ComputeDtype = Literal["float32", "bfloat16", "float16"]
Projection = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
]

Section = TypeVar("Section")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(definition: type[Section]) -> type[Section]:
    """Makes a class a frozen dataclass whose fields are given by name."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(definition)


class Choice:
    """Marks the base of a section that is one of several classes."""


@section
class ModelConfig:
    """The checkpoint that is trained."""

    path: Place  # a Hugging Face directory, a hub id, or packaged:tiny (in this package)
    compute_dtype: ComputeDtype
    remat: Literal["none", "full", "dots"]  # what is recomputed; dots saves matmul outputs


@section
class TrainableConfig(Choice):
    """Which weights the optimizer changes."""


@section
class LoraTrainable(TrainableConfig):
    """A low-rank adapter beside the frozen base."""

    kind: Literal["lora"] = "lora"
    rank: Count
    alpha: Positive  # the update is scaled by alpha / rank
    targets: tuple[Projection, ...]  # which projections carry it
    adapter: OptionalPlace  # a directory in PEFT's layout to start from; "" is a fresh adapter


@section
class FullTrainable(TrainableConfig):
    """All weights; a frozen teacher is then a second copy of them."""

    kind: Literal["full"] = "full"


@section
class ProblemsConfig(Choice):
    """Where problems come from, how many, and how hard they are for the base."""

    self_checking: ClassVar[bool] = False  # whether they can check their own reasoning steps

    num_train: Count
    num_validation: Natural
    num_test: Natural
    base_avg_below: Share  # keep problems with initial Avg@n below this (paper: 5/16); 0: all
    base_avg_samples: Count  # that n (paper: 16)


@section
class ArithmeticProblems(ProblemsConfig):
    """Generated sums that check their own reasoning steps."""

    self_checking: ClassVar[bool] = True

    kind: Literal["arithmetic"] = "arithmetic"
    min_reasoning_steps: Count
    max_reasoning_steps: Count


@section
class JsonlProblems(ProblemsConfig):
    """Files of one's own."""

    kind: Literal["jsonl"] = "jsonl"
    path: Place  # a directory with train.jsonl, validation.jsonl, test.jsonl


@section
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
    max_problem_tokens: Count  # budgets per section; what does not fit is refused or masked
    max_context_tokens: Count


@section
class SamplingConfig:
    """How completions are drawn."""

    temperature: NonNegative  # 0 is greedy
    top_k: Natural  # 0 is off
    top_p: PositiveShare  # 1 is off
    max_new_tokens: Count
    batch_size: Count  # sequences decoded together


@section
class CriticConfig(Choice):
    """Who rewrites a rollout."""


@section
class EngineCritic(SamplingConfig, CriticConfig):
    """A model that this package samples from; max_new_tokens include its thinking."""

    sees: Literal["question", "answer", "reference"]  # each shows the ones before it too
    accepts: Literal["trace", "any"]  # a trace with its answer, or any text, as a comment is


@section
class SelfCritic(EngineCritic):
    """The frozen base of the model that is trained."""

    kind: Literal["self"] = "self"


@section
class PlacementConfig(Choice):
    """Which devices a second model takes."""


@section
class OwnDevices(PlacementConfig):
    """The last devices; training has the others."""

    kind: Literal["own"] = "own"
    num_devices: Count


@section
class InTurns(PlacementConfig):
    """All devices; the idle model is offloaded to host memory."""

    kind: Literal["in_turns"] = "in_turns"


@section
class SharedDevices(PlacementConfig):
    """All devices, which hold both models: the least time, where both fit."""

    kind: Literal["shared"] = "shared"


@section
class CheckpointCritic(EngineCritic):
    """A second model."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: Place  # a Hugging Face directory, a hub id, or packaged:tiny
    compute_dtype: ComputeDtype
    placement: PlacementConfig
    tensor: Count  # devices that share one copy of its weights; more hold more copies


@section
class OracleCritic(CriticConfig):
    """A program; for problems that check their own reasoning steps."""

    kind: Literal["oracle"] = "oracle"


Noise = Literal["wrong_verdict", "shifted_error", "paraphrase", "off_topic"]


@section
class CritiquesConfig:
    """What is done with critiques, whoever writes them."""

    checks: tuple[str, ...]  # names from feedback/validate.py; who fails one is masked
    min_copy_fidelity: Share  # of the right reasoning steps that a critique copies; 0 is off
    max_retries: Natural  # further samples for a critique that failed, before it is masked
    noise: Noise  # how critiques are spoilt on purpose (critics/noisy.py)
    noise_share: Share  # of how many; 0 is off
    store: Literal["paid", "all"]  # which critiques a run keeps: a server's, or everyone's
    shared_store: OptionalPlace  # a directory of stores of several runs; "" is none


@section
class ObjectiveConfig(Choice):
    """What a step minimises."""

    token_tile: Count  # tokens whose logits exist at once
    token_weights: tuple[str, ...]  # names from objectives/token_weights.py, multiplied
    loss_temperature: Positive  # divides the logits of both roles; GRPO: the rollouts' own


@section
class DivergenceConfig(ObjectiveConfig):
    """A divergence between teacher and solver; formulas in objectives/divergence.py."""


@section
class VocabularyDivergence(DivergenceConfig):
    """A sum over the vocabulary."""

    element_clip: NonNegative  # largest term of one vocabulary entry; 0 is off
    top_k: Natural  # the teacher's k most probable entries and one for the rest; 0 is off


@section
class ForwardKl(VocabularyDivergence):
    """KL(teacher || solver)."""

    kind: Literal["forward_kl"] = "forward_kl"


@section
class ReverseKl(VocabularyDivergence):
    """KL(solver || teacher)."""

    kind: Literal["reverse_kl"] = "reverse_kl"


@section
class Jsd(VocabularyDivergence):
    """The divergence of both from their mixture."""

    kind: Literal["jsd"] = "jsd"
    beta: InnerShare  # the teacher's share in the mixture


@section
class SampledToken(DivergenceConfig):
    """The advantage of the sampled token alone."""

    kind: Literal["sampled_token"] = "sampled_token"


@section
class PolicyGradient(ObjectiveConfig):
    """GRPO's clipped surrogate; no teacher is asked."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    clip: InnerShare  # epsilon


@section
class TeacherConfig(Choice):
    """The self-teacher's weights."""


@section
class InitialTeacher(TeacherConfig):
    """Frozen before the first optimizer step."""

    kind: Literal["initial"] = "initial"


@section
class EmaTeacher(TeacherConfig):
    """An exponential moving average of the solver."""

    kind: Literal["ema"] = "ema"
    decay: Share


@section
class LiveTeacher(TeacherConfig):
    """The solver itself."""

    kind: Literal["live"] = "live"


@section
class ScheduleConfig(Choice):
    """The learning rate after the warm-up."""


@section
class Constant(ScheduleConfig):
    """It stays."""

    kind: Literal["constant"] = "constant"


@section
class Cosine(ScheduleConfig):
    """It falls along half a cosine."""

    kind: Literal["cosine"] = "cosine"
    final_fraction: Share  # of learning_rate, at the last step


@section
class OptimizerConfig:
    """AdamW."""

    learning_rate: Positive
    schedule: ScheduleConfig
    warmup_steps: Natural
    b1: Momentum
    b2: Momentum
    weight_decay: NonNegative
    clip_norm: NonNegative  # of the gradient; 0 is off


@section
class TrainConfig:
    """The loop."""

    num_steps: Count
    problems_per_step: Count
    samples_per_problem: Count  # G
    micro_batches: Count  # gradient accumulation: parts one step's sequences are cut into
    checkpoint_every_steps: Count
    checkpoints_to_keep: Count
    validate_every_steps: Natural  # 0 is off
    sample_texts_every_steps: Natural  # 0 is off
    max_empty_steps: Natural  # steps in a row without a usable context end the run; 0: never
    allow_changed_inputs: bool  # go on where problems or models are not those it began with


@section
class EvaluationConfig(SamplingConfig):
    """Avg@k, Pass@k and Maj@k."""

    num_samples: Count  # k
    num_validation_samples: Count  # k of the validation curve
    num_resamples: Count  # bootstrap
    confidence: InnerShare
    grading_secs: Positive  # deadline for judging one answer


@section
class ParallelConfig:
    """Sizes of the mesh axes; -1 takes the devices that are left."""

    data: AxisSize
    fsdp: AxisSize
    tensor: AxisSize


@section
class Config:
    """One run."""

    name: str  # the run lives in runs_dir/name
    runs_dir: Place  # a directory for runs
    seed: Seed  # of every random draw
    condition: str  # a name from feedback/contexts.py
    model: ModelConfig
    trainable: TrainableConfig
    problems: ProblemsConfig
    prompts: PromptsConfig
    sampling: SamplingConfig
    critic: CriticConfig
    critiques: CritiquesConfig
    objective: ObjectiveConfig
    teacher: TeacherConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    evaluation: EvaluationConfig
    parallel: ParallelConfig
