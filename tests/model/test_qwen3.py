# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The forward pass: against transformers' values, and against itself in its other forms."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.goldens import (
    CASES,
    GREEDY_TOKENS,
    case_tokens,
    checksum,
    compared_positions,
    golden_path,
    random_tensors,
    torch_greedy,
    torch_logits,
    torch_model,
)
from support.models import CONFIG, VARIANTS, apply, enlarged

from stepalign_jax.huggingface.weights import load_model
from stepalign_jax.model.cache import init_cache
from stepalign_jax.model.qwen3 import (
    Qwen3,
    Qwen3Config,
    init_params,
    output_head,
    stack_layers,
    unstack_layers,
)


@pytest.fixture(scope="module")
def params() -> Any:
    """Random params, large enough that a wrong mask or position shows."""
    return enlarged(init_params(CONFIG, jax.random.key(0)), 8)


@pytest.fixture(scope="module")
def tokens() -> jax.Array:
    """[3, 14] ids, each at most once in a row."""
    rng = np.random.default_rng(0)
    return jnp.asarray([rng.permutation(CONFIG.vocab_size)[:14] for _ in range(3)], jnp.int32)


@jax.jit
def forward(params: Any, tokens: jax.Array, **kwargs: Any) -> jax.Array:
    """[B, T, D] hidden states in scanned form."""
    return apply(Qwen3(CONFIG, jnp.float32), {"params": params}, tokens, **kwargs)[0]


def load_case(name: str, directory: Any) -> tuple[Qwen3Config, Any, dict[str, np.ndarray]]:
    """(config, params, tensors) of a golden case, through the checkpoint loader."""
    import json

    case = CASES[name]
    tensors = random_tensors(case["hf"], case["seed"])
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(case["hf"]))
    return *load_model(str(directory)), tensors


def case_logits(config: Qwen3Config, params: Any, case: dict[str, Any]) -> np.ndarray:
    """Our logits at the case's compared positions."""
    model = Qwen3(config, jnp.float32)

    @jax.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        hidden, _ = apply(model, {"params": params}, tokens)
        return apply(model, {"params": params}, hidden[:, positions], method="logits")

    positions = compared_positions(case)
    return np.asarray(run(params, jnp.asarray(case_tokens(case))))


def greedy(config: Qwen3Config, params: Any, prompt: np.ndarray) -> np.ndarray:
    """[GREEDY_TOKENS] ids by argmax: prefill, then a jitted loop over the cache."""
    model = Qwen3(config, jnp.float32, scan_layers=False)
    variables = {"params": unstack_layers(params, config.num_layers)}
    length = prompt.shape[1]

    def step(cache: Any, tokens: jax.Array, positions: jax.Array) -> tuple[Any, jax.Array]:
        hidden, cache = apply(model, variables, tokens, positions=positions, cache=cache)
        logits = apply(model, variables, hidden[:, -1], method="logits")
        return cache, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    @jax.jit
    def run(prompt: jax.Array) -> jax.Array:
        cache = init_cache(config, 1, length + GREEDY_TOKENS, jnp.float32)
        cache, token = step(cache, prompt, jnp.arange(length, dtype=jnp.int32)[None])

        def body(carry: Any, position: jax.Array) -> tuple[Any, jax.Array]:
            cache, token = carry
            return step(cache, token[:, None], position[None, None]), token[0]

        positions = jnp.arange(length, length + GREEDY_TOKENS, dtype=jnp.int32)
        return jax.lax.scan(body, (cache, token), positions)[1]

    return np.asarray(run(jnp.asarray(prompt)))


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_golden_of_transformers(name, tmp_path):
    golden = np.load(golden_path(name))
    config, params, tensors = load_case(name, tmp_path)
    assert checksum(tensors) == pytest.approx(float(golden["checksum"]), rel=1e-12), (
        "the drawn weights changed, so this golden says nothing; see make_goldens.py"
    )
    ours = case_logits(config, params, CASES[name])
    np.testing.assert_allclose(ours, golden["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["greedy"]])
def test_greedy_decode_equals_the_golden_token_for_token(name, tmp_path):
    golden = np.load(golden_path(name))
    config, params, _ = load_case(name, tmp_path)
    ours = greedy(config, params, case_tokens(CASES[name])[:1])
    np.testing.assert_array_equal(ours, golden["greedy"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_live_transformers_agrees(name, tmp_path):
    pytest.importorskip("torch")
    config, params, tensors = load_case(name, tmp_path)
    case = CASES[name]
    theirs = torch_model(case["hf"], tensors)
    ours = case_logits(config, params, case)
    np.testing.assert_allclose(ours, torch_logits(theirs, case), rtol=0, atol=1e-4)
    if case["greedy"]:
        expected = torch_greedy(theirs, case)
        np.testing.assert_array_equal(greedy(config, params, case_tokens(case)[:1]), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_decode_equals_full_forward_at_every_position(name, tokens):
    config = VARIANTS[name]
    params = enlarged(init_params(config, jax.random.key(0)), 8)
    model = Qwen3(config, jnp.float32, scan_layers=False)
    variables = {"params": unstack_layers(params, config.num_layers)}
    step = jax.jit(lambda t, p, c: apply(model, variables, t, positions=p, cache=c))
    full = jax.jit(lambda p: apply(Qwen3(config, jnp.float32), {"params": p}, tokens)[0])(
        params
    )
    # Rows prefill different lengths, so that the same call writes different slots.
    lengths = np.array([4, 5, 6])
    prefill = jnp.broadcast_to(jnp.arange(6, dtype=jnp.int32)[None], (3, 6))
    hidden, cache = step(tokens[:, :6], prefill, init_cache(config, 3, 16, jnp.float32))
    np.testing.assert_allclose(hidden, full[:, :6], atol=2e-5)
    rows = np.arange(3)
    for offset in range(8):
        at = lengths + offset
        positions = jnp.asarray(at, jnp.int32)[:, None]
        hidden, cache = step(tokens[rows, at][:, None], positions, cache)
        np.testing.assert_allclose(hidden[:, 0], full[rows, at], atol=2e-5)


def test_cache_refuses_scanned_layers_and_segments(params, tokens):
    cache = init_cache(CONFIG, 3, 16, jnp.float32)
    with pytest.raises(ValueError, match="scan_layers=False"):
        forward(params, tokens, cache=cache)
    unrolled = {"params": unstack_layers(params, CONFIG.num_layers)}
    model = Qwen3(CONFIG, jnp.float32, scan_layers=False)
    with pytest.raises(ValueError, match="no segment_ids"):
        apply(model, unrolled, tokens, cache=cache, segment_ids=tokens)


def test_right_padding_changes_nothing(params, tokens):
    padded = jnp.concatenate([tokens, jnp.zeros((3, 5), jnp.int32)], axis=1)
    np.testing.assert_allclose(
        forward(params, padded)[:, :14], forward(params, tokens), atol=1e-5
    )


def influence(params: Any, row: jax.Array, **kwargs: Any) -> np.ndarray:
    """[T, T]: how much the hidden state at t depends on the embedding of token s."""

    @jax.jit
    def gradient(embedding: jax.Array, t: jax.Array) -> jax.Array:
        def hidden(embedding: jax.Array) -> jax.Array:
            return forward({**params, "embedding": embedding}, row[None], **kwargs)[0, t].sum()

        return jnp.abs(jax.grad(hidden)(embedding)[row]).sum(-1)

    return np.stack([gradient(params["embedding"], t) for t in range(row.size)])


def test_no_gradient_reaches_a_later_token(params, tokens):
    matrix = influence(params, tokens[0])
    later = np.triu(np.ones((14, 14), bool), k=1)
    assert (matrix[later] == 0).all()
    assert (matrix[~later] > 0).all()


def test_no_gradient_crosses_packed_segments(params, tokens):
    segments = jnp.asarray([[1] * 6 + [2] * 8], jnp.int32)
    positions = jnp.asarray([[*range(6), *range(8)]], jnp.int32)
    matrix = influence(params, tokens[0], segment_ids=segments, positions=positions)
    allowed = np.tril(np.asarray(segments[0])[:, None] == np.asarray(segments[0])[None])
    assert (matrix[~allowed] == 0).all()
    assert (matrix[allowed] > 0).all()


def test_packed_segments_equal_separate_rows(params, tokens):
    packed = jnp.concatenate([tokens[:1, :6], tokens[1:2, :8]], axis=1)
    segments = jnp.asarray([[1] * 6 + [2] * 8], jnp.int32)
    positions = jnp.asarray([[*range(6), *range(8)]], jnp.int32)
    hidden = forward(params, packed, segment_ids=segments, positions=positions)[0]
    separate = forward(params, tokens)
    np.testing.assert_allclose(hidden[:6], separate[0, :6], atol=1e-5)
    np.testing.assert_allclose(hidden[6:], separate[1, :8], atol=1e-5)


def loss(params: Any, tokens: jax.Array, **fields: Any) -> jax.Array:
    """Mean next-token loss of a Qwen3 with these fields."""
    model = Qwen3(CONFIG, **{"dtype": jnp.float32, **fields})
    hidden, _ = apply(model, {"params": params}, tokens[:, :-1])
    logits = apply(model, {"params": params}, hidden, method="logits")
    logprobs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1))


def loss_and_gradients(params: Any, tokens: jax.Array, **fields: Any) -> tuple[Any, Any]:
    return jax.jit(jax.value_and_grad(functools.partial(loss, **fields)))(params, tokens)


@pytest.fixture(scope="module")
def plain(params, tokens) -> tuple[Any, Any]:
    """Loss and gradients in scanned form, without remat."""
    return loss_and_gradients(params, tokens)


close = functools.partial(np.testing.assert_allclose, atol=1e-5)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_neither_values_nor_gradients(params, tokens, plain, remat):
    jax.tree.map(close, loss_and_gradients(params, tokens, remat=remat), plain)


def test_unrolled_form_equals_scanned_form(params, tokens, plain):
    """Rematerialised too, since only there does the form change how it is done."""
    unrolled = unstack_layers(params, CONFIG.num_layers)
    value, gradients = loss_and_gradients(unrolled, tokens, scan_layers=False, remat="full")
    jax.tree.map(close, (value, stack_layers(gradients, CONFIG.num_layers)), plain)


def test_remat_recomputes(params, tokens):
    def saved(remat: str) -> int:
        """Elements that the forward pass keeps for the backward pass."""

        def pullback(params: Any) -> Any:
            return jax.vjp(lambda p: loss(p, tokens, remat=remat), params)[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(pullback, params)))

    assert saved("full") < saved("dots") < saved("none")


def test_stack_and_unstack_are_inverse(params):
    unrolled = unstack_layers(params, CONFIG.num_layers)
    assert set(unrolled) == {
        "embedding", "lm_head", "final_norm", "layer_0", "layer_1"
    }  # fmt: skip
    restacked = stack_layers(unrolled, CONFIG.num_layers)
    jax.tree.map(np.testing.assert_array_equal, restacked, params)


def test_output_head_is_what_logits_multiplies_with(params, tokens):
    hidden = forward(params, tokens)
    logits = apply(Qwen3(CONFIG, jnp.float32), {"params": params}, hidden, method="logits")
    np.testing.assert_allclose(logits, hidden @ output_head(params).T, atol=1e-4)
    assert output_head({"embedding": 1}) == 1


@pytest.mark.long
def test_bfloat16_compute_stays_near_fp32(tokens):
    """fp16 has a file of its own, test_fp16.py."""
    params = enlarged(init_params(CONFIG, jax.random.key(0)), 4)
    model = Qwen3(CONFIG, jnp.bfloat16)

    @jax.jit
    def run(params: Any) -> tuple[jax.Array, jax.Array, Any]:
        hidden, _ = apply(model, {"params": params}, tokens)
        logits = apply(model, {"params": params}, hidden, method="logits")
        return hidden, logits, jax.grad(loss)(params, tokens, dtype=jnp.bfloat16)

    hidden, logits, gradients = run(params)
    assert hidden.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    exact = forward(params, tokens) @ output_head(params).T
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    # Rounding must show (the compute really is in half precision), and stay small.
    assert 1e-5 < error < 0.06
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def test_init_params_are_stacked_and_in_the_asked_dtype(params):
    init = functools.partial(init_params, CONFIG, dtype=jnp.bfloat16)
    abstract = jax.eval_shape(init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("bfloat16")}
    assert abstract["layers"]["attention"]["q_proj"]["kernel"].shape == (2, 32, 48)
    kernels = params["layers"]["mlp"]["up_proj"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])
