# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Real sizes without their data: counts, memory, and headers of checkpoints full of holes."""

import json
from pathlib import Path

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.huggingface.names import tensor_places
from stepalign_jax.huggingface.safetensors_files import DTYPES, INDEX
from stepalign_jax.huggingface.safetensors_writer import TensorSpec, header_bytes
from stepalign_jax.huggingface.weights import check_tensors
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.planning.sizes import (
    num_parameters,
    published_config,
    published_names,
    published_table,
    state_bytes,
)

TENSORS_PER_SHARD = 200
# As the checkpoints' own pages count them; for a tied head, the embedding once.
PUBLISHED = {
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "QwQ-32B": 32_763_876_352,
}


def write_hollow(directory: Path, name: str) -> None:
    """A sharded checkpoint whose files have headers, sizes, and no data on the disk."""
    tensors = {
        tensor: TensorSpec(place.file_shape, DTYPES["BF16"])
        for tensor, place in tensor_places(published_config(name)).items()
    }
    weight_map = {}
    names = list(tensors)
    for i, start in enumerate(range(0, len(names), TENSORS_PER_SHARD)):
        shard = {name: tensors[name] for name in names[start : start + TENSORS_PER_SHARD]}
        header = header_bytes(shard)
        with (directory / f"model-{i}.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + sum(spec.nbytes for spec in shard.values()))
        weight_map |= dict.fromkeys(shard, f"model-{i}.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_every_published_size_is_counted():
    assert set(published_names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_headers_of_a_real_size_fit_and_no_data_is_read(tmp_path, name):
    config = published_config(name)
    assert num_parameters(config) == PUBLISHED[name]
    write_hollow(tmp_path, name)
    entries = check_tensors(tmp_path, config)
    assert entries.keys() == tensor_places(config).keys()
    assert len({entry.file for entry in entries.values()}) > 1
    on_disk = sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir())
    assert on_disk < 4 << 20


def test_one_layer_of_a_real_size_that_is_missing_is_named(tmp_path):
    write_hollow(tmp_path, "Qwen3-8B")
    index = json.loads((tmp_path / INDEX).read_text())
    file = index["weight_map"]["model.layers.35.mlp.up_proj.weight"]
    size = (tmp_path / file).stat().st_size
    with (tmp_path / file).open("r+b") as cut:
        cut.truncate(size - 1)
    with pytest.raises(UserError, match=rf"{file} is cut off"):
        check_tensors(tmp_path, published_config("Qwen3-8B"))


def test_state_bytes_are_those_worked_out_by_hand():
    config = published_config("Qwen3-0.6B")
    # Per layer: q 1024x2048, k and v 1024x1024, o 2048x1024, gate and up 1024x3072, down
    # 3072x1024, norms 2 x 1024 and 2 x 128; beside them the embedding and the last norm.
    kernels = 1024 * (2048 + 1024 + 1024 + 2048 + 3072 + 3072 + 3072)
    base = 28 * (kernels + 2 * 1024 + 2 * 128) + 151936 * 1024 + 1024
    # Rank 4 on q (1024 -> 2048) and down (3072 -> 1024).
    adapter = 28 * 4 * ((1024 + 2048) + (3072 + 1024))
    sizes = state_bytes(config, LoraSpec(4, 8.0, ("q_proj", "down_proj")))
    assert sizes.weights == 2 * base == 1_192_099_840
    assert sizes.lora == 2 * base + 16 * adapter
    assert sizes.full == 2 * base + 16 * base


def test_the_table_has_a_row_per_checkpoint():
    rows = published_table(rank=64).splitlines()
    assert len(rows) == 2 + len(PUBLISHED)
    assert "| Qwen3-8B | 8,190,735,360 | 15.3 GiB |" in rows[5]
