# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""config.json: published ones are read, written ones read back, others refused by name."""

import dataclasses
import math
from typing import Any

import pytest
from support.models import CONFIG

from stepalign_jax.base.errors import UserError
from stepalign_jax.huggingface.config import config_from_hf, config_to_hf
from stepalign_jax.model.rope import YarnScaling

_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
_QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "qwen2",
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
}


def _sizes(width: int, mlp: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_window_layers": layers,
        **more,
    }


# Checkpoint -> its config.json, as published.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": _QWEN3 | _sizes(
        1024, 3072, 28, 16, max_position_embeddings=40960, rope_theta=1000000,
        tie_word_embeddings=True,
    ),
    "Qwen3-8B-Base": _QWEN3 | _sizes(
        4096, 12288, 36, 32, max_position_embeddings=32768, rope_theta=1000000,
        tie_word_embeddings=False,
    ),
    "Qwen3-32B": _QWEN3 | _sizes(
        5120, 25600, 64, 64, max_position_embeddings=40960, rope_theta=1000000,
        tie_word_embeddings=False,
    ),
    "Qwen3-4B-Instruct-2507": _QWEN3 | _sizes(
        2560, 9728, 36, 32, max_position_embeddings=262144, rope_theta=5000000,
        tie_word_embeddings=True,
    ),
    "QwQ-32B": _QWEN2 | _sizes(
        5120, 27648, 64, 40, max_position_embeddings=40960, num_key_value_heads=8,
        rms_norm_eps=1e-5, sliding_window=32768, tie_word_embeddings=False,
        vocab_size=152064,
    ),
    "Qwen2.5-0.5B": _QWEN2 | _sizes(
        896, 4864, 24, 14, max_position_embeddings=32768, num_key_value_heads=2,
        rms_norm_eps=1e-6, sliding_window=32768, tie_word_embeddings=True,
        vocab_size=151936, use_mrope=False,
    ),
    "Qwen2.5-7B-Instruct": _QWEN2 | _sizes(
        3584, 18944, 28, 28, max_position_embeddings=32768, num_key_value_heads=4,
        rms_norm_eps=1e-6, sliding_window=131072, tie_word_embeddings=False,
        vocab_size=152064,
    ),
}  # fmt: skip
# Checkpoint -> (rope theta, positions, head size, q/k/v bias, q/k norm).
FACTS = {
    "Qwen3-0.6B": (1e6, 40960, 128, False, True),
    "Qwen3-8B-Base": (1e6, 32768, 128, False, True),
    "Qwen3-32B": (1e6, 40960, 128, False, True),
    "Qwen3-4B-Instruct-2507": (5e6, 262144, 128, False, True),
    "QwQ-32B": (1e6, 40960, 128, True, False),
    "Qwen2.5-0.5B": (1e6, 32768, 64, True, False),
    "Qwen2.5-7B-Instruct": (1e6, 32768, 128, True, False),
}
HF = config_to_hf(CONFIG)
QWEN2_HF = config_to_hf(dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=False))
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


def yarn_of(hf: dict[str, Any]) -> YarnScaling:
    yarn = config_from_hf(hf).yarn
    assert yarn is not None
    return yarn


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_survive_the_round_trip(name):
    config = config_from_hf(PUBLISHED[name])
    facts = (config.rope_theta, config.max_positions, config.head_dim)
    assert (*facts, config.qkv_bias, config.qk_norm) == FACTS[name]
    written = config_to_hf(config)
    assert config_from_hf(written) == config
    shared = written.keys() & PUBLISHED[name].keys()
    assert {key: written[key] for key in shared} == {
        key: PUBLISHED[name][key] for key in shared
    }


def test_a_qwen2_is_written_as_one():
    assert (QWEN2_HF["model_type"], QWEN2_HF["architectures"]) == (
        "qwen2",
        ["Qwen2ForCausalLM"],
    )
    assert "attention_bias" not in QWEN2_HF
    assert (HF["model_type"], HF["attention_bias"]) == ("qwen3", False)


@pytest.mark.parametrize(("bias", "norm"), [(True, True), (False, False)])
def test_a_mixture_of_the_two_cannot_be_written(bias, norm):
    with pytest.raises(ValueError, match="no architecture"):
        config_to_hf(dataclasses.replace(CONFIG, qkv_bias=bias, qk_norm=norm))


def test_config_reads_rope_theta_where_transformers_5_puts_it():
    hf = {key: value for key, value in HF.items() if key != "rope_theta"}
    hf["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert config_from_hf(hf).rope_theta == 5e5


@pytest.mark.parametrize("base", [HF, QWEN2_HF], ids=["qwen3", "qwen2"])
@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_scaling": {"type": "yarn", **YARN}},
        {"rope_scaling": {"rope_type": "yarn", **YARN}},
        {"rope_scaling": {"rope_type": "yarn", "type": "yarn", **YARN}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **YARN}},
    ],
)
def test_yarn_is_read_in_every_spelling_and_survives_the_round_trip(base, spelling):
    config = config_from_hf(base | spelling)
    assert config.yarn == YarnScaling(
        factor=4.0,
        original_max_positions=32768,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=True,
        attention_factor=None,
        mscale=None,
        mscale_all_dim=None,
    )
    assert config.max_positions == 4 * 32768
    assert config_from_hf(config_to_hf(config)) == config
    assert hash(config) == hash(config_from_hf(config_to_hf(config)))


def test_every_field_of_yarn_survives_the_round_trip():
    given = {"beta_fast": 16, "beta_slow": 2, "truncate": False, "attention_factor": 1.5}
    given |= {"mscale": 0.7, "mscale_all_dim": 0.9}
    hf = HF | {"rope_scaling": {"rope_type": "yarn", **YARN, **given}}
    config = config_from_hf(hf)
    assert config_from_hf(config_to_hf(config)) == config
    assert config_to_hf(config)["rope_scaling"] == hf["rope_scaling"]


@pytest.mark.parametrize(
    ("rope", "top", "factor", "original"),
    [
        # As transformers: the original context defaults to the config's own ...
        ({"factor": 2.0}, {}, 2.0, 512),
        # ... a null factor is what the two contexts say ...
        ({"factor": None, "original_max_position_embeddings": 128}, {}, 4.0, 128),
        # ... and the top level has the last word on the original context.
        (YARN, {"original_max_position_embeddings": 64}, 4.0, 64),
    ],
)
def test_what_yarn_leaves_out_is_filled_as_transformers_does(rope, top, factor, original):
    yarn = yarn_of(HF | top | {"rope_scaling": {"rope_type": "yarn", **rope}})
    assert (yarn.factor, yarn.original_max_positions) == (factor, original)


def test_yarn_never_lowers_the_positions_of_the_config():
    scaling = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}
    assert config_from_hf(HF | {"rope_scaling": scaling}).max_positions == 512


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("Qwen3MoeForCausalLM", "qwen3_moe"),
        ("LlamaForCausalLM", "llama"),
        ("Qwen2ForSequenceClassification", "qwen2"),
        ("Qwen3Model", "qwen3"),
        ("Qwen2ForCausalLM", "qwen3"),
    ],
)
def test_other_architectures_are_refused_by_name(architecture, model_type):
    with pytest.raises(UserError) as error:
        config_from_hf(HF | {"architectures": [architecture], "model_type": model_type})
    found = (
        f"describes a {architecture} (model_type '{model_type}'): only dense Qwen3 and Qwen2"
    )
    assert found in str(error.value)


def test_a_config_without_architectures_goes_by_its_model_type():
    hf = {key: value for key, value in QWEN2_HF.items() if key != "architectures"}
    assert config_from_hf(hf).qkv_bias
    with pytest.raises(UserError, match=r"a model \(model_type None\)"):
        config_from_hf({**hf, "model_type": None})


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "longrope", "mrope"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("spelling", ["type", "rope_type"])
def test_other_rope_scalings_are_refused_by_name(kind, key, spelling):
    with pytest.raises(UserError, match=f"rope_type = '{kind}'"):
        config_from_hf(HF | {key: {spelling: kind, "factor": 2.0}})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, "lacks factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "factor = 0.5"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "factor = '4'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "betafast": 1}}, "betafast"),
        ({"rope_scaling": "yarn"}, "rope_scaling = 'yarn'"),
        (
            {"rope_scaling": {"type": "yarn", **YARN}, "rope_parameters": {"factor": 2.0}},
            "two values for factor",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "weights are quantised (fp8)"),
        ({"quantization_config": "fp8"}, "weights are quantised (fp8)"),
        ({"rope_theta": None}, "rope_theta"),
        ({"rope_theta": 1}, "rope_theta"),
        ({"num_key_value_heads": 3}, "4 attention heads and 3"),
        ({"head_dim": 7}, "head_dim 7"),
        ({"hidden_size": "32"}, "hidden_size = '32': it must be a positive whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"rms_norm_eps": True}, "rms_norm_eps = True: it must be a positive number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1: it must be true or false"),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers = 2147483648"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps = inf"),
        *(({"rope_theta": x}, "rope_theta above 1") for x in (math.inf, math.nan, 10**400)),
        ({"rope_scaling": {"type": "yarn", "factor": 10**400}}, "YaRN with factor"),
        *(({"layer_types": x}, "layer_types") for x in (5, True, "full_attention", [["x"]])),
        *(({"architectures": x}, "describes a 5 (model_type") for x in (5, [5])),
    ],
)
def test_config_refuses_what_is_not_implemented_or_makes_no_sense(change, named):
    with pytest.raises(UserError) as error:
        config_from_hf(HF | change)
    assert named in str(error.value)


def test_config_names_missing_keys():
    hf = {key: value for key, value in HF.items() if key != "vocab_size"}
    with pytest.raises(UserError, match="vocab_size, head_dim"):
        config_from_hf(hf | {"head_dim": None})


def test_a_qwen2_without_a_head_size_has_hidden_over_heads():
    hf = {key: value for key, value in QWEN2_HF.items() if key != "head_dim"}
    assert config_from_hf(hf).head_dim == 32 // 4
    with pytest.raises(UserError, match="lacks head_dim"):
        config_from_hf(hf | {"hidden_size": 34})
