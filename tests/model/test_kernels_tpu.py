# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Splash attention as the TPU compiler takes it: on a mesh, with a gradient, without scores."""

import dataclasses
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from sampling.test_decode_tpu import CONFIG

from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.model.qwen3 import Qwen3
from stepalign_jax.parallel.mesh import make_mesh, use_mesh
from stepalign_jax.training.programs import abstract_base, abstract_sequences
from stepalign_jax.training.scoring import hidden_states

pytestmark = pytest.mark.slow
# Half the words: the head is not what is looked at.
SIZES, WIDTH = dataclasses.replace(CONFIG, vocab_size=75_968), 4_096


def compiled(kernel: str, devices: Any) -> Any:
    """The gradient of a sum of hidden states by all weights."""
    mesh = make_mesh(ParallelConfig(data=4, fsdp=1, tensor=2), devices)
    model = Qwen3(SIZES, jnp.bfloat16, remat="full", kernel=kernel)

    def loss(params: Any, sequences: Any) -> jax.Array:
        return jnp.sum(hidden_states(model, {"params": params}, sequences).astype(jnp.float32))

    with use_mesh(mesh):
        base = abstract_base(mesh, SIZES, jnp.bfloat16)
        sequences = abstract_sequences(mesh, rows=4, width=WIDTH, num_tokens=64)
        return jax.jit(jax.grad(loss)).lower(base, sequences).compile()


def test_scores_are_never_held_and_nothing_is_gathered():
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    by_xla, by_splash = (compiled(kernel, found.devices) for kernel in ("xla", "splash"))
    memory = [c.memory_analysis().temp_size_in_bytes for c in (by_xla, by_splash)]
    # XLA holds the scores of a quarter of the queries, of 8 heads: 8 x 1,024 x 4,096 floats.
    assert memory[0] - memory[1] > 8 * 1_024 * WIDTH * 4
    text = by_splash.as_text()
    # Forward, forward again for the gradient, dq, dk and dv; the layers are one loop's body.
    assert text.count('custom_call_target="tpu_custom_call"') == 4
    assert 'custom_call_target="tpu_custom_call"' not in by_xla.as_text()
    # A device's rows and heads stay its own: q is [1, 8 of 16 heads, 4096, 128] there.
    assert not re.search(r"bf16\[[\d,]*4096,128\]\S* all-gather", text)
