# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
r"""A real small instruct model on word problems: between the miniature and the paper.

    python -m stepalign_jax.prepare --source gym --num-train 1000 --num-validation 64 \
        --num-test 128 --to data/gsm
    python -m stepalign_jax.probe --config small
    python -m stepalign_jax.train --config small            (StepAlignFB)
    python -m stepalign_jax.train --config small:refsol     (or any condition)
    python -m stepalign_jax.train --config small:arithmetic (sums, which a program critiques)

Sized for one free accelerator: a TPU v5e chip, of whose 15.75 GiB it takes about 9 (estimated,
docs/scaling.md), or a T4 (add --model.compute_dtype=float16, for it has no bfloat16). It starts
on a CPU too, slowly, with --model.compute_dtype=float32. It has been run on no accelerator yet.
docs/results.md has what it came to on a CPU with other weights: ten steps on word problems made
the solver worse, thirty on shorter sums took it from 26 to 82 % right.

Every value here is ours: the paper has no such model. The prompts show one worked example,
because a model of half a billion parameters follows an example and ignores a description.
"""

import dataclasses

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.learning import (
    Constant,
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
    HostsConfig,
    JsonlProblems,
    LoraTrainable,
    ModelConfig,
    OracleCritic,
    ParallelConfig,
    PromptsConfig,
    SamplingConfig,
    SelfCritic,
    TrainConfig,
)
from stepalign_jax.feedback.contexts import CONDITIONS

PROBLEM = """Anna bakes 3 trays of 12 muffins. She sells 20 muffins for $2 each and gives the \
others to 4 friends in equal parts. How many muffins does each friend get?"""

SOLUTION = """<step_1>
3 trays of 12 muffins are 3*12=36 muffins.
</step_1>
<step_2>
After selling 20 of them Anna has 36-20=16 muffins.
</step_2>
<step_3>
Each of 4 friends gets 16/4=4 muffins.
</step_3>
<answer>
4
</answer>"""

WRONG_SOLUTION = """<step_1>
3 trays of 12 muffins are 3*12=36 muffins.
</step_1>
<step_2>
She gets 20*2=40 dollars, so that 40 muffins are sold.
</step_2>
<step_3>
Each of 4 friends gets 40/4=10 muffins.
</step_3>
<answer>
10
</answer>"""

REFERENCE = """Anna has 3*12=36 muffins.
She keeps 36-20=16 of them.
So each friend gets 16/4=4 muffins."""

SOLVER_PROMPT = f"""Solve the problem. Write numbered steps and the final number in tags, \
exactly in the form of the example.

Problem:
{PROBLEM}

Solution:
{SOLUTION}

Problem:
{{problem}}

Solution:"""

# One wording for every context, so that conditions differ in the context alone.
TEACHER_PROMPT = f"""Solve the problem. Write numbered steps and the final number in tags, \
exactly in the form of the example. Keep to the numbers of the worked solution.

Problem:
{PROBLEM}

Worked solution:
{REFERENCE}

Solution:
{SOLUTION}

Problem:
{{problem}}

Worked solution:
{{context}}

Solution:"""

# The lines with {reference} and {answer} are left out if critic.sees does not include them.
CRITIC_PROMPT = f"""Correct the student's solution. Copy right steps word for word. Write \
the first wrong step correctly, and all that follows it again, up to the answer. Give the \
corrected solution alone, exactly in the form of the example.

Problem:
{PROBLEM}

Right solution:
{REFERENCE}
Right answer: 4

Student's solution:
{WRONG_SOLUTION}

Corrected solution:
{SOLUTION}

Problem:
{{problem}}

Right solution: {{reference}}
Right answer: {{answer}}

Student's solution:
{{attempt}}

Corrected solution:"""

SUM = "47+3*8-12"

SUM_SOLUTION = """Step 1: 3*8=24
Step 2: 47+24=71
Step 3: 71-12=59
Answer: 59"""

SUM_REFERENCE = "so 3*8 gives 24; so 47-12 gives 35; so 35+24 gives 59; Total 59"

SUM_SOLVER_PROMPT = f"""Work out the sum, one operation per line, exactly in the form of the \
example.

Problem: {SUM}
Solution:
{SUM_SOLUTION}

Problem: {{problem}}
Solution:"""

SUM_TEACHER_PROMPT = f"""Work out the sum, one operation per line, exactly in the form of the \
example. Keep to the numbers of the worked solution.

Problem: {SUM}
Worked solution:
{SUM_REFERENCE}
Solution:
{SUM_SOLUTION}

Problem: {{problem}}
Worked solution:
{{context}}
Solution:"""

FORWARD_KL = ForwardKl(
    token_tile=256,
    token_weights=(),
    loss_temperature=1.0,
    grpo_mix=0.0,
    element_clip=0.0,
    top_k=0,
)
POLICY_GRADIENT = PolicyGradient(
    token_tile=256,
    token_weights=(),
    loss_temperature=0.7,  # that of the rollouts
    clip=0.2,
)
LIKELIHOOD = NegativeLogLikelihood(
    token_tile=256,
    token_weights=(),
    loss_temperature=1.0,
)
OBJECTIVES = {"divergence": FORWARD_KL, "likelihood": LIKELIHOOD, "reward": POLICY_GRADIENT}


def get_config(variant: str = "") -> Config:
    """Returns the config of a condition; `stepalign` if none is named.

    Args:
      variant: a condition, `arithmetic`, or `arithmetic-CONDITION`.
    """
    regime, _, condition = variant.rpartition("-")
    if variant == "arithmetic":
        regime, condition = variant, ""
    condition = condition or "stepalign"
    if condition not in CONDITIONS or regime not in ("", "arithmetic"):
        raise UserError(
            f"it has no variant {variant!r}; it knows {', '.join(CONDITIONS)}, each also with "
            "the prefix 'arithmetic-'."
        )
    config = _word_problems(condition)
    return _arithmetic(config) if regime else config


def _word_problems(condition: str) -> Config:
    group = 8 if condition == "grpo" else 1
    return Config(
        name=f"small-{condition}",
        runs_dir="runs",
        seed=0,
        condition=condition,
        model=ModelConfig(
            path="Qwen/Qwen3-0.6B",
            compute_dtype="bfloat16",
            attention="auto",  # splash on a TPU, cuDNN on a GPU, else XLA
            remat="full",
        ),
        trainable=LoraTrainable(
            rank=16,
            alpha=32.0,
            targets=(
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ),
            adapter="",
        ),
        problems=JsonlProblems(
            path="data/gsm",
            num_train=1000,
            num_validation=64,
            num_test=128,
            base_avg_below=0.0,
            base_avg_samples=16,
        ),
        prompts=PromptsConfig(
            solver=SOLVER_PROMPT,
            teacher=TEACHER_PROMPT,
            critic=CRITIC_PROMPT,
            reasoning_step_pattern=r"<step_\d+>",
            answer_pattern=r"(?s)<answer>(.*?)(?:</answer>|(?=<answer>)|\Z)",
            solver_thinking=False,
            teacher_thinking="off",
            critic_thinking=False,
            max_problem_tokens=256,
            max_context_tokens=320,
        ),
        sampling=SamplingConfig(
            temperature=0.7,  # Qwen's advice without thinking, as top_k and top_p are
            top_k=20,
            top_p=0.8,
            max_new_tokens=256,
            batch_size=32,
        ),
        critic=SelfCritic(
            # A model of this size may copy the attempt all the same, right or wrong. Where
            # `probe` shows few accepted critiques, ask a better critic (docs/critics.md), or
            # take refsol.
            sees="reference",
            accepts="trace",
            temperature=0.7,  # so that a second sample may succeed where the first failed
            top_k=20,
            top_p=0.8,
            max_new_tokens=256,
            batch_size=32,
        ),
        critiques=CritiquesConfig(
            checks=("quoted_error", "foreign_markup"),
            min_copy_fidelity=0.0,
            max_retries=3,
            noise="wrong_verdict",  # of none of them, at a share of 0
            noise_share=0.0,
            store="paid",
            shared_store="",
        ),
        objective=OBJECTIVES[CONDITIONS[condition].learns_by],
        teacher=InitialTeacher(),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            schedule=Constant(),
            warmup_steps=5,
            b1=0.9,
            b2=0.999,
            weight_decay=0.0,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            num_steps=100,
            problems_per_step=32 // group,  # 32 rollouts per step in every condition
            samples_per_problem=group,
            micro_batches=8,
            checkpoint_every_steps=10,
            checkpoints_to_keep=2,
            validate_every_steps=10,
            sample_texts_every_steps=10,
            max_empty_steps=5,
            preflight_problems=32,  # one batch of sampling
            allow_changed_inputs=False,
        ),
        evaluation=EvaluationConfig(
            num_samples=4,
            num_validation_samples=1,
            temperature=0.7,
            top_k=20,
            top_p=0.8,
            max_new_tokens=256,
            batch_size=64,
            num_resamples=10_000,
            confidence=0.95,
            grading_secs=5.0,
        ),
        analysis=AnalysisConfig(
            every_steps=0,
            num_rollouts=64,
            contexts=(
                *("stepalign", "refsol", "no_context", "other_problem"),
                *("critique_full", "critique_omit"),
            ),
            batch_size=8,
        ),
        parallel=ParallelConfig(data=-1, fsdp=1, tensor=1),
        hosts=HostsConfig(
            checkpoints_dir="", heartbeat_timeout_secs=90.0, progress_timeout_secs=1800.0
        ),
    )


def _arithmetic(config: Config) -> Config:
    """Sums, whose every reasoning step a program can check: its critiques are exact."""
    replace = dataclasses.replace
    return replace(
        config,
        name=config.name.replace("small-", "small-arithmetic-"),
        problems=ArithmeticProblems(
            num_train=1000,
            num_validation=64,
            num_test=128,
            min_reasoning_steps=6,
            max_reasoning_steps=8,
            base_avg_below=0.0,
            base_avg_samples=16,
        ),
        prompts=replace(
            config.prompts,
            solver=SUM_SOLVER_PROMPT,
            teacher=SUM_TEACHER_PROMPT,
            reasoning_step_pattern=r"Step \d+: ",
            answer_pattern=r"Answer: (-?\d+)",
            max_problem_tokens=48,
            max_context_tokens=160,
        ),
        sampling=replace(config.sampling, max_new_tokens=128),
        critic=OracleCritic(),
        critiques=replace(config.critiques, checks=(), max_retries=0),
        evaluation=replace(config.evaluation, max_new_tokens=128),
    )
