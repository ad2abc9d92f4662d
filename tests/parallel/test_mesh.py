# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The mesh: sizes that fit, shardings from the one table, and the same numbers on 8 devices."""

import dataclasses

import jax
import pytest
from jax.sharding import PartitionSpec
from support.models import CONFIG
from support.runs import output_on_devices

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.model.lora import LoraSpec, abstract_lora
from stepalign_jax.model.qwen3 import abstract_params
from stepalign_jax.parallel.mesh import (
    RULES,
    batch_sharding,
    check_heads,
    make_mesh,
    param_shardings,
)

ONE = jax.devices()[:1]


def parallel(data: int, fsdp: int, tensor: int) -> ParallelConfig:
    return ParallelConfig(data=data, fsdp=fsdp, tensor=tensor)


def test_minus_one_takes_the_devices_that_are_left():
    mesh = make_mesh(parallel(-1, 1, 1), devices=ONE)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    # Sizes alone are asked of the devices here, so any eight objects do.
    eight = make_mesh(parallel(2, -1, 2), devices=ONE * 8)
    assert dict(eight.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("sizes", "devices"),
    [((2, 1, 1), 1), ((-1, 3, 1), 8), ((2, 2, 1), 8)],
)
def test_sizes_that_do_not_fit_are_refused(sizes, devices):
    with pytest.raises(UserError, match="parallel asks for"):
        make_mesh(parallel(*sizes), devices=ONE * devices)


def test_every_logical_axis_of_a_weight_is_in_the_table():
    boxed = [abstract_params(CONFIG), abstract_lora(CONFIG, LoraSpec(2, 2.0, ("q_proj",)))]
    is_boxed = lambda leaf: hasattr(leaf, "names")  # noqa: E731
    leaves = jax.tree.leaves(boxed, is_leaf=is_boxed)
    names = {name for leaf in leaves for name in leaf.names}
    assert all(is_boxed(leaf) for leaf in leaves)
    assert names <= dict(RULES).keys()


def test_param_shardings_follow_the_table():
    shardings = param_shardings(
        make_mesh(parallel(1, 1, 1), devices=ONE), abstract_params(CONFIG)
    )
    assert shardings["embedding"].spec == PartitionSpec("tensor", "fsdp")
    layers = shardings["layers"]
    assert layers["attention"]["q_proj"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert layers["mlp"]["down_proj"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert layers["mlp_norm"]["scale"].spec == PartitionSpec(None, None)


def test_biases_are_cut_like_the_outputs_of_their_kernels():
    biased = dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=False)
    boxed = abstract_params(biased)["layers"]["attention"]
    shardings = param_shardings(make_mesh(parallel(1, 1, 1), devices=ONE), boxed)
    for name, heads in {"q_proj": "heads", "k_proj": "kv_heads", "v_proj": "kv_heads"}.items():
        assert boxed[name]["bias"].names == ("layers", heads)
        assert shardings[name]["bias"].spec == PartitionSpec(None, "tensor")
    assert set(boxed) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert set(boxed["o_proj"]) == {"kernel"}


def test_an_axis_that_does_not_divide_is_refused_by_name():
    mesh = make_mesh(parallel(1, 1, 3), devices=ONE * 3)
    with pytest.raises(UserError, match=r"parallel\.tensor = 3 .* embedding \[50, 32\]"):
        param_shardings(mesh, abstract_params(CONFIG))
    with pytest.raises(UserError, match=r"^critic\.tensor = 3 does not divide"):
        param_shardings(mesh, abstract_params(CONFIG), section="critic")


@pytest.mark.parametrize(("tensor", "named"), [(4, "2 key heads"), (3, "4 query heads")])
def test_a_mesh_that_cuts_a_head_is_refused(tensor: int, named: str):
    mesh = make_mesh(parallel(1, 1, tensor), devices=ONE * tensor)
    with pytest.raises(UserError, match=rf"^parallel\.tensor = {tensor} does not .* {named}:"):
        check_heads(mesh, heads=4, kv_heads=2)
    check_heads(make_mesh(parallel(1, 1, 2), devices=ONE * 2), heads=4, kv_heads=2)


def test_batch_sharding_cuts_the_batch_by_both_axes():
    mesh = make_mesh(parallel(1, 1, 1), devices=ONE)
    assert batch_sharding(mesh, 2).spec == PartitionSpec(("data", "fsdp"), None)


# A process of its own imports this module too.
EIGHT_DEVICES = """
    import jax, jax.numpy as jnp, numpy as np
    from parallel.test_mesh import CONFIG, parallel
    from stepalign_jax.model.lora import LoraSpec, abstract_lora, init_lora
    from stepalign_jax.model.qwen3 import Qwen3, abstract_params, init_params
    from stepalign_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings, use_mesh

    spec = LoraSpec(2, 2.0, ("q_proj", "down_proj"))
    tokens = np.arange(48, dtype=np.int32).reshape(8, 6) % CONFIG.vocab_size
    model = Qwen3(CONFIG, jnp.float32, lora=spec)

    def loss(variables, tokens):
        hidden, _ = model.apply(variables, tokens)
        return jnp.mean(model.apply(variables, hidden, method="logits") ** 2), hidden

    mesh = make_mesh(parallel(2, 2, -1))
    with use_mesh(mesh):
        variables = {
            "params": init_params(CONFIG, jax.random.key(0)),
            "lora": jax.tree.map(lambda x: x + 0.1, init_lora(CONFIG, spec, jax.random.key(1))),
        }
        variables = jax.tree.map(np.asarray, variables)
        abstract = {"params": abstract_params(CONFIG), "lora": abstract_lora(CONFIG, spec)}
        sharded = jax.device_put(variables, param_shardings(mesh, abstract))
        placed = jax.device_put(tokens, batch_sharding(mesh, 2))
        many = jax.jit(jax.value_and_grad(loss, has_aux=True))(sharded, placed)
    kernel = sharded["params"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 24), kernel.sharding
    (_, hidden), _ = many
    assert hidden.addressable_shards[0].data.shape == (2, 6, 32), hidden.sharding
    single = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables, tokens)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, many, single)
    print("equal on", len(jax.devices()), "devices")
"""


@pytest.mark.long
def test_eight_devices_give_the_numbers_of_one():
    assert output_on_devices(EIGHT_DEVICES, num_devices=8) == "equal on 8 devices"
