# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/goldens/*.npz: what transformers' Qwen3 computes on random weights.

    pip install -e '.[test,slow]' && python tests/make_goldens.py

The weights are not stored. Both sides draw them from the case's seed, and the golden holds
a checksum of them. Make goldens anew only when a case changes, never to make a test pass.
"""

from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"
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


# Both tyings, GQA ratios 1, 2 and 4, two rope thetas, head sizes that are not
# hidden / heads, and one sequence that runs past position 4,096.
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
}  # fmt: skip


def random_tensors(hf: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Hugging Face name -> fp32 tensor in its [out, in] orientation, drawn in name order."""
    width, head_dim, mlp = hf["hidden_size"], hf["head_dim"], hf["intermediate_size"]
    queries, keys = (hf[f"num_{kind}_heads"] * head_dim for kind in ("attention", "key_value"))
    shapes = {"model.embed_tokens": (hf["vocab_size"], width), "model.norm": (width,)}
    if not hf["tie_word_embeddings"]:
        shapes["lm_head"] = (hf["vocab_size"], width)
    for i in range(hf["num_hidden_layers"]):
        layer = {
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
            "self_attn.q_norm": (head_dim,),
            "self_attn.k_norm": (head_dim,),
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "mlp.gate_proj": (mlp, width),
            "mlp.up_proj": (mlp, width),
            "mlp.down_proj": (width, mlp),
        }
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(seed)
    return {f"{name}.weight": _draw(rng, shapes[name]) for name in sorted(shapes)}


def _draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform values, the most stable stream: norms near 1, others std 1.5 / sqrt(in)."""
    uniform = (rng.random(shape) - 0.5) * 12**0.5
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
    """transformers' Qwen3 in fp32 with these weights."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**{**hf, "attn_implementation": "eager"})
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    model = Qwen3ForCausalLM(config).eval()
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
        tensors = random_tensors(case["hf"], case["seed"])
        model = torch_model(case["hf"], tensors)
        golden = {
            "checksum": np.float64(checksum(tensors)),
            "logits": torch_logits(model, case),
        }
        if case["greedy"]:
            golden["greedy"] = torch_greedy(model, case)
        np.savez_compressed(GOLDENS / f"qwen3_{name}.npz", **golden)
        print(name, golden["logits"].shape, f"logits std {golden['logits'].std():.3f}")
        if "greedy" in golden:
            print("  distinct greedy ids:", len(set(golden["greedy"].tolist())))


if __name__ == "__main__":
    main()
