# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
r"""Step-aligned self-distillation at the paper's scale (arXiv 2606.11173).

    python -m stepalign_jax.train --config stepalign

Each key says where its value comes from:

  paper      reported of the paper. We read its opening, two figures and reports by readers
             who had the whole text, not the whole text itself.
  inherited  not reported of the paper; the value of OPSD (arXiv 2601.18734), whose set-up
             the paper follows.
  ours       our choice, or our reading where the reports leave a gap.

Sized for four GPUs with 80 GB, the hardware reported of the paper. We have not run it at
this size, so there is no number of ours to expect.

Variants: `thinking_teacher` pairs the roles exactly as reported; see `teacher_thinking`.
`checkpoint_critic` has the paper's critic, QwQ-32B, which thinks; see `CHECKPOINT_CRITIC`.
`endpoint_critic` asks it of a server instead.

The problems are not part of this repository. This command makes `data/openmath` of
nvidia/OpenMathReasoning, with the problems that a 72B model solves (docs/data.md):

    python -m stepalign_jax.prepare --source openmath --to data/openmath

What the paper filters by asking the solver is `problems.base_avg_below` here.
"""

from stepalign_jax.config.critics import EndpointCritic
from stepalign_jax.config.learning import Constant, ForwardKl, InitialTeacher, OptimizerConfig
from stepalign_jax.config.load import check_variant
from stepalign_jax.config.schema import (
    AnalysisConfig,
    CheckpointCritic,
    Config,
    CritiquesConfig,
    EvaluationConfig,
    HostsConfig,
    InTurns,
    JsonlProblems,
    LoraTrainable,
    ModelConfig,
    ParallelConfig,
    PromptsConfig,
    SamplingConfig,
    SelfCritic,
    TrainConfig,
)

TRACE_FORMAT = r"""Write the solution in this form and nothing outside it:
<step_1>
the first reasoning step
</step_1>
<step_2>
the second reasoning step
</step_2>
and so on, with as many numbered steps as the problem needs, then
<answer>
\boxed{...}
</answer>
One step makes one deduction or one calculation and shows how it follows from what stands
before it. The box holds the final answer alone."""

SOLVER_PROMPT = (
    """Solve this mathematics problem.

Problem:
{problem}

"""
    + TRACE_FORMAT
)

# One wording for every context, so that conditions differ in the context alone.
TEACHER_PROMPT = (
    """Solve this mathematics problem.

Problem:
{problem}

A solution to lean on:
--- begin ---
{context}
--- end ---

Make sure that you understand every move of it. Then solve the problem yourself, keeping
to its ideas.

"""
    + TRACE_FORMAT
)

# The lines with {answer} and {reference} are left out if critic.sees does not include them.
CRITIC_PROMPT = r"""You correct solutions as a faithful scribe: you copy what is right and
repair what is not.

Problem:
{problem}

Correct final answer: {answer}
Reference solution: {reference}

A student's solution:
--- begin ---
{attempt}
--- end ---

Check the student's steps in their order, silently. Then decide which case this is:
A. Every step is right and so is the final answer. Copy the whole solution, unchanged.
B. The final answer is right, but a step that it rests on is missing. Copy the solution and
   put the missing step in its place.
C. The solution stops before its end, or loses itself. Keep what is right of it, shortened
   where it repeats itself, and finish it.
D. A step is wrong. Find the earliest wrong step. Copy all steps before it word for word,
   write that step correctly, and redo everything after it up to the final answer.

In every case:
- Copy a right step word for word; do not polish it.
- Never quote, mention or explain what was wrong: in the place of a wrong step stands only
  the right one.
- Keep the student's notation, approach and size of steps as far as they lead to a right
  solution, and number the steps from 1 without a gap.
- Give the corrected solution and nothing else: no case letter, no comment, no greeting.

Use the student's form: each step between <step_1> and </step_1>, <step_2> and </step_2>,
and so on; after the last one <answer>, \boxed{...} with the final answer alone, </answer>."""


SELF_CRITIC = SelfCritic(  # ours: the paper's is QwQ-32B, as in the variant checkpoint_critic
    sees="answer",  # ours: reports disagree on whether it saw more than the question
    accepts="trace",  # paper: a critique is a corrected trace; that others are masked, ours
    temperature=0.0,  # paper: greedy
    top_k=0,  # ours: greedy decoding filters nothing
    top_p=1.0,  # ours, as above
    max_new_tokens=3072,  # ours: a corrected trace may outgrow the 2048 of a rollout
    batch_size=32,  # ours
)

# The variant `checkpoint_critic`: a second model as critic. What waits in host memory comes
# to more than the runtime pins by default: set XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB=128.
CHECKPOINT_CRITIC = CheckpointCritic(  # paper
    path="Qwen/QwQ-32B",  # paper
    compute_dtype="bfloat16",  # ours: 66 GB of weights
    # ours: of four devices with 80 GB, each holds a quarter of the critic's weights, 16 GB,
    # or, while it waits in 66 GB of host memory, what training needs
    placement=InTurns(),
    tensor=4,  # ours: all four devices share one copy
    sees="answer",  # ours, as above
    accepts="trace",  # ours, as above
    temperature=0.0,  # paper: greedy
    top_k=0,  # ours, as above
    top_p=1.0,  # ours, as above
    max_new_tokens=16384,  # ours: thinking is most of it; a critique cut short is masked
    batch_size=16,  # ours: keys and values of 16 x 20,000 tokens, 22 GB on each device
)

# The variant `endpoint_critic`: a server that you started, or rent (docs/critics.md).
ENDPOINT_CRITIC = EndpointCritic(  # ours: the paper's critic behind a server
    url="http://localhost:8000/v1",  # ours: where `vllm serve Qwen/QwQ-32B` listens
    model="Qwen/QwQ-32B",  # paper
    key_variable="",  # ours: one's own server has no key
    sees="answer",  # ours, as above
    accepts="trace",  # paper
    temperature=0.0,  # paper: greedy
    max_new_tokens=16384,  # ours, as above
    concurrency=32,  # ours: all rollouts of a step at once
    requests_per_minute=0,  # ours: one's own server has no limit
    timeout_secs=1800.0,  # ours: 16,384 tokens at 10 a second
    max_retries=4,  # ours: half a second, then 1, 2 and 4 between them
    price_input=0.0,  # ours: nothing is billed
    price_output=0.0,  # ours, as above
)

CRITICS = {"checkpoint_critic": CHECKPOINT_CRITIC, "endpoint_critic": ENDPOINT_CRITIC}


def get_config(variant: str) -> Config:
    """Returns the reference run, or a variant of it."""
    check_variant(variant, ("thinking_teacher", *CRITICS))
    second_critic = variant == "checkpoint_critic"
    return Config(
        name=f"stepalign_{variant}" if variant else "stepalign",  # ours
        runs_dir="runs",  # ours
        seed=0,  # ours
        condition="stepalign",  # paper: its StepAlignFB
        model=ModelConfig(
            path="Qwen/Qwen3-1.7B",  # paper: Qwen3-1.7B; that it is this checkpoint, ours
            compute_dtype="bfloat16",  # paper
            attention="auto",  # ours: splash on a TPU, cuDNN on a GPU, else XLA
            remat="full",  # ours: activations are recomputed, long rows would not fit
        ),
        trainable=LoraTrainable(  # paper
            rank=64,  # paper
            alpha=128.0,  # paper
            targets=(  # paper: all seven projections
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ),
            adapter="",  # paper: a fresh one
        ),
        problems=JsonlProblems(  # ours
            path="data/openmath",  # ours: see the top of this file
            num_train=282,  # paper
            num_validation=30,  # ours: more problems that pass the filter; it had none
            num_test=30,  # paper
            base_avg_below=5 / 16,  # paper: the solver's Avg@16 on a problem it keeps
            base_avg_samples=16,  # paper
        ),
        prompts=PromptsConfig(
            solver=SOLVER_PROMPT,  # ours: the paper's wording is not known to us
            teacher=TEACHER_PROMPT,  # ours, as above
            critic=CRITIC_PROMPT,  # ours, as above; the cases A-D and the rules are the paper's
            reasoning_step_pattern=r"<step_\d+>",  # paper: the tag; as a pattern, ours
            # paper: the tag; as a pattern, which lets it stay open, ours
            answer_pattern=r"(?s)<answer>(.*?)(?:</answer>|(?=<answer>)|\Z)",
            solver_thinking=False,  # paper
            # ours; the paper's teacher thinks. With Qwen3's template a thinking prompt ends
            # before the place where the model opens <think>, while the solver's prompt ends
            # after an empty think block. The thinking teacher then expects <think> where the
            # rollout has its first token, and forward KL would teach the solver to open one.
            # Off, both prompts end in the same empty block and the offsets mean the same.
            # The variant thinking_teacher is the reported pairing, this flaw included;
            # on+open_tag mends it as the author of OPSD advises: the prompt opens the thought.
            teacher_thinking="on" if variant == "thinking_teacher" else "off",
            # ours; the paper's critic thinks, as that of the variant does; it is stripped
            critic_thinking=second_critic,
            max_problem_tokens=1024,  # ours
            max_context_tokens=8192,  # ours: reference solutions run to thousands of tokens
        ),
        sampling=SamplingConfig(
            temperature=1.1,  # paper
            top_k=20,  # inherited
            top_p=0.95,  # inherited
            max_new_tokens=2048,  # paper
            batch_size=32,  # ours
        ),
        critic=CRITICS.get(variant, SELF_CRITIC),
        critiques=CritiquesConfig(  # ours: critiques are taken as they come
            checks=(),  # paper is silent
            min_copy_fidelity=0.0,  # paper is silent
            max_retries=0,  # ours: the critic is greedy and would say the same again
            noise="wrong_verdict",  # ours: of none of them, at a share of 0
            noise_share=0.0,  # ours
            store="paid",  # ours
            shared_store="",  # ours
        ),
        objective=ForwardKl(  # paper; that this is KL(teacher || solver), inherited
            token_tile=256,  # ours: 256 x 151936 float32 logits are 156 MB
            token_weights=(),  # paper is silent: every token counts alike
            loss_temperature=1.1,  # inherited: both sides' logits over the sampling temperature
            grpo_mix=0.0,  # paper: distillation alone
            element_clip=0.0,  # paper is silent; 0.05 in the code that it builds on
            top_k=0,  # paper is silent; inherited: the whole vocabulary
        ),
        teacher=InitialTeacher(),  # paper: the adapter switched off
        optimizer=OptimizerConfig(  # paper: AdamW
            learning_rate=5e-6,  # paper
            schedule=Constant(),  # ours
            warmup_steps=0,  # ours
            b1=0.9,  # ours
            b2=0.999,  # ours
            weight_decay=0.0,  # ours
            clip_norm=0.1,  # inherited
        ),
        train=TrainConfig(
            # paper: up to 7 epochs; ours: 282 problems by 32 are 9 steps an epoch
            num_steps=63,
            problems_per_step=32,  # paper: batch 32; that the unit is problems, ours
            samples_per_problem=1,  # paper
            micro_batches=8,  # ours: 4 sequences at once
            checkpoint_every_steps=10,  # paper
            checkpoints_to_keep=7,  # ours: all, so that validation can choose among them
            preflight_problems=32,  # ours: one batch of sampling
            validate_every_steps=10,  # ours: at each checkpoint
            sample_texts_every_steps=10,  # ours
            max_empty_steps=5,  # ours
            allow_changed_inputs=False,  # ours
        ),
        evaluation=EvaluationConfig(
            num_samples=12,  # paper
            num_validation_samples=4,  # ours
            temperature=1.0,  # inherited
            top_k=0,  # inherited
            top_p=0.95,  # inherited: its value for a thinking solver; ours does not think
            max_new_tokens=2048,  # ours: as in training
            batch_size=60,  # ours: 30 problems x 12 samples are 6 batches
            num_resamples=10_000,  # ours
            confidence=0.95,  # ours
            grading_secs=10.0,  # ours
        ),
        analysis=AnalysisConfig(
            every_steps=0,  # ours
            num_rollouts=64,  # ours
            contexts=(  # ours
                *("stepalign", "refsol", "no_context", "other_problem"),
                *("critique_full", "critique_omit"),
            ),
            batch_size=8,  # ours
        ),
        parallel=ParallelConfig(
            data=-1,  # ours
            fsdp=1,  # ours: the weights fit on every device
            tensor=1,  # ours
        ),
        hosts=HostsConfig(
            checkpoints_dir="",  # ours
            heartbeat_timeout_secs=90.0,  # ours
            progress_timeout_secs=1800.0,  # ours: every program compiles in less
        ),
    )
