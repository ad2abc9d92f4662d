# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The configuration schema: every key, its type, and the rule that its value keeps.

Every value stands once, in a file under `configs/`, which exposes
`get_config(variant: str) -> Config`. This file holds no default but the `kind` of each
alternative.

A rule is part of its field's type (`sections.py`). Rules between keys are in `rules.py`. The
comments beside the fields are what `--help` prints.

A section that derives from `Choice` is one of several classes, each with the keys that it alone
needs. `--critic=oracle` chooses a class on the command line, `--critic.sees=answer` sets one of
its keys. A class that derives from the section's base and has a `kind` of its own is one more
alternative, in whatever module it stands (docs/extending.md).
"""

from typing import ClassVar, Literal

from stepalign_jax.config.learning import ObjectiveConfig, OptimizerConfig, TeacherConfig
from stepalign_jax.config.sections import (
    AxisSize,
    Choice,
    Count,
    InnerShare,
    Natural,
    NonNegative,
    OptionalPlace,
    Place,
    Positive,
    PositiveShare,
    Seed,
    Share,
    section,
)

ComputeDtype = Literal["float32", "bfloat16", "float16"]
Thinking = Literal["off", "on", "on+open_tag"]
Projection = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
]


@section
class ModelConfig:
    """The checkpoint that is trained."""

    path: Place  # a Hugging Face directory, a hub id, or packaged:tiny (in this package)
    compute_dtype: ComputeDtype
    attention: Literal["auto", "xla", "splash", "cudnn"]  # auto: the platform's own kernel
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
    teacher_thinking: Thinking  # on+open_tag: and the prompt opens the thought
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
    batch_size: Count  # sequences decoded together, at most


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
class TrainConfig:
    """The loop."""

    num_steps: Count
    problems_per_step: Count
    samples_per_problem: Count  # G
    micro_batches: Count  # gradient accumulation: parts one step's sequences are cut into
    checkpoint_every_steps: Count
    checkpoints_to_keep: Count
    preflight_problems: Natural  # training problems that each role answers first; 0 is off
    validate_every_steps: Natural  # 0 is off
    sample_texts_every_steps: Natural  # 0 is off
    max_empty_steps: Natural  # steps in a row without a usable context end the run; 0: never
    allow_changed_inputs: bool  # go on where problems or models are not those it began with

    @property
    def rollouts_per_step(self) -> int:
        """B: the samples of all problems of a step."""
        return self.problems_per_step * self.samples_per_problem

    def filled_slots(self, batch_size: int) -> int:
        """Of `batch_size` slots those that a step can fill; an empty one costs as much."""
        return min(batch_size, self.rollouts_per_step)


@section
class EvaluationConfig(SamplingConfig):
    """Avg@k, Pass@k and Maj@k."""

    num_samples: Count  # k
    num_validation_samples: Count  # k of the validation curve
    num_resamples: Count  # bootstrap
    confidence: InnerShare
    grading_secs: Positive  # deadline for judging one answer


@section
class AnalysisConfig:
    """Scores of single tokens under several contexts: by `analyze`, and while a run trains."""

    every_steps: Natural  # of training: scores the same rollouts again; 0 is off
    num_rollouts: Count  # spread over as many problems as there are
    contexts: tuple[str, ...]  # conditions whose contexts the teacher reads
    batch_size: Count  # rollouts scored together


@section
class ParallelConfig:
    """Sizes of the mesh axes; -1 takes the devices that are left."""

    data: AxisSize
    fsdp: AxisSize
    tensor: AxisSize


@section
class HostsConfig:
    """Several processes that train together; one alone reads the first key only."""

    checkpoints_dir: OptionalPlace  # that every host sees, or gs://...; "": the run's own
    heartbeat_timeout_secs: Positive  # a process that is silent so long ends the others
    progress_timeout_secs: Positive  # one that gets nowhere so long ends itself


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
    analysis: AnalysisConfig
    parallel: ParallelConfig
    hosts: HostsConfig
