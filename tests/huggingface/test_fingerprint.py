# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A change of any part of a checkpoint changes that part's hash, and no other."""

import os
import shutil
from pathlib import Path

import pytest

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


def test_of_a_large_file_head_blocks_and_size_count(model, monkeypatch):
    monkeypatch.setattr(module, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(module, "_HEAD_BYTES", 1000)
    monkeypatch.setattr(module, "_NUM_BLOCKS", 4)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 100)
    path = model / "model.safetensors"
    size, seen = path.stat().st_size, set()
    for place in (0, 999, 1500, size // 2, size - 1):
        seen.add(fingerprint_checkpoint(model)["weights"])
        flip(path, place)
    seen.add(fingerprint_checkpoint(model)["weights"])
    assert len(seen) == 4  # neither 1500 nor the middle lies in a block
    path.write_bytes(path.read_bytes() + b"0")
    assert fingerprint_checkpoint(model)["weights"] not in seen


def test_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"abc")
    before = fingerprint_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"abd")
    assert fingerprint_adapter(tmp_path) != before
