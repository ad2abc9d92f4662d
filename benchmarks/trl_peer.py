# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false
"""TRL's nearest trainer on the problems of benchmarks/trl_step.py: self-distillation (SDFT).

    .venv-trl/bin/python -m benchmarks.trl_peer WORK.json RESULT.json

WORK.json has model, problems (with prompt, context), new_tokens, num_steps, rank, alpha,
learning_rate, temperature. The teacher is the base, as ours, and reads a text in the place of
a critique, for SDFT has no critic. Forward KL over the whole vocabulary. Writes the seconds of
each step, and the tokens sampled in it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

# SDFT puts the whole prompt first.
TEACHER = """{prompt}

A solution to lean on:
--- begin ---
{privileged_context}
--- end ---

Make sure that you understand every move of it. Then solve the problem yourself, keeping
to its ideas."""


def run(work: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Trains, and returns seconds and sampled tokens of each step."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += time.perf_counter()

    user = lambda text: [{"role": "user", "content": text}]  # noqa: E731
    rows = [
        {"prompt": user(problem["prompt"]), "privileged_context": problem["context"]}
        for problem in work["problems"]
    ]
    config = SDFTConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=len(rows),
        gradient_accumulation_steps=1,
        num_generations=1,
        max_steps=work["num_steps"],
        max_prompt_length=None,
        max_completion_length=work["new_tokens"],
        generation_kwargs={"min_new_tokens": work["new_tokens"]},
        temperature=work["temperature"],
        top_k=0,
        top_p=1.0,
        teacher_prompt_template=TEACHER,
        distillation_mode="full_logits",
        distillation_alpha=0.0,
        distillation_is_clip=None,
        learning_rate=work["learning_rate"],
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        model_init_kwargs={"dtype": "float32"},
    )
    adapter = LoraConfig(
        r=work["rank"], lora_alpha=work["alpha"], target_modules="all-linear", lora_dropout=0.0
    )
    trainer = SDFTTrainer(
        model=work["model"],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(work["model"]),
        peft_config=adapter,
        callbacks=[Clock()],
    )
    trainer.train()
    tokens = len(rows) * work["new_tokens"]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"seconds": seconds, "tokens": [tokens] * len(seconds), "losses": losses}


def main(work: str, to: str) -> None:
    found = run(json.loads(Path(work).read_text("utf-8")), Path(to).parent / "trl")
    Path(to).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
