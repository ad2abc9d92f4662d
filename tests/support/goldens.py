# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes goldens_data/*.npz: what transformers computes on random Qwen3 and Qwen2 weights.

    pip install -e '.[test,slow]' && python tests/support/goldens.py

The weights are not stored. Both sides draw them from the case's seed, and the golden holds
a checksum of them. Only goldens that do not exist are made: delete the file of a case that
changed, and never one to make a test pass.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).parent / "goldens_data"
GREEDY_TOKENS = 200


def _case(seed: int, length: int, greedy: bool, **sizes: Any) -> dict[str, Any]:
    hf = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 96,
        "num_hidden_layers": 2,
        "intermediate_size": 112,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "attention_bias": False,
        **sizes,
    }
    return {"seed": seed, "length": length, "greedy": greedy, "hf": hf}


_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}

# Both tyings, GQA ratios 1, 2 and 4, two rope thetas, head sizes that are not
# hidden / heads, and one sequence that runs past position 4,096. Then Qwen2 (`biased`) in
# both tyings, and YaRN: as the model cards set it, and with all that can be set, both read
# far past the original context.
CASES: dict[str, dict[str, Any]] = {
    "tied_ratio2": _case(
        1, 24, True, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, rope_theta=1e6, tie_word_embeddings=True,
    ),
    "untied_ratio4": _case(
        2, 24, True, hidden_size=64, num_attention_heads=4, num_key_value_heads=1,
        head_dim=24, rope_theta=1e4, tie_word_embeddings=False,
    ),
    "tied_ratio1": _case(
        3, 24, False, hidden_size=48, num_attention_heads=3, num_key_value_heads=3,
        head_dim=16, rope_theta=1e4, tie_word_embeddings=True,
    ),
    "untied_ratio2": _case(
        4, 24, False, hidden_size=80, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, rope_theta=1e6, tie_word_embeddings=False,
    ),
    "beyond_4096": _case(
        5, 4160, False, hidden_size=32, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, rope_theta=1e6, tie_word_embeddings=True,
    ),
    "biased_tied": _case(
        6, 24, True, **_QWEN2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
        rope_theta=1e6, tie_word_embeddings=True,
    ),
    "biased_untied": _case(
        7, 24, False, **_QWEN2, hidden_size=80, num_attention_heads=4, num_key_value_heads=1,
        rope_theta=1e4, tie_word_embeddings=False,
    ),
    "yarn": _case(
        8, 160, True, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, rope_theta=1e6, tie_word_embeddings=True,
        rope_scaling={
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 96,
        },
    ),
    "biased_yarn": _case(
        9, 2080, False, **_QWEN2, hidden_size=64, num_attention_heads=2,
        num_key_value_heads=1, rope_theta=1e4, tie_word_embeddings=False,
        rope_scaling={
            "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256,
            "beta_fast": 16, "beta_slow": 2, "mscale": 1.2, "mscale_all_dim": 0.6,
            "truncate": False,
        },
    ),
}  # fmt: skip


def golden_path(name: str) -> Path:
    """Where the golden of a case lies."""
    return GOLDENS / f"{CASES[name]['hf']['model_type']}_{name}.npz"


def random_tensors(hf: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Hugging Face name -> fp32 tensor in its [out, in] orientation, drawn in name order."""
    shapes: dict[str, tuple[int, ...]] = {}
    shapes["model.embed_tokens.weight"] = (hf["vocab_size"], hf["hidden_size"])
    shapes["model.norm.weight"] = (hf["hidden_size"],)
    if not hf["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (hf["vocab_size"], hf["hidden_size"])
    layer = _layer_shapes(hf)
    for i in range(hf["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(seed)
    return {name: _draw(rng, name, shapes[name]) for name in sorted(shapes)}


def _layer_shapes(hf: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, mlp, heads = hf["hidden_size"], hf["intermediate_size"], hf["num_attention_heads"]
    head_dim = hf.get("head_dim", width // heads)
    queries, keys = heads * head_dim, hf["num_key_value_heads"] * head_dim
    shapes = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (mlp, width),
        "mlp.up_proj.weight": (mlp, width),
        "mlp.down_proj.weight": (width, mlp),
    }
    if hf["model_type"] == "qwen3":
        return shapes | {f"self_attn.{name}_norm.weight": (head_dim,) for name in "qk"}
    sizes = {"q": queries, "k": keys, "v": keys}
    return shapes | {f"self_attn.{name}_proj.bias": (size,) for name, size in sizes.items()}


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform values, the most stable stream.

    Norms are near 1, biases around 0 with std 0.5, others have std 1.5 / sqrt(in).
    """
    uniform = (rng.random(shape) - 0.5) * 12**0.5
    if name.endswith(".bias"):
        return (0.5 * uniform).astype(np.float32)
    scaled = 1 + 0.2 * uniform if len(shape) == 1 else uniform * 1.5 / shape[1] ** 0.5
    return scaled.astype(np.float32)


def case_tokens(case: dict[str, Any]) -> np.ndarray:
    """[2, length] token ids of a case; the long case has one row."""
    rng = np.random.default_rng(case["seed"] + 1000)
    rows = 1 if case["length"] > 1000 else 2
    return (rng.random((rows, case["length"])) * case["hf"]["vocab_size"]).astype(np.int32)


def compared_positions(case: dict[str, Any]) -> np.ndarray:
    """Positions whose logits are kept: all, or 16 spread over a long row and its last 16."""
    length = case["length"]
    if length <= 1000:
        return np.arange(length)
    return np.concatenate(
        [np.arange(0, length - 16, length // 16), np.arange(length - 16, length)]
    )


def checksum(tensors: dict[str, np.ndarray]) -> float:
    """One number that changes when any drawn weight does."""
    return float(sum(np.abs(tensor.astype(np.float64)).sum() for tensor in tensors.values()))


def torch_model(hf: dict[str, Any], tensors: dict[str, np.ndarray]) -> Any:
    """transformers' own model in fp32 with these weights."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    # A copy, since transformers completes the rope section in place.
    config = transformers.AutoConfig.for_model(**copy.deepcopy(hf), attn_implementation="eager")
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    model.load_state_dict(state | {"lm_head.weight": torch.from_numpy(head)}, strict=True)
    return model


def torch_logits(model: Any, case: dict[str, Any]) -> np.ndarray:
    """[rows, compared positions, V] fp32."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        logits = model(torch.from_numpy(case_tokens(case)).long()).logits.numpy()
    return logits[:, compared_positions(case)]


def torch_greedy(model: Any, case: dict[str, Any]) -> np.ndarray:
    """[GREEDY_TOKENS] ids that follow the first row, by argmax."""
    import torch  # pyright: ignore[reportMissingImports]

    prompt = torch.from_numpy(case_tokens(case)[:1]).long()
    with torch.no_grad():
        out = model.generate(prompt, max_new_tokens=GREEDY_TOKENS, do_sample=False)
    return out[0, prompt.shape[1] :].numpy().astype(np.int32)


def main() -> None:
    GOLDENS.mkdir(exist_ok=True)
    for name, case in CASES.items():
        if golden_path(name).exists():
            continue
        tensors = random_tensors(case["hf"], case["seed"])
        model = torch_model(case["hf"], tensors)
        golden = {
            "checksum": np.float64(checksum(tensors)),
            "logits": torch_logits(model, case),
        }
        if case["greedy"]:
            golden["greedy"] = torch_greedy(model, case)
        np.savez_compressed(golden_path(name), **golden)
        print(name, golden["logits"].shape, f"logits std {golden['logits'].std():.3f}")
        if "greedy" in golden:
            print("  distinct greedy ids:", len(set(golden["greedy"].tolist())))


if __name__ == "__main__":
    main()
