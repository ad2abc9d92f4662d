# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory of published models' weights and training state, from shapes; without activations.

python -m stepalign_jax.planning.sizes        # the table of docs/checkpoints.md
"""

import math
from typing import Any, NamedTuple

import jax

from stepalign_jax.huggingface.config import config_from_hf
from stepalign_jax.model.config import PROJECTIONS, Qwen3Config
from stepalign_jax.model.lora import LoraSpec, abstract_lora
from stepalign_jax.model.qwen3 import abstract_params

BF16_BYTES = 2
# Per trained number, in fp32: the weight, its gradient and Adam's two moments.
TRAINED_BYTES = 16

_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
# Name -> values of _KEYS.
_PUBLISHED = {
    "Qwen3-0.6B": ("qwen3", 1024, 28, 16, 8, 128, 3072, 151936, True),
    "Qwen3-1.7B": ("qwen3", 2048, 28, 16, 8, 128, 6144, 151936, True),
    "Qwen3-4B": ("qwen3", 2560, 36, 32, 8, 128, 9728, 151936, True),
    "Qwen3-8B": ("qwen3", 4096, 36, 32, 8, 128, 12288, 151936, False),
    "Qwen3-14B": ("qwen3", 5120, 40, 40, 8, 128, 17408, 151936, False),
    "Qwen3-32B": ("qwen3", 5120, 64, 64, 8, 128, 25600, 151936, False),
    "DeepSeek-R1-Distill-Qwen-1.5B": ("qwen2", 1536, 28, 12, 2, 128, 8960, 151936, False),
    "DeepSeek-R1-Distill-Qwen-7B": ("qwen2", 3584, 28, 28, 4, 128, 18944, 152064, False),
    "QwQ-32B": ("qwen2", 5120, 64, 40, 8, 128, 27648, 152064, False),
}


class StateBytes(NamedTuple):
    """Bytes over all devices together.

    Attributes:
      weights: the base in bf16.
      lora: to train an adapter: the base in bf16, which is also the teacher, and the adapter
        with its gradients and moments.
      full: to train all weights: they, their gradients and moments, and the frozen teacher,
        a second copy in bf16.
    """

    weights: int
    lora: int
    full: int


def num_parameters(config: Qwen3Config) -> int:
    """Numbers in the params; a tied head is the embedding and counts once."""
    return _size(abstract_params(config))


def state_bytes(config: Qwen3Config, lora: LoraSpec) -> StateBytes:
    """Bytes of the weights, and of the training state with `lora` or of all weights."""
    base = num_parameters(config)
    frozen = base * BF16_BYTES
    return StateBytes(
        weights=frozen,
        lora=frozen + _size(abstract_lora(config, lora)) * TRAINED_BYTES,
        full=frozen + base * TRAINED_BYTES,
    )


def published_config(name: str) -> Qwen3Config:
    """The sizes of a published checkpoint, one of `published_names`."""
    sizes = dict(zip(_KEYS, _PUBLISHED[name], strict=True))
    # Constants that no size depends on.
    constants = {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "max_position_embeddings": 40960}
    return config_from_hf({**sizes, **constants})


def published_names() -> tuple[str, ...]:
    """Names that `published_config` knows."""
    return tuple(_PUBLISHED)


def published_table(rank: int) -> str:
    """A Markdown table of `state_bytes` of the published checkpoints, in GiB.

    Args:
      rank: of an adapter on all projections.
    """
    spec = LoraSpec(rank, float(rank), tuple(PROJECTIONS))
    rows = [
        f"| checkpoint | parameters | weights, bf16 | LoRA r={rank}, state | full, state |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in _PUBLISHED:
        config = published_config(name)
        sizes = " | ".join(f"{size / 2**30:.1f} GiB" for size in state_bytes(config, spec))
        rows.append(f"| {name} | {num_parameters(config):,} | {sizes} |")
    return "\n".join(rows)


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    print(published_table(rank=64))
