# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A change of any part of a checkpoint changes that part's hash, and no other."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stepalign_jax.base.errors import UserError
from stepalign_jax.huggingface import fingerprint as module
from stepalign_jax.huggingface.fingerprint import fingerprint_adapter, fingerprint_checkpoint
from stepalign_jax.huggingface.hub import resolve_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(resolve_checkpoint("packaged:tiny"), tmp_path / "model")
    return tmp_path / "model"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("weights", "model.safetensors"),
        ("config", "config.json"),
        ("tokenizer", "tokenizer.json"),
        ("tokenizer", "tokenizer_config.json"),
        ("chat template", "chat_template.jinja"),
        ("stop ids", "generation_config.json"),  # the packaged model has none
    ],
)
def test_one_bit_changes_its_part_alone(model, part, name):
    (model / "generation_config.json").write_text('{"eos_token_id": 1}')
    before = fingerprint_checkpoint(model)
    flip(model / name, -2)
    after = fingerprint_checkpoint(model)
    assert {key for key in before if before[key] != after[key]} == {part}


def test_a_copy_at_another_time_and_place_is_the_same(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "model.safetensors", (1, 1))
    assert fingerprint_checkpoint(model) == fingerprint_checkpoint(tmp_path / "copy")


def test_keys_for_drawing_do_not_change_the_stop_ids(model):
    settings = model / "generation_config.json"
    settings.write_text('{"eos_token_id": 1}')
    before = fingerprint_checkpoint(model)
    settings.write_text('{"eos_token_id": [1], "repetition_penalty": 1.1}')
    assert fingerprint_checkpoint(model) == before


@pytest.fixture
def large(tmp_path, monkeypatch) -> Path:
    """A directory whose one file counts as large; its second tensor lies in no spread block."""
    monkeypatch.setattr(module, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(module, "_HEAD_BYTES", 8)
    monkeypatch.setattr(module, "_NUM_BLOCKS", 4)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 100)
    sizes = {"a": 4000, "b": 500, "c": 4000}
    tensors = {name: np.zeros(size, np.uint8) for name, size in sizes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "seen"),
    [(0, True), (99, True), (100, False), (250, False), (400, True), (499, True)],
)
def test_of_a_large_file_the_ends_of_every_tensor_count(large, place, seen):
    before = fingerprint_checkpoint(large)["weights"]
    flip(large / "model.safetensors", place - 4500)  # the second tensor begins there
    assert (fingerprint_checkpoint(large)["weights"] != before) == seen


def test_of_a_large_file_names_and_size_count(large):
    path, seen = large / "model.safetensors", set()
    for name in "bd":
        save_file({"a": np.zeros(4000, np.uint8), name: np.zeros(4000, np.uint8)}, path)
        seen.add(fingerprint_checkpoint(large)["weights"])
    save_file({"a": np.zeros(4000, np.uint8), "d": np.zeros(4001, np.uint8)}, path)
    seen.add(fingerprint_checkpoint(large)["weights"])
    assert len(seen) == 3


def test_a_large_file_that_is_damaged_is_refused(large):
    flip(large / "model.safetensors", 8)
    with pytest.raises(UserError, match=r"model\.safetensors is cut off or damaged"):
        fingerprint_checkpoint(large)


def test_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"abc")
    before = fingerprint_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"abd")
    assert fingerprint_adapter(tmp_path) != before
