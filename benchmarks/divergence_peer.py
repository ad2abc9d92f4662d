# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Forward KL in PyTorch, in a process of its own that waits for its turns.

Reads a candidate's name per line and answers with JSON: seconds, peak memory beyond what the
process held before, the sum of the divergences, and the norm of its gradient.
"""

import functools
import json
import sys
import time

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks.measure import peak_memory_bytes, reset_peak_memory


def dense(
    hidden: torch.Tensor, teacher: torch.Tensor, head: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Sum of KL(teacher || solver), every logit at once; softmax and sums in float32."""
    solver = torch.log_softmax((hidden @ head.T).float() / temperature, dim=-1)
    with torch.no_grad():
        teacher = torch.log_softmax((teacher @ head.T).float() / temperature, dim=-1)
    return (teacher.exp() * (teacher - solver)).sum()


def step(loss, tile: int, hidden: torch.Tensor, teacher: torch.Tensor, head: torch.Tensor):
    """Loss and its gradient by the hidden states, `tile` tokens at a time."""
    total, gradients = 0.0, []
    for rows, others in zip(hidden.split(tile), teacher.split(tile), strict=True):
        rows = rows.detach().requires_grad_()
        value = loss(rows, others, head)
        value.backward()
        total, gradients = total + float(value.detach()), [*gradients, rows.grad]
    return total, torch.cat(gradients)


def main(path: str, temperature: float, tile: int) -> None:
    arrays = [torch.from_numpy(array) for array in np.load(path, mmap_mode=None).values()]
    low = [array.bfloat16() for array in arrays]
    loss = functools.partial(dense, temperature=temperature)
    everything = len(arrays[0])
    candidates = {
        "PyTorch dense fp32": (loss, everything, arrays),
        "PyTorch dense fp32, compiled": (torch.compile(loss), everything, arrays),
        "PyTorch chunked fp32": (loss, tile, arrays),
        "PyTorch dense bf16": (loss, everything, low),
        "PyTorch dense bf16, compiled": (torch.compile(loss), everything, low),
        "PyTorch chunked bf16": (loss, tile, low),
        "PyTorch chunked bf16, compiled": (torch.compile(loss), tile, low),
    }
    print(json.dumps([*candidates, torch.__version__]), flush=True)
    for line in sys.stdin:
        run, size, inputs = candidates[line.strip()]
        reset_peak_memory()
        before, started = peak_memory_bytes(), time.perf_counter()
        total, gradient = step(run, size, *inputs)
        answer = {
            "seconds": time.perf_counter() - started,
            "peak_bytes": peak_memory_bytes() - before - gradient.nbytes,
            "loss": total,
            "gradient_norm": float(gradient.float().norm()),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
