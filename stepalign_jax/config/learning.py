# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How the solver learns: what a step minimises, the teacher's weights, AdamW."""

from typing import Literal

from stepalign_jax.config.sections import (
    Choice,
    Count,
    InnerShare,
    Momentum,
    Natural,
    NonNegative,
    Positive,
    Share,
    section,
)


@section
class ObjectiveConfig(Choice):
    """What a step minimises."""

    token_tile: Count  # tokens whose logits exist at once
    token_weights: tuple[str, ...]  # names from objectives/token_weights.py, multiplied
    loss_temperature: Positive  # divides the logits of both roles; GRPO: the rollouts' own


@section
class DivergenceConfig(ObjectiveConfig):
    """A divergence between teacher and solver; formulas in objectives/divergence.py."""

    grpo_mix: Share  # GRPO's share of the loss, the divergence has the rest; 0 is off


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
class NegativeLogLikelihood(ObjectiveConfig):
    """Of texts in the rollouts' place (feedback/baselines.py); no teacher is asked."""

    kind: Literal["nll"] = "nll"


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
