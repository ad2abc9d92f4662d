# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the round trip bit for bit, and a refusal by name for all that does not fit."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from make_goldens import CASES, case_tokens, random_tensors, torch_logits
from safetensors.numpy import load_file, save_file

from stepalign_jax.base.errors import UserError
from stepalign_jax.model.qwen3 import Qwen3Config
from stepalign_jax.model.weights import load_model, resolve_checkpoint, save_model

HF = CASES["untied_ratio4"]["hf"]
TIED_HF = CASES["tied_ratio2"]["hf"]
KERNEL = "model.layers.1.self_attn.k_proj.weight"


def write(directory: Path, hf: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(hf))
    save_file(tensors, directory / "model.safetensors")
    return str(directory)


def write_sharded(directory: Path, tensors: dict[str, np.ndarray]) -> dict[str, str]:
    """Two shards and their index; returns the weight map."""
    (directory / "config.json").write_text(json.dumps(HF))
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, directory / file)
    weight_map = {name: file for file, members in parts.items() for name in members}
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def assert_same_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return random_tensors(HF, seed=0)


def test_kernels_are_stored_in_out_and_stacked(tensors, tmp_path):
    config, params = load_model(write(tmp_path, HF, tensors))
    assert config == Qwen3Config.from_hf(HF)
    kernel = params["layers"]["attention"]["k_proj"]["kernel"]
    np.testing.assert_array_equal(kernel[1], tensors[KERNEL].T)
    np.testing.assert_array_equal(params["lm_head"], tensors["lm_head.weight"])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("hf", [HF, TIED_HF], ids=["untied", "tied"])
def test_round_trip_is_bit_for_bit(hf, dtype, tmp_path):
    tensors = {name: value.astype(dtype) for name, value in random_tensors(hf, 0).items()}
    config, params = load_model(write(tmp_path / "one", hf, tensors))
    save_model(tmp_path / "two", config, params)
    assert_same_bits(load_file(tmp_path / "two" / "model.safetensors"), tensors)
    assert load_model(str(tmp_path / "two"))[0] == config
    assert {file.name for file in (tmp_path / "two").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_shards_load_like_one_file(tensors, tmp_path):
    write_sharded(tmp_path, tensors)
    config, params = load_model(str(tmp_path))
    save_model(tmp_path / "single", config, params)
    assert_same_bits(load_file(tmp_path / "single" / "model.safetensors"), tensors)


def test_missing_and_leftover_tensors_are_named(tensors, tmp_path):
    del tensors[KERNEL]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(UserError) as error:
        load_model(write(tmp_path, HF, tensors))
    assert f"lack {KERNEL}" in str(error.value)
    assert "hold model.layers.2.mlp.up_proj.weight" in str(error.value)


def test_many_missing_tensors_are_counted(tensors, tmp_path):
    with pytest.raises(UserError, match=r"lm_head\.weight.* and \d+ more"):
        load_model(write(tmp_path, HF, {"model.norm.weight": tensors["model.norm.weight"]}))


def test_a_misshapen_tensor_is_named_with_both_shapes(tensors, tmp_path):
    tensors[KERNEL] = np.ascontiguousarray(tensors[KERNEL].T)
    with pytest.raises(UserError, match=rf"{KERNEL} has shape \[64, 24\] .* \[24, 64\]"):
        load_model(write(tmp_path, HF, tensors))


@pytest.mark.parametrize(
    ("dtype", "named"), [(np.int8, "int8"), (np.float16, "float16, other")]
)
def test_other_and_mixed_dtypes_are_refused(tensors, tmp_path, dtype, named):
    tensors[KERNEL] = tensors[KERNEL].astype(dtype)
    with pytest.raises(UserError, match=named):
        load_model(write(tmp_path, HF, tensors))


def test_tied_checkpoint_may_repeat_the_head_but_not_change_it(tmp_path):
    tensors = random_tensors(TIED_HF, 0)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    _, params = load_model(write(tmp_path, TIED_HF, tensors))
    assert "lm_head" not in params
    tensors["lm_head.weight"][3, 5] += 1e-6
    with pytest.raises(UserError, match="tie_word_embeddings"):
        load_model(write(tmp_path, TIED_HF, tensors))


def test_untied_config_needs_a_head(tensors, tmp_path):
    del tensors["lm_head.weight"]
    with pytest.raises(UserError, match=r"lack lm_head\.weight"):
        load_model(write(tmp_path, HF, tensors))


def test_a_missing_shard_is_named(tensors, tmp_path):
    write_sharded(tmp_path, tensors)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks b\.safetensors"):
        load_model(str(tmp_path))


def test_an_index_that_disagrees_with_its_shards_is_refused(tensors, tmp_path):
    weight_map = write_sharded(tmp_path, tensors)
    write_index(
        tmp_path, weight_map | {KERNEL: "a.safetensors", "lm_head.weight": "b.safetensors"}
    )
    with pytest.raises(UserError, match=rf"disagree .*{KERNEL}"):
        load_model(str(tmp_path))
    del weight_map[KERNEL]  # a shard holds a tensor that the index does not know
    write_index(tmp_path, weight_map)
    with pytest.raises(UserError, match=rf"disagree .*{KERNEL}"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_missing_files_are_named(tensors, tmp_path, gone):
    path = write(tmp_path, HF, tensors)
    (tmp_path / gone).unlink()
    with pytest.raises(UserError, match=gone.replace(".", r"\.")):
        load_model(path)


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors"])
def test_broken_files_are_named(tensors, tmp_path, broken):
    path = write(tmp_path, HF, tensors)
    content = (tmp_path / broken).read_bytes()
    (tmp_path / broken).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=broken.replace(".", r"\.")):
        load_model(path)


def test_save_refuses_params_of_another_config(tensors, tmp_path):
    config, params = load_model(write(tmp_path, HF, tensors))
    del params["lm_head"]
    with pytest.raises(ValueError, match="names and shapes"):
        save_model(tmp_path / "out", config, params)


def test_a_hub_id_that_cannot_be_fetched_says_how_to_get_it():
    # conftest.py puts the hub client offline, so this asks nobody.
    with pytest.raises(UserError) as error:
        resolve_checkpoint("nobody/no-such-model")
    assert "hf download nobody/no-such-model" in str(error.value)
    assert "model.path" in str(error.value)


def test_a_hub_id_resolves_to_the_snapshot(monkeypatch, tmp_path):
    asked: list[Any] = []

    def snapshot(repo_id: str, *, allow_patterns: list[str], etag_timeout: float) -> str:
        asked.append((repo_id, allow_patterns, etag_timeout))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve_checkpoint("Qwen/Qwen3-0.6B") == tmp_path
    ((repo_id, patterns, timeout),) = asked
    assert repo_id == "Qwen/Qwen3-0.6B"
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in patterns)
    assert timeout <= 5


@pytest.mark.parametrize("path", ["/no/such/dir", "../x", "a/b/c", "nodir", ""])
def test_a_path_that_is_nothing_is_refused(path):
    with pytest.raises(UserError, match=r"model\.path"):
        resolve_checkpoint(path)


def test_an_unknown_packaged_name_is_refused():
    with pytest.raises(UserError, match="packaged:no_such_model is not in this package"):
        resolve_checkpoint("packaged:no_such_model")


@pytest.mark.parametrize("hf", [HF, TIED_HF], ids=["untied", "tied"])
def test_transformers_reads_what_we_write_and_we_read_what_it_writes(hf, tmp_path):
    pytest.importorskip("torch")
    from make_goldens import torch_model
    from transformers import Qwen3ForCausalLM

    tensors = random_tensors(hf, 0)
    theirs = torch_model(hf, tensors)
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = load_model(str(tmp_path / "theirs"))
    assert config == Qwen3Config.from_hf(hf)
    save_model(tmp_path / "ours", config, params)
    assert_same_bits(load_file(tmp_path / "ours" / "model.safetensors"), tensors)
    again = Qwen3ForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    case = {**CASES["tied_ratio2"], "hf": hf}
    assert case_tokens(case).max() < hf["vocab_size"]
    np.testing.assert_array_equal(torch_logits(again.eval(), case), torch_logits(theirs, case))
