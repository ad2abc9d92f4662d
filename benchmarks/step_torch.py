# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false
"""The rival of benchmarks/step.py: the same step in PyTorch, transformers and peft.

Written as one would write it with care: no gradient through the teacher, the adapter switched
off instead of a second model, the head applied to the states that predict completion tokens
alone, attention by PyTorch's fused kernel, a fused optimizer.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from benchmarks import step_work as work
from benchmarks.measure import peak_memory_bytes, reset_peak_memory, write_json


def load(directory: Path, trainable: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Returns the solver and the frozen teacher, which under an adapter is the solver too."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="sdpa"
    )
    if trainable == "full":
        return model, copy.deepcopy(model).requires_grad_(False)
    config = peft.LoraConfig(
        r=work.RANK, lora_alpha=work.ALPHA, target_modules=list(work.TARGETS), lora_dropout=0.0
    )
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=True)  # in float32
    for layer, target, module in projections(model):
        a, b = work.adapter(layer, target, module.in_features, module.out_features)
        module.lora_A["default"].weight.data = torch.from_numpy(a.T.copy())
        module.lora_B["default"].weight.data = torch.from_numpy(b.T.copy())
    return model, model


def projections(model: Any) -> Any:
    """Yields (layer, target, module) of every projection."""
    for name, module in model.named_modules():
        parts = name.split(".")
        if parts[-1] in work.TARGETS and "layers" in parts:
            yield int(parts[parts.index("layers") + 1]), parts[-1], module


def completion_logprobs(model: Any, prompts: Any, completions: Any) -> Any:
    """Returns [B, T, V] float32 log-probabilities at the completion's tokens."""
    tokens = torch.cat([prompts, completions], dim=1)
    logits = model(
        input_ids=tokens,
        use_cache=False,
        # The states at the last prompt token and at all completion tokens but the last.
        logits_to_keep=torch.arange(prompts.shape[1] - 1, tokens.shape[1] - 1),
    ).logits
    return F.log_softmax(logits.float(), dim=-1)


def make_step(model: Any, teacher: Any, trainable: str, compiled: bool) -> Callable[[], float]:
    """Returns a function that takes one step and returns its loss."""
    solver_prompts, teacher_prompts, completions = map(
        torch.from_numpy, work.prompts_and_completions()
    )
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learning,
        lr=work.LEARNING_RATE,
        betas=(work.B1, work.B2),
        eps=1e-8,
        weight_decay=0.0,
        fused=True,
    )
    score = torch.compile(completion_logprobs) if compiled else completion_logprobs

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            if trainable == "lora":
                with model.disable_adapter():
                    expected = score(model, teacher_prompts, completions)
            else:
                expected = score(teacher, teacher_prompts, completions)
        found = score(model, solver_prompts, completions)
        loss = F.kl_div(found, expected, reduction="sum", log_target=True) / completions.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, work.CLIP)
        optimizer.step()
        return loss.item()

    return step


def gradients(model: Any, trainable: str) -> dict[str, np.ndarray]:
    """Returns the gradients that are compared, [in, out] like ours."""
    found = {}
    for layer, target, module in projections(model):
        if layer not in work.CHECKED_LAYERS or target not in work.CHECKED_TARGETS:
            continue
        if trainable == "full":
            weights = {"kernel": module.weight}
        else:
            weights = {
                "a": module.lora_A["default"].weight,
                "b": module.lora_B["default"].weight,
            }
        for name, weight in weights.items():
            found[f"{layer}.{target}.{name}"] = weight.grad.float().T.numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--trainable", choices=("lora", "full"), required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    dtype = getattr(torch, arguments.dtype)
    model, teacher = load(arguments.model, arguments.trainable, dtype)
    step = make_step(model, teacher, arguments.trainable, arguments.compiled)
    started = time.perf_counter()
    loss = step()
    first = time.perf_counter() - started
    np.savez(arguments.to.with_suffix(".npz"), **gradients(model, arguments.trainable))
    step()  # memory is touched for the first time
    reset_peak_memory()
    seconds = []
    for _ in range(arguments.steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    found = {"loss": loss, "first": first, "seconds": seconds, "peak": peak_memory_bytes()}
    x = torch.ones((work.PRODUCT_ROWS, work.PRODUCT_INPUTS), dtype=dtype)
    weight = torch.ones((work.PRODUCT_INPUTS, work.PRODUCT_OUTPUTS), dtype=dtype)
    found["product_flops_per_second"] = work.product_flops_per_second(lambda: x @ weight)
    write_json(arguments.to, found)


if __name__ == "__main__":
    main()
