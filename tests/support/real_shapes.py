# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Stages of test_real_shapes.py, each a process of its own so that its memory is its own.

    python tests/real_shapes.py write DIRECTORY             # transformers makes fp32 and bf16
    python tests/real_shapes.py load CHECKPOINT SAVED DTYPE # our loader, and what it took
    python tests/real_shapes.py generate CHECKPOINT         # our engine's greedy tokens

Each prints one line of JSON last.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

NUM_TOKENS = 16
PROMPTS = [[11, 2, 37, 400, 5, 77, 1000, 50000], [9, 8, 700, 151000, 6, 5, 42, 4]]
# Wide enough that the best two logits lie apart: the test asserts by how much.
INIT_STD = 0.05


def write(directory: Path) -> dict[str, Any]:
    """A random Qwen3-0.6B in fp32 (one file) and in bf16 (shards), and its greedy tokens."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        tie_word_embeddings=True,
        max_position_embeddings=40960,
        rope_theta=1e6,
        initializer_range=INIT_STD,
    )
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    model = Qwen3ForCausalLM(config).eval()
    out = model.generate(
        torch.tensor(PROMPTS),
        attention_mask=torch.ones(2, len(PROMPTS[0]), dtype=torch.long),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.stack(out.logits).topk(2).values
    model.save_pretrained(directory / "fp32")
    model.to(torch.bfloat16).save_pretrained(directory / "bf16", max_shard_size="300MB")
    return {
        "tokens": out.sequences[:, len(PROMPTS[0]) :].tolist(),
        "margin": (best[..., 0] - best[..., 1]).min().item(),
    }


def load(checkpoint: Path, saved: Path, dtype: str) -> dict[str, Any]:
    """Loads and saves; bytes of memory at the peak of each, above what was there before."""
    import jax
    import jax.numpy as jnp
    from support.checkpoint_files import save_model

    from stepalign_jax.config.schema import ParallelConfig
    from stepalign_jax.huggingface.config import read_sizes
    from stepalign_jax.huggingface.weights import load_params
    from stepalign_jax.model.qwen3 import abstract_params
    from stepalign_jax.parallel.mesh import make_mesh, param_shardings

    config = read_sizes(checkpoint)
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    shardings = param_shardings(mesh, abstract_params(config))
    as_dtype = None if dtype == "as-saved" else jnp.dtype(dtype)
    before = restart_peak()
    start = time.monotonic()
    params = load_params(checkpoint, config, dtype=as_dtype, shardings=shardings)
    load_secs = time.monotonic() - start
    load_peak = status("VmHWM") - before
    before = restart_peak()
    save_model(saved, config, params, max_shard_bytes=10**9, overwrite=True)
    return {
        "final": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "embedding": params["embedding"].nbytes,
        "load_peak": load_peak,
        "load_secs": load_secs,
        "save_peak": status("VmHWM") - before,
    }


def generate(checkpoint: Path) -> dict[str, Any]:
    """Greedy tokens in fp32, through the engine."""
    import jax.numpy as jnp
    import numpy as np

    from stepalign_jax.huggingface.weights import load_model
    from stepalign_jax.sampling.engine import Engine
    from stepalign_jax.sampling.request import Address, SamplingParams, make_requests

    config, params = load_model(str(checkpoint))
    greedy = SamplingParams(0.0, 0, 1.0, NUM_TOKENS, ())
    engine = Engine(config, jnp.float32, None, (config.vocab_size - 1,), config.vocab_size - 1)
    requests = make_requests(PROMPTS, [Address(0, 0, 0, 0, 0, 0)] * 2, greedy)
    rollouts = engine.sample({"params": params}, requests, batch_size=2)
    return {"tokens": np.asarray(rollouts.tokens).tolist()}


def status(key: str) -> int:
    """Bytes that /proc says of this process: VmRSS now, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def restart_peak() -> int:
    """Makes VmHWM start from the present memory, which it returns."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def main() -> None:
    stage, *arguments = sys.argv[1:]
    if stage == "load":
        checkpoint, saved, dtype = arguments
        result = load(Path(checkpoint), Path(saved), dtype)
    else:
        result = {"write": write, "generate": generate}[stage](Path(arguments[0]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
