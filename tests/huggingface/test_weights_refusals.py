# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that do not fit are refused in one sentence that names file and tensor."""

import json
import struct
from pathlib import Path
from typing import Any

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.checkpoint_files import (
    HF,
    INDEX,
    KERNEL,
    TIED_HF,
    write,
    write_index,
    write_sharded,
)
from support.goldens import random_tensors

from stepalign_jax.base.errors import UserError
from stepalign_jax.huggingface import safetensors_files
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.weights import load_model

SINGLE = "model.safetensors"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return random_tensors(HF, seed=0)


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets headers be read, but no tensor."""
    monkeypatch.setattr(safetensors_files, "_cast", None)


def refusal(directory: str | Path) -> str:
    """The one sentence with which a directory is refused."""
    with pytest.raises(UserError) as error:
        load_model(str(directory))
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_missing_and_leftover_tensors_are_named(tensors, tmp_path, no_reading):
    del tensors[KERNEL]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    sentence = refusal(write(tmp_path, HF, tensors))
    assert f"lack {KERNEL}" in sentence
    assert "hold model.layers.2.mlp.up_proj.weight" in sentence


def test_many_missing_tensors_are_counted(tensors, tmp_path, no_reading):
    few = {"model.norm.weight": tensors["model.norm.weight"]}
    sentence = refusal(write(tmp_path, HF, few))
    assert (
        f"lm_head.weight, {EMBEDDING}" in sentence
        and f"and {len(tensors) - 5} more" in sentence
    )


def test_an_untied_config_needs_a_head(tensors, tmp_path, no_reading):
    del tensors["lm_head.weight"]
    assert "lack lm_head.weight" in refusal(write(tmp_path, HF, tensors))


def test_a_misshapen_tensor_is_named_with_both_shapes(tensors, tmp_path, no_reading):
    tensors[KERNEL] = np.ascontiguousarray(tensors[KERNEL].T)
    sentence = refusal(write(tmp_path, HF, tensors))
    assert f"{KERNEL} in {tmp_path / SINGLE} has shape [64, 24]" in sentence
    assert "asks for [24, 64]" in sentence


@pytest.mark.parametrize("dtype", [np.int8, np.float64, ml_dtypes.float8_e4m3fn])
def test_other_dtypes_are_refused(tensors, tmp_path, dtype, no_reading):
    tensors[KERNEL] = tensors[KERNEL].astype(dtype)
    sentence = refusal(write(tmp_path, HF, tensors))
    named = {"int8": "I8", "float64": "F64", "float8_e4m3fn": "F8_E4M3"}[np.dtype(dtype).name]
    assert f"{KERNEL} in {tmp_path / SINGLE} is {named}" in sentence
    assert "BF16, F16, F32" in sentence


def test_mixed_dtypes_are_refused_where_none_is_asked_for(tensors, tmp_path, no_reading):
    tensors[KERNEL] = tensors[KERNEL].astype(np.float16)
    sentence = refusal(write(tmp_path, HF, tensors))
    assert f"{KERNEL} in {tmp_path / SINGLE} is F16, in layer 0 it is F32" in sentence


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("name", [KERNEL, EMBEDDING, "model.norm.weight"])
def test_a_tensor_that_is_not_a_number_is_named(tmp_path, name, dtype, value):
    tensors = {key: x.astype(dtype) for key, x in random_tensors(TIED_HF, 0).items()}
    tensors[name][..., -1] = value
    sentence = refusal(write(tmp_path, TIED_HF, tensors))
    assert f"{name} in {tmp_path / SINGLE} has values that are NaN or infinite" in sentence


def test_largest_and_smallest_numbers_are_numbers(tmp_path):
    for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
        limits = ml_dtypes.finfo(dtype)
        tensors = {key: x.astype(dtype) for key, x in random_tensors(TIED_HF, 0).items()}
        tensors[KERNEL][0, :3] = limits.max, limits.min, limits.smallest_subnormal
        load_model(write(tmp_path, TIED_HF, tensors))


def test_values_beyond_the_asked_range_are_named(tensors, tmp_path):
    tensors[KERNEL][3, 5] = 70_000.0
    write(tmp_path, HF, tensors)
    entry = safetensors_files.tensor_entries(tmp_path)[KERNEL]
    box = tuple(slice(0, size) for size in entry.shape)
    with pytest.raises(UserError, match=rf"{KERNEL} .* beyond the range of float16.*bfloat16"):
        safetensors_files.read_tensor(entry, box, dtype=np.float16, transpose=True)


def test_a_tied_copy_may_not_differ(tmp_path):
    tensors = random_tensors(TIED_HF, 0)
    tensors["lm_head.weight"] = tensors[EMBEDDING].copy()
    tensors["lm_head.weight"][3, 5] += 1e-6
    sentence = refusal(write(tmp_path, TIED_HF, tensors))
    assert f"lm_head.weight in {tmp_path / SINGLE} differs" in sentence
    assert "tie_word_embeddings" in sentence


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x.astype(np.float16)])
def test_a_tied_copy_of_another_form_is_refused(tmp_path, change, no_reading):
    tensors = random_tensors(TIED_HF, 0)
    tensors["lm_head.weight"] = change(tensors[EMBEDDING])
    assert "tie_word_embeddings" in refusal(write(tmp_path, TIED_HF, tensors))


def test_a_missing_shard_is_named(tensors, tmp_path, no_reading):
    write_sharded(tmp_path, tensors)
    (tmp_path / "b.safetensors").unlink()
    assert "lacks b.safetensors, named in model.safetensors.index.json" in refusal(tmp_path)


def test_an_index_that_disagrees_with_its_shards_is_refused(tensors, tmp_path, no_reading):
    weight_map = write_sharded(tmp_path, tensors)
    swapped = {KERNEL: "a.safetensors", "lm_head.weight": "b.safetensors"}
    write_index(tmp_path, weight_map | swapped)
    sentence = refusal(tmp_path)
    assert INDEX in sentence and f"disagree on where lm_head.weight, {KERNEL} is" in sentence
    del weight_map[KERNEL]  # a shard holds a tensor that the index does not know
    write_index(tmp_path, weight_map)
    assert f"disagree on where {KERNEL} is" in refusal(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tensors, tmp_path, no_reading):
    write_sharded(tmp_path, tensors)
    save_file(
        {KERNEL: tensors[KERNEL], EMBEDDING: tensors[EMBEDDING]}, tmp_path / "c.safetensors"
    )
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    write_index(tmp_path, weight_map | {KERNEL: "c.safetensors"})
    assert f"disagree on where {EMBEDDING}, {KERNEL} is" in refusal(tmp_path)


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": {}}, {"weight_map": {"x": 1}}, {"weight_map": {"x": "../y"}}]
)
def test_an_index_without_a_map_is_refused(tensors, tmp_path, index, no_reading):
    write_sharded(tmp_path, tensors)
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert f"{INDEX} has no weight_map" in refusal(tmp_path)


@pytest.mark.parametrize("gone", ["config.json", SINGLE])
def test_missing_files_are_named(tensors, tmp_path, gone, no_reading):
    write(tmp_path, HF, tensors)
    (tmp_path / gone).unlink()
    assert gone in refusal(tmp_path)


@pytest.mark.parametrize(
    "cut", ["in the length", "in the header", "in the data", "by one byte"]
)
def test_a_truncated_file_is_named(tensors, tmp_path, cut, no_reading):
    write(tmp_path, HF, tensors)
    content = (tmp_path / SINGLE).read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    end = {"in the length": 5, "in the header": length - 9, "in the data": length + 999}
    (tmp_path / SINGLE).write_bytes(content[: end.get(cut, len(content) - 1)])
    sentence = refusal(tmp_path)
    assert f"{tmp_path / SINGLE} " in sentence and "cut off" in sentence


def test_a_file_cut_while_it_is_read_is_named(tensors, tmp_path):
    write(tmp_path, HF, tensors)
    entry = safetensors_files.tensor_entries(tmp_path)[EMBEDDING]
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:-64])
    box = tuple(slice(0, size) for size in entry.shape)
    with pytest.raises(UserError, match=f"{SINGLE} is cut off"):
        safetensors_files.read_tensor(entry, box, dtype=np.float32, transpose=False)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[1, 2]",
        b'{"x": {"dtype": "F32", "shape": [1]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',  # a hole
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}',  # of another size
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',  # bytes left over
    ],
)
def test_a_damaged_header_is_refused(tmp_path, header, no_reading):
    write(tmp_path, HF, {})
    content = struct.pack("<Q", len(header)) + header + bytes(8)
    (tmp_path / SINGLE).write_bytes(content)
    assert f"{tmp_path / SINGLE} is cut off or damaged" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("pytorch_model.bin", "pickles"),
        ("pytorch_model-00001-of-00002.bin", "pickles"),
        ("model.pt", "pickles"),
        ("model.pth", "pickles"),
        ("last.ckpt", "pickles"),
        ("qwen3-0.6b-q4_k_m.gguf", "GGUF"),
    ],
)
def test_other_formats_are_named_and_not_opened(tmp_path, file, what, no_reading):
    (tmp_path / "config.json").write_text(json.dumps(HF))
    (tmp_path / file).write_bytes(b"never read")
    sentence = refusal(tmp_path)
    assert file in sentence and what in sentence and "convert" in sentence


def test_a_broken_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ')
    assert "config.json" in refusal(tmp_path)


def test_a_quantised_checkpoint_is_refused_by_its_method(tensors, tmp_path, no_reading):
    hf = HF | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    sentence = refusal(write(tmp_path, hf, tensors))
    assert "config.json says that the weights are quantised (gptq)" in sentence


def test_an_adapter_is_not_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    sentence = refusal(tmp_path)
    assert "holds an adapter" in sentence and "trainable.adapter" in sentence


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


@pytest.mark.parametrize("path", ["/no/such/dir", "../no-such-place", "a/b/c", "nodir", ""])
def test_a_path_that_is_nothing_is_refused(path):
    with pytest.raises(UserError, match=r"^model\.path .* is not a directory, nor a hub id"):
        resolve_checkpoint(path)


@pytest.mark.parametrize("path", ["nodir", "nobody/no-such-model", "packaged:no_such_model"])
def test_a_refusal_names_the_option_that_holds_the_path(path):
    with pytest.raises(UserError, match=r"^critic\.path ") as error:
        resolve_checkpoint(path, key="critic.path")
    assert "model.path" not in str(error.value)


def test_a_refusal_of_sizes_names_it_too(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist: critic\.path must"):
        read_sizes(tmp_path, key="critic.path")


def test_a_file_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "qwen3.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="is not a directory"):
        resolve_checkpoint("models/qwen3.gguf")


def test_an_unknown_packaged_name_is_refused():
    with pytest.raises(UserError, match="packaged:no_such_model is not in this package"):
        resolve_checkpoint("packaged:no_such_model")
