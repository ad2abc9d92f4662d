# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports opened by the libraries that they are for: their logits are ours.

python -m pytest -m slow tests/test_export_parity.py      (needs torch and peft)
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.checkpoint_files import save_model
from support.models import CONFIG, apply, enlarged, random_adapter
from support.runs import small_config
from test_export import TINY_BASE, make_run

from stepalign_jax import export
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.peft_adapters import load_adapter
from stepalign_jax.huggingface.weights import load_model
from stepalign_jax.model.config import PROJECTIONS
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3, init_params

pytestmark = pytest.mark.slow

SPEC = LoraSpec(3, 6.0, tuple(PROJECTIONS))
TOLERANCE = 1e-4  # float32; logits are of order 10
TOKENS = np.random.default_rng(0).integers(0, 38, (2, 24), dtype=np.int32)


class Case(NamedTuple):
    base: Path
    run: Any
    adapter: Any


@pytest.fixture(scope="module", params=["tiny, tied", "Qwen3, untied", "Qwen2, biases"])
def case(request, tmp_path_factory) -> Case:
    """A base, and a run that trained an adapter on all its projections."""
    directory = tmp_path_factory.mktemp("case")
    base = TINY_BASE
    if request.param != "tiny, tied":
        base, config = directory / "base", CONFIG
        if request.param == "Qwen2, biases":
            config = dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=False)
        params = enlarged(init_params(config, jax.random.key(0)), 4)
        params = jax.tree_util.tree_map_with_path(_with_biases, params)
        save_model(base, config, params, max_shard_bytes=10**9, overwrite=False)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(TINY_BASE / name, base)
    adapter = random_adapter(read_sizes(base), SPEC)
    lora = {"kind": "lora", "rank": 3, "alpha": 6.0, "targets": SPEC.targets, "adapter": ""}
    config = small_config(directory / "runs", trainable=lora, model={"path": str(base)})
    return Case(base, make_run(config, [{"lora": adapter}]), adapter)


def _with_biases(path: Any, leaf: jax.Array) -> jax.Array:
    """Biases start at zero; here they count."""
    return leaf + 0.5 if path[-1].key == "bias" else leaf


def our_logits(base: Path, adapter: Any, spec: LoraSpec | None) -> np.ndarray:
    """[2, 24, V] of the base with an adapter beside it, unmerged."""
    config, params = load_model(str(base))
    model = Qwen3(config, jnp.float32, lora=spec)
    variables = {"params": params} if spec is None else {"params": params, "lora": adapter}
    hidden, _ = apply(model, variables, TOKENS)
    return np.asarray(apply(model, variables, hidden, method="logits"))


def their_model(directory: Path) -> Any:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()


def their_logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(TOKENS).long()).logits.numpy()


def test_merged_opens_with_transformers(case, tmp_path):
    export.main(["--run", str(case.run.path), "--to", str(tmp_path / "to")])
    ours = our_logits(case.base, case.adapter, SPEC)
    assert np.abs(ours - our_logits(case.base, None, None)).max() > 0.1  # the adapter counts
    theirs = their_logits(their_model(tmp_path / "to"))
    np.testing.assert_allclose(theirs, ours, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merged_in_half_precision_opens_in_that_dtype(case, tmp_path, dtype):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    target = tmp_path / "to"
    options = ["--dtype", dtype, "--max-shard-gb", "0.001"]
    export.main(["--run", str(case.run.path), "--to", str(target), *options])
    model = AutoModelForCausalLM.from_pretrained(str(target))
    assert model.dtype == getattr(torch, dtype)
    ours = our_logits(target, None, None)
    np.testing.assert_allclose(their_logits(their_model(target)), ours, atol=TOLERANCE)
    assert AutoTokenizer.from_pretrained(str(target)).chat_template
    assert GenerationConfig.from_pretrained(str(target)).eos_token_id is not None


def test_adapter_opens_with_peft(case, tmp_path):
    peft = pytest.importorskip("peft")
    export.main(["--run", str(case.run.path), "--to", str(tmp_path / "to"), "--form=adapter"])
    model = peft.PeftModel.from_pretrained(their_model(case.base), str(tmp_path / "to"))
    ours = our_logits(case.base, case.adapter, SPEC)
    np.testing.assert_allclose(their_logits(model), ours, atol=TOLERANCE)


def test_adapter_finds_its_base_by_itself(case, tmp_path):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    export.main(["--run", str(case.run.path), "--to", str(tmp_path / "to"), "--form=adapter"])
    model = peft.AutoPeftModelForCausalLM.from_pretrained(
        str(tmp_path / "to"), dtype=torch.float32
    )
    ours = our_logits(case.base, case.adapter, SPEC)
    np.testing.assert_allclose(their_logits(model.eval()), ours, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("targets", "use_rslora"),
    [(sorted(PROJECTIONS), False), (["q_proj", "down_proj"], True), ("all-linear", False)],
)
def test_an_adapter_of_pefts_loads(case, tmp_path, targets, use_rslora):
    peft = pytest.importorskip("peft")
    import torch

    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets,
        use_rslora=use_rslora,
        init_lora_weights=False,  # lora_B is not zero either
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(their_model(case.base), config).eval()
    theirs = their_logits(model)
    model.save_pretrained(str(tmp_path / "theirs"))
    spec, adapter = load_adapter(tmp_path / "theirs", read_sizes(case.base))
    assert spec.scale == pytest.approx(5 / 3**0.5 if use_rslora else 5 / 3)
    assert np.abs(theirs - our_logits(case.base, None, None)).max() > 0.1
    np.testing.assert_allclose(our_logits(case.base, adapter, spec), theirs, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("settings", "key"), [({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias")]
)
def test_what_peft_writes_and_we_do_not_do_is_refused(case, tmp_path, settings, key):
    from stepalign_jax.base.errors import UserError

    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    peft.get_peft_model(their_model(case.base), config).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=f"adapter_config.json asks for {key}"):
        load_adapter(tmp_path, read_sizes(case.base))
