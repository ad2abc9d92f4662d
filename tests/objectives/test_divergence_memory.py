# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory of the divergence at full size, by the compilers' own accounts; nothing is run."""

import jax
import jax.numpy as jnp
import pytest
from support.float64 import make_divergence
from support.runs import output_with_tpu_compiler

from stepalign_jax.objectives.tiled_divergence import tiled_divergence

VOCAB, WIDTH, GIB = 151_936, 2048, 2**30


def temporaries(num_tokens: int, token_tile: int, dtype: jnp.dtype, **placing: object) -> int:
    """Bytes beyond inputs and results of one forward and backward pass, the head frozen."""
    shape = lambda *sizes, dtype=dtype: jax.ShapeDtypeStruct(sizes, dtype, **placing)  # noqa: E731

    @jax.value_and_grad
    def step(hidden, teacher, head, tokens, weights):
        return tiled_divergence(
            hidden,
            teacher,
            head,
            None,
            tokens,
            token_weights=weights,
            divergence=make_divergence("forward_kl", token_tile=token_tile),
            mesh=None,
        )[0]

    rows = shape(num_tokens, WIDTH)
    numbers = [shape(num_tokens, dtype=kind) for kind in (jnp.int32, jnp.float32)]
    compiled = jax.jit(step).lower(rows, rows, shape(VOCAB, WIDTH), *numbers).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_on_a_cpu_memory_is_under_a_gib_and_flat_in_the_number_of_tokens():
    fewer, more = (temporaries(tokens, 128, jnp.float32) for tokens in (8192, 16384))
    assert fewer <= GIB
    assert more - fewer <= 2**20  # a number or two per token, but no row of hidden states


ON_A_TPU = """
    import jax, jax.numpy as jnp
    from jax.experimental import topologies
    from objectives.test_divergence_memory import temporaries

    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    place = jax.sharding.SingleDeviceSharding(chips.devices[0])
    print(*(temporaries(n, 256, jnp.bfloat16, sharding=place) for n in (8192, 16384)))
"""


@pytest.mark.slow
def test_the_tpu_compiler_plans_under_a_gib_and_flat_in_the_number_of_tokens():
    pytest.importorskip("libtpu")
    fewer, more = map(int, output_with_tpu_compiler(ON_A_TPU).split())
    assert fewer <= GIB
    assert more - fewer <= 2**20
