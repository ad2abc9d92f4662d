# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what is read and written, bit for bit. Refusals: test_weights_refusals.py."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.checkpoint_files import (
    HF,
    KERNEL,
    TIED_HF,
    save_model,
    write,
    write_sharded,
)
from support.goldens import CASES, case_tokens, random_tensors, torch_logits
from support.models import assert_same_bits
from support.runs import output_on_devices

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.huggingface.config import config_from_hf, read_sizes
from stepalign_jax.huggingface.names import tensor_places
from stepalign_jax.huggingface.safetensors_files import read_tensor, tensor_entries
from stepalign_jax.huggingface.weights import load_model, load_params
from stepalign_jax.model.qwen3 import abstract_params
from stepalign_jax.parallel.mesh import make_mesh, param_shardings

LARGE = 1 << 30  # of a shard: everything in one file


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return random_tensors(HF, seed=0)


def read_as(directory: str, dtype: Any) -> Any:
    config = read_sizes(Path(directory))
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    shardings = param_shardings(mesh, abstract_params(config))
    params = load_params(Path(directory), config, dtype=dtype, shardings=shardings)
    jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding or 1 / 0, params, shardings)
    return params


def all_tensors(directory: Path) -> dict[str, np.ndarray]:
    """What the safetensors library reads from all files of a directory."""
    files = sorted(directory.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def test_kernels_are_stored_in_out_and_stacked(tensors, tmp_path):
    config, params = load_model(write(tmp_path, HF, tensors))
    assert config == config_from_hf(HF)
    kernel = params["layers"]["attention"]["k_proj"]["kernel"]
    np.testing.assert_array_equal(kernel[1], tensors[KERNEL].T)
    np.testing.assert_array_equal(params["lm_head"], tensors["lm_head.weight"])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("hf", [HF, TIED_HF], ids=["untied", "tied"])
def test_round_trip_is_bit_for_bit(hf, dtype, tmp_path):
    tensors = {name: value.astype(dtype) for name, value in random_tensors(hf, 0).items()}
    config, params = load_model(write(tmp_path / "one", hf, tensors))
    save_model(tmp_path / "two", config, params, max_shard_bytes=LARGE, overwrite=False)
    assert_same_bits(load_file(tmp_path / "two" / "model.safetensors"), tensors)
    assert load_model(str(tmp_path / "two"))[0] == config
    assert {file.name for file in (tmp_path / "two").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_shards_load_like_one_file(tensors, tmp_path):
    write_sharded(tmp_path, tensors)
    config, params = load_model(str(tmp_path))
    save_model(tmp_path / "single", config, params, max_shard_bytes=LARGE, overwrite=False)
    assert_same_bits(load_file(tmp_path / "single" / "model.safetensors"), tensors)


@pytest.mark.parametrize("max_shard_bytes", [1, 40_000])
def test_large_weights_are_written_in_numbered_shards(tensors, tmp_path, max_shard_bytes):
    config, params = load_model(write(tmp_path / "one", HF, tensors))
    target = tmp_path / "two"
    save_model(target, config, params, max_shard_bytes=max_shard_bytes, overwrite=False)
    files = sorted(target.glob("*.safetensors"))
    count = len(files)
    assert count > 1
    assert [file.name for file in files] == [
        f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
    ]
    for file in files:
        shard = load_file(file)
        assert len(shard) == 1 or sum(x.nbytes for x in shard.values()) <= max_shard_bytes
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    assert_same_bits(all_tensors(target), tensors)
    again = load_model(str(target))[1]
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_numpy_params_are_written_too(tensors, tmp_path):
    config, params = load_model(write(tmp_path / "one", HF, tensors))
    params = jax.tree.map(np.asarray, params)
    save_model(tmp_path / "two", config, params, max_shard_bytes=LARGE, overwrite=False)
    assert_same_bits(all_tensors(tmp_path / "two"), tensors)


def test_an_existing_target_is_kept_unless_told(tensors, tmp_path):
    path = write(tmp_path / "one", HF, tensors)
    config, params = load_model(path)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    with pytest.raises(UserError, match=r"one exists.*--overwrite"):
        save_model(Path(path), config, doubled, max_shard_bytes=LARGE, overwrite=False)
    assert_same_bits(all_tensors(Path(path)), tensors)
    save_model(Path(path), config, doubled, max_shard_bytes=40_000, overwrite=True)
    assert not (tmp_path / "one" / "model.safetensors").exists()  # no leftovers
    assert_same_bits(all_tensors(Path(path)), {name: 2 * x for name, x in tensors.items()})


def test_save_refuses_params_of_another_config(tensors, tmp_path):
    config, params = load_model(write(tmp_path, HF, tensors))
    del params["lm_head"]
    with pytest.raises(ValueError, match="names and shapes"):
        save_model(tmp_path / "out", config, params, max_shard_bytes=LARGE, overwrite=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("source", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_every_leaf_is_cast_once_to_the_nearest(source, target, tmp_path):
    tensors = {name: value.astype(source) for name, value in random_tensors(HF, 0).items()}
    params = read_as(write(tmp_path, HF, tensors), target)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(target)}
    kernel = np.asarray(params["layers"]["attention"]["k_proj"]["kernel"][1])
    np.testing.assert_array_equal(kernel, tensors[KERNEL].T.astype(target))


def test_a_given_dtype_joins_what_the_files_mix(tensors, tmp_path):
    tensors[KERNEL] = tensors[KERNEL].astype(np.float16)
    params = read_as(write(tmp_path, HF, tensors), jnp.float32)
    kernel = np.asarray(params["layers"]["attention"]["k_proj"]["kernel"][1])
    np.testing.assert_array_equal(kernel, tensors[KERNEL].T.astype(np.float32))


def test_tied_checkpoint_may_repeat_the_head(tmp_path):
    tensors = random_tensors(TIED_HF, 0)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    _, params = load_model(write(tmp_path, TIED_HF, tensors))
    assert "lm_head" not in params


@pytest.mark.parametrize("transpose", [False, True])
def test_a_part_of_a_tensor_is_read_alone(tmp_path, transpose):
    whole = np.arange(300 * 7, dtype=np.float32).reshape(300, 7)
    write(tmp_path, {}, {"x": whole, "y": whole[:, 0].copy()})
    entries = tensor_entries(tmp_path)
    for rows in (slice(0, 300), slice(63, 65), slice(130, 299)):
        for columns in (slice(0, 7), slice(2, 3), slice(5, 7)):
            part = read_tensor(
                entries["x"], (rows, columns), dtype=np.float32, transpose=transpose
            )
            expected = whole[rows, columns]
            np.testing.assert_array_equal(part, expected.T if transpose else expected)
        part = read_tensor(entries["y"], (rows,), dtype=np.float32, transpose=False)
        np.testing.assert_array_equal(part, whole[rows, 0])


def test_the_biases_of_a_qwen2_are_read_and_written(tmp_path):
    hf = TIED_HF | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(place.file_shape).astype(np.float32)
        for name, place in tensor_places(config_from_hf(hf)).items()
    }
    bias = "model.layers.1.self_attn.k_proj.bias"
    config, params = load_model(write(tmp_path / "one", hf, tensors))
    read = params["layers"]["attention"]["k_proj"]["bias"][1]
    np.testing.assert_array_equal(read, tensors[bias])
    save_model(tmp_path / "two", config, params, max_shard_bytes=LARGE, overwrite=False)
    assert_same_bits(all_tensors(tmp_path / "two"), tensors)


def test_eight_devices_hold_the_same_weights(tensors, tmp_path):
    write_sharded(tmp_path, tensors)
    code = f"""
        from pathlib import Path
        import jax, numpy as np
        from stepalign_jax.config.schema import ParallelConfig
        from stepalign_jax.model.qwen3 import abstract_params
        from stepalign_jax.huggingface.config import read_sizes
        from stepalign_jax.huggingface.weights import load_model, load_params
        from stepalign_jax.huggingface.weights import write_model
        from stepalign_jax.parallel.mesh import make_mesh, param_shardings

        directory = Path({str(tmp_path)!r})
        config = read_sizes(directory)
        mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
        shardings = param_shardings(mesh, abstract_params(config))
        params = load_params(directory, config, dtype=None, shardings=shardings)
        cut = params["layers"]["mlp"]["down_proj"]["kernel"]
        assert cut.sharding == shardings["layers"]["mlp"]["down_proj"]["kernel"]
        assert cut.addressable_shards[0].data.size * 4 == cut.size
        jax.tree.map(np.testing.assert_array_equal, params, load_model(str(directory))[1])
        (directory / "out").mkdir()
        write_model(directory / "out", config, params, max_shard_bytes=40_000)
    """
    output_on_devices(code, num_devices=8)
    assert_same_bits(all_tensors(tmp_path / "out"), tensors)


@pytest.mark.slow
@pytest.mark.parametrize("max_shard_bytes", [LARGE, 40_000], ids=["single", "sharded"])
@pytest.mark.parametrize("hf", [HF, TIED_HF], ids=["untied", "tied"])
def test_transformers_reads_what_we_write_and_we_read_what_it_writes(
    hf, max_shard_bytes, tmp_path
):
    pytest.importorskip("torch")
    from support.goldens import torch_model
    from transformers import Qwen3ForCausalLM

    tensors = random_tensors(hf, 0)
    theirs = torch_model(hf, tensors)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_bytes)
    config, params = load_model(str(tmp_path / "theirs"))
    assert config == config_from_hf(hf)
    save_model(
        tmp_path / "ours", config, params, max_shard_bytes=max_shard_bytes, overwrite=False
    )
    assert_same_bits(all_tensors(tmp_path / "ours"), tensors)
    again = Qwen3ForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    case = {**CASES["tied_ratio2"], "hf": hf}
    assert case_tokens(case).max() < hf["vocab_size"]
    np.testing.assert_array_equal(torch_logits(again.eval(), case), torch_logits(theirs, case))
