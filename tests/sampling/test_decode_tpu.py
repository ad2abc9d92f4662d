# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The decode program as the TPU compiler makes it: no TPU is needed, only libtpu.

Shapes are Qwen3-0.6B's with fewer layers, which repeat.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support.collectives import copied_shapes, in_loop

from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.parallel.mesh import make_mesh, use_mesh
from stepalign_jax.planning.chips import open_topology
from stepalign_jax.sampling.decode import decode_chunk
from stepalign_jax.sampling.draw import sample_token
from stepalign_jax.sampling.programs import decode_arguments, decode_model

pytestmark = pytest.mark.slow

CONFIG = Qwen3Config(
    vocab_size=151_936,
    hidden_size=1_024,
    num_layers=2,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=3_072,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_positions=40_960,
    qkv_bias=False,
    qk_norm=True,
    yarn=None,
)
BATCH, WIDTH = 32, 2_560


def chips(topology: str) -> Any:
    pytest.importorskip("libtpu")
    devices = open_topology(topology).devices
    assert devices is not None
    return devices


def compile_decode(topology: str, **sizes: int) -> tuple[Any, Any, Any]:
    """The compiled program for a mesh of chips, and the shapes of its weights and cache."""
    parallel = ParallelConfig(**({"data": 1, "fsdp": 1, "tensor": 1} | sizes))
    mesh = make_mesh(parallel, chips(topology)[: max(sizes.values(), default=1)])
    model = decode_model(CONFIG, "bfloat16", None)
    with use_mesh(mesh):
        arguments = decode_arguments(model, mesh, num_slots=BATCH, width=WIDTH)
        return decode_chunk.lower(*arguments).compile(), arguments[1], arguments[2]


def compile_draw(topology: str) -> Any:
    """The draw of one token per slot, alone, compiled for one chip."""
    place = jax.sharding.SingleDeviceSharding(chips(topology)[0])
    key = jax.eval_shape(lambda: jax.random.key(0)).dtype
    dtypes = (key, jnp.float32, jnp.int32, jnp.float32)
    logits = jax.ShapeDtypeStruct((BATCH, CONFIG.vocab_size), jnp.bfloat16, sharding=place)
    rows = [jax.ShapeDtypeStruct((BATCH,), dtype, sharding=place) for dtype in dtypes]
    return jax.jit(sample_token).lower(logits, *rows).compile()


def num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def loop_body(text: str) -> list[str]:
    """Lines of the decode loop's body: the computation that reads the most from its tuple."""
    bodies = re.findall(r"body=%?([\w.-]+)", text)
    blocks = {name: text.split(f"\n%{name} (")[1].split("\n}")[0] for name in bodies}
    longest = max(blocks.values(), key=lambda block: block.count("get-tuple-element("))
    return longest.splitlines()


def weight_reads(lines: list[str], shape: str) -> list[float]:
    """How often each element of the loop's tuple in a chip's main memory is read in a turn.

    A weight may be fetched in slices, each of which counts for its share. Of a weight that a
    turn fetches for the next, the tuple has a second element, in the fast memory `S(1)`.
    """
    pattern = re.compile(
        rf"%([\w.-]+) = bf16\[{shape}\]\{{(?!\S*S\(1\))\S* get-tuple-element\("
    )
    names = [found.group(1) for line in lines if (found := pattern.search(line))]
    body = [line for line in lines if "get-tuple-element(" not in line and "ROOT" not in line]
    return [
        sum(_share(line, shape) for line in body if re.search(rf"%{re.escape(name)}[,)]", line))
        for name in names
    ]


def _share(line: str, shape: str) -> float:
    """The part of an operand of this shape that an operation reads."""
    bounds = re.search(r"slice=\{\[(\d+):(\d+)\]", line)
    if "slice-start(" not in line or bounds is None:
        return 1.0
    return (int(bounds.group(2)) - int(bounds.group(1))) / int(shape.split(",")[0])


@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4"])
def test_a_turn_reads_each_weight_once_and_copies_no_cache(topology):
    compiled, variables, cache = compile_decode(topology)
    # Plan and cost count every branch of the draw, also the sorts that unfiltered rows skip.
    draw = compile_draw(topology)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= num_bytes(cache)  # in place, from call to call
    # What is left is activations, logits, and q, k, v kernels in the compiler's own order.
    left = memory.temp_size_in_bytes - draw.memory_analysis().temp_size_in_bytes
    assert left < 32 * 2**20
    text = compiled.as_text()
    sizes = "|".join(",".join(map(str, leaf.shape)) for leaf in cache[0])
    assert not re.search(rf"bf16\[({sizes})\]\S* (copy|transpose)\(", text)
    lines = loop_body(text)
    layers = CONFIG.num_layers
    assert weight_reads(lines, "1024,3072") == [1.0] * 2 * layers  # gate and up
    assert weight_reads(lines, "3072,1024") == [1.0] * layers  # down
    # All that the program touches but for the draw, its loop counted once.
    touched, drawing = (p.cost_analysis()["bytes accessed"] for p in (compiled, draw))
    assert touched - drawing < 1.5 * (num_bytes(variables) + num_bytes(cache))


@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_eight_chips_send_sums_of_activations_and_gather_nothing(axis):
    """Both ways of cutting eight chips are one to sampling.

    With fsdp's slices of training left in place, every turn gathered every weight.
    """
    compiled, _, cache = compile_decode("v5e:2x4", **{axis: 8})
    text = compiled.as_text()
    turn = in_loop(text)
    sums = [shape for one in turn for shape in one.shapes if shape[-1] == CONFIG.hidden_size]
    assert len(sums) == 2 * CONFIG.num_layers + 1
    # Values and ids of top-k's candidates, in branches; the last sorts the vocabulary.
    gathers = [one for one in turn if one.kind == "all-gather"]
    weights = {CONFIG.hidden_size, CONFIG.intermediate_size}
    assert not [one for one in gathers for shape in one.shapes if weights & set(shape)]
    assert max(one.elements for one in turn if one not in gathers) <= BATCH * CONFIG.hidden_size
    local = {leaf.sharding.shard_shape(leaf.shape) for leaf in cache[0]}
    assert not local & copied_shapes(text)
