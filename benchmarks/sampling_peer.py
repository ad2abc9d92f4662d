# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""One sampler in a process of its own: loads a checkpoint, then completes on demand.

    python -m benchmarks.sampling_peer transformers-float32 DIRECTORY 64 128

Writes `ready` once it has completed a batch (compilation), and then, for each line on stdin,
the seconds that 8 prompts of 64 tokens took to complete with 128 more, greedily.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

BATCH = 8


def prompts(length: int) -> np.ndarray:
    """[BATCH, length] token ids, the same in every process."""
    return np.random.default_rng(0).integers(0, 100_000, (BATCH, length))


def ours(directory: Path, prompt_length: int, new_tokens: int) -> Callable[[], object]:
    """This package's engine, its weights prepared as a run of `generate` does."""
    import jax.numpy as jnp

    from stepalign_jax.huggingface.weights import load_model
    from stepalign_jax.sampling.engine import Engine
    from stepalign_jax.sampling.request import Address, SamplingParams, make_requests

    config, params = load_model(str(directory))
    engine = Engine(config, jnp.float32, None, (config.vocab_size,), 0)
    prepared = engine.prepare({"params": params})
    del params
    greedy = SamplingParams(0.0, 0, 1.0, new_tokens, ())
    addresses = [Address(0, 0, 0, 0, 0, 0)] * BATCH  # of noise that greedy decoding ignores
    requests = make_requests(prompts(prompt_length).tolist(), addresses, greedy)
    return lambda: engine.sample(prepared, requests, batch_size=BATCH)


def transformers(dtype: str, compiled: bool) -> Callable[..., Callable[[], object]]:
    """`generate` with its cache, which takes logits of the last position only."""

    def make(directory: Path, prompt_length: int, new_tokens: int) -> Callable[[], object]:
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        cache = {"cache_implementation": "static"} if compiled else {}
        if compiled:
            model.forward = torch.compile(model.forward)
        ids = torch.from_numpy(prompts(prompt_length))
        options = dict(
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            **cache,
        )
        return torch.inference_mode()(lambda: model.generate(ids, **options))

    return make


def tunix(directory: Path, prompt_length: int, new_tokens: int) -> Callable[[], object]:
    """Tunix's own ("vanilla") sampler."""
    import jax
    import jax.numpy as jnp
    from tunix.generate.sampler import CacheConfig, Sampler  # pyright: ignore[reportMissingImports]
    from tunix.models.qwen3 import model as qwen3  # pyright: ignore[reportMissingImports]
    from tunix.models.qwen3 import params  # pyright: ignore[reportMissingImports]

    config = qwen3.ModelConfig.qwen3_0p6b()
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=auto)
    model = params.create_model_from_safe_tensors(str(directory), config, mesh, jnp.float32)
    tokenizer: Any = SimpleNamespace(
        encode=lambda text, **_: prompts(prompt_length)[int(text)].tolist(),
        decode=lambda ids, **_: "",
        bos_id=lambda: None,
        eos_id=lambda: config.vocab_size,
        pad_id=lambda: 100_001,
        dedup_bos_ids=lambda ids: ids,
    )
    cache = CacheConfig(
        cache_size=prompt_length + new_tokens + 8,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )
    sampler = Sampler(model, tokenizer, cache)
    texts = [str(row) for row in range(BATCH)]
    return lambda: sampler(
        texts, max_generation_steps=new_tokens, max_prompt_length=prompt_length
    )


SAMPLERS: dict[str, Callable[[Path, int, int], Callable[[], object]]] = {
    "ours": ours,
    "transformers-float32": transformers("float32", compiled=False),
    "transformers-float32-compiled": transformers("float32", compiled=True),
    "transformers-bfloat16": transformers("bfloat16", compiled=False),
    "transformers-bfloat16-compiled": transformers("bfloat16", compiled=True),
    "tunix": tunix,
}


def main(name: str, directory: str, prompt_length: str, new_tokens: str) -> None:
    """Answers each line of stdin with the seconds of one batch."""
    run = SAMPLERS[name](Path(directory), int(prompt_length), int(new_tokens))
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
