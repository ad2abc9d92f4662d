# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that were cloned without their large files."""

import shutil

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.peft_adapters import load_adapter

TINY = resolve_checkpoint("packaged:tiny")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "model.safetensors", "config.json", "generation_config.json"]
)
def test_a_pointer_is_refused_by_name_and_with_the_remedy(tmp_path, name):
    shutil.copytree(TINY, tmp_path / "model")
    assert resolve_checkpoint(str(tmp_path / "model")) == tmp_path / "model"
    (tmp_path / "model" / name).write_text(POINTER)
    with pytest.raises(UserError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        resolve_checkpoint(str(tmp_path / "model"))


def test_pointers_to_files_that_are_not_read_may_stay(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    for name in ("pytorch_model.bin", "picture.png", "model.gguf"):
        (tmp_path / "model" / name).write_text(POINTER)
    assert resolve_checkpoint(str(tmp_path / "model")) == tmp_path / "model"


def test_a_pointer_as_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text(POINTER)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is a Git LFS pointer"):
        load_adapter(tmp_path, read_sizes(TINY))
