# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters in PEFT's layout: bit for bit there and back, and what is refused."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.models import CONFIG, assert_same_bits, random_adapter

from stepalign_jax.base.errors import UserError
from stepalign_jax.huggingface.peft_adapters import CONFIG as CONFIG_FILE
from stepalign_jax.huggingface.peft_adapters import WEIGHTS, load_adapter, save_adapter
from stepalign_jax.model.config import PROJECTIONS
from stepalign_jax.model.lora import LoraSpec

SPEC = LoraSpec(rank=3, alpha=6.0, targets=tuple(PROJECTIONS))


@pytest.fixture
def saved(tmp_path) -> Path:
    save_adapter(tmp_path, SPEC, random_adapter(CONFIG, SPEC), base_name="somebody/base")
    return tmp_path


def change_config(directory: Path, **settings: Any) -> None:
    path = directory / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_tensors(directory: Path, change: Any) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


@pytest.mark.parametrize("targets", [tuple(PROJECTIONS), ("down_proj", "q_proj")])
def test_there_and_back_bit_for_bit(tmp_path, targets):
    spec = LoraSpec(rank=3, alpha=5.5, targets=targets)
    lora = random_adapter(CONFIG, spec)
    save_adapter(tmp_path, spec, lora, base_name="somebody/base")
    found, loaded = load_adapter(tmp_path, CONFIG)
    assert (found.rank, found.alpha, set(found.targets)) == (3, 5.5, set(targets))
    assert_same_bits(loaded, lora)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_names_and_orientation_are_pefts(saved):
    """Worked by hand: a is x @ a, while PEFT's lora_A is a Linear's weight."""
    tensors = load_file(saved / WEIGHTS)
    assert len(tensors) == 2 * 7 * CONFIG.num_layers
    lora = random_adapter(CONFIG, SPEC)["layers"]["mlp"]["down_proj"]
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_{}.weight"
    np.testing.assert_array_equal(tensors[name.format("A")], lora["a"][1].T)
    np.testing.assert_array_equal(tensors[name.format("B")], lora["b"][1].T)
    settings = json.loads((saved / CONFIG_FILE).read_text())
    assert settings["peft_type"] == "LORA" and settings["task_type"] == "CAUSAL_LM"
    assert (settings["r"], settings["lora_alpha"]) == (3, 6)
    assert settings["base_model_name_or_path"] == "somebody/base"
    assert settings["target_modules"] == sorted(PROJECTIONS)


def test_all_linear_half_precision_and_rank_stabilised_scale(saved):
    change_config(saved, target_modules="all-linear", use_rslora=True, lora_alpha=6)
    change_tensors(saved, lambda t: t.update({k: v.astype(np.float16) for k, v in t.items()}))
    spec, lora = load_adapter(saved, CONFIG)
    assert spec.targets == tuple(PROJECTIONS)
    assert spec.scale == pytest.approx(6 / 3**0.5, rel=1e-12)
    exact = random_adapter(CONFIG, SPEC)["layers"]["attention"]["q_proj"]["a"]
    loaded = lora["layers"]["attention"]["q_proj"]["a"]
    np.testing.assert_array_equal(loaded, exact.astype(np.float16).astype(np.float32))


def test_targets_spelled_in_full_must_name_every_layer(saved):
    """As PEFT writes all-linear for a model of few layers."""
    names = [
        f"model.layers.{layer}.{module}.{name}"
        for layer in range(CONFIG.num_layers)
        for name, module in zip(PROJECTIONS, ["self_attn"] * 4 + ["mlp"] * 3, strict=True)
    ]
    change_config(saved, target_modules=names)
    assert load_adapter(saved, CONFIG)[0].targets == tuple(PROJECTIONS)
    change_config(saved, target_modules=["model.layers.0.self_attn.q_proj"])
    change_tensors(saved, keep_only("layers.0.self_attn.q_proj"))
    with pytest.raises(UserError, match=r"lacks .*layers\.1\.self_attn\.q_proj.* and 1 more"):
        load_adapter(saved, CONFIG)


def keep_only(part: str) -> Any:
    def change(tensors: Any) -> None:
        for name in [name for name in tensors if part not in name]:
            del tensors[name]

    return change


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"use_dora": True}, "use_dora = true, which is not supported"),
        ({"rank_pattern": {"q_proj": 2}}, 'rank_pattern = {"q_proj": 2}'),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"bias": "lora_only"}, 'bias = "lora_only"'),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save = \["lm_head"\]'),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"exclude_modules": ["o_proj"]}, "exclude_modules"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights = "pissa"'),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"use_something_new": 1}, "use_something_new = 1"),
        ({"peft_type": "IA3"}, 'peft_type = "IA3"'),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        (
            {"target_modules": ".*q_proj"},
            r'target_modules = "\.\*q_proj", but it must be a list',
        ),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.*, but it must be a list of some"),
        ({"target_modules": []}, "but it must be a list"),
        ({"r": 0}, "r = 0 and lora_alpha = 6"),
        ({"r": 2.5}, r"r = 2\.5"),
        ({"r": "3"}, 'r = "3", but it must be a number'),
        ({"lora_alpha": None}, "lora_alpha = null, but it must be a number"),
        ({"lora_alpha": 10**400}, "but it must be a number"),
        ({"r": 4}, r"has shape \[3, 32\], but the model and r ask for \[4, 32\]"),
        ({"target_modules": ["q_proj"]}, "holds .* and 23 more, which adapter_config.json and"),
    ],
)
def test_what_would_change_the_computation_is_refused_by_name(saved, settings, sentence):
    change_config(saved, **settings)
    with pytest.raises(UserError, match=sentence) as refusal:
        load_adapter(saved, CONFIG)
    assert "\n" not in str(refusal.value) and str(saved) in str(refusal.value)


@pytest.mark.parametrize("kind", ["IA3", "LOHA"])
def test_another_kind_of_adapter_is_refused_for_its_kind(saved, kind):
    path = saved / "adapter_config.json"
    settings = {"alpha": 8, "feedforward_modules": ["up_proj"], **json.loads(path.read_text())}
    path.write_text(json.dumps(settings | {"peft_type": kind}))
    with pytest.raises(UserError, match=f'asks for peft_type = "{kind}"'):
        load_adapter(saved, CONFIG)


A_NAME = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(A_NAME), rf"lacks {A_NAME}, which"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), "holds extra, which"),
        (lambda t: t.update({A_NAME: t[A_NAME].T.copy()}), r"has shape \[32, 3\]"),
        (lambda t: t[A_NAME].fill(np.nan), "not finite"),
        (lambda t: t.update({A_NAME: t[A_NAME].astype(np.int32)}), "is int32: save it as"),
    ],
)
def test_damaged_tensors_are_refused_by_name(saved, change, sentence):
    change_tensors(saved, change)
    with pytest.raises(UserError, match=sentence):
        load_adapter(saved, CONFIG)


def test_cut_and_missing_files_are_refused(saved, tmp_path_factory):
    weights = saved / WEIGHTS
    content = weights.read_bytes()
    for size in (0, 5, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:size])
        with pytest.raises(UserError, match=f"{WEIGHTS} is cut off or damaged"):
            load_adapter(saved, CONFIG)
    weights.rename(saved / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle, which can run code"):
        load_adapter(saved, CONFIG)
    (saved / "adapter_model.bin").unlink()
    with pytest.raises(UserError, match=f"has no {WEIGHTS}: copy the adapter again"):
        load_adapter(saved, CONFIG)
    with pytest.raises(UserError, match=rf"nowhere/{CONFIG_FILE} does not exist"):
        load_adapter(saved / "nowhere", CONFIG)


@pytest.mark.parametrize("text", ["{", "[]", '{"r": 3}'])
def test_a_config_that_is_none_is_refused(saved, text):
    (saved / CONFIG_FILE).write_text(text)
    with pytest.raises(UserError, match=f"{CONFIG_FILE} (is not JSON|holds no|has no peft)"):
        load_adapter(saved, CONFIG)
