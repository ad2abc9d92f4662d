# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The engine gives each request its own tokens, whatever it is batched with."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import merged

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import SamplingConfig
from stepalign_jax.model.attention import streamed_attention
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.model.qwen3 import Qwen3, init_params, unstack_layers
from stepalign_jax.sampling import engine as engine_module
from stepalign_jax.sampling.engine import Engine, Purpose, _decode_layout, _num_lanes

CONFIG = Qwen3Config(
    vocab_size=24,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_positions=64,
    qkv_bias=False,
    qk_norm=True,
    yarn=None,
)
PAD = 0
SPEC = LoraSpec(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"))
PARAMS = jax.tree.map(lambda leaf: leaf * 8, init_params(CONFIG, jax.random.key(0)))
# `b` starts at zero; moved off it, so that the adapter does something.
LORA = jax.tree.map(lambda leaf: leaf + 0.1, init_lora(CONFIG, SPEC, jax.random.key(1)))
BASE = {"params": PARAMS}
ENGINE = Engine(CONFIG, jnp.float32, SPEC, stop_ids=(1, 2), pad_id=PAD)
SAMPLING = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8, batch_size=4)

# Requests whose prompts need the buckets 16, 24 and 32.
LENGTHS = [3, 30, 16, 7, 17, 1, 22, 12, 5]
PROMPTS = [np.random.default_rng(length).integers(3, 24, length).tolist() for length in LENGTHS]
ADDRESSES = np.stack(
    [np.full(9, 2), 1_000 + np.arange(9), np.arange(9) % 2, np.zeros(9)], axis=1
).astype(np.uint32)


def sample(rows: list[int], variables: dict[str, Any] = BASE, **changes: Any) -> Rollouts:
    """Samples the requests `rows` of PROMPTS, in that order."""
    options: dict[str, Any] = dict(seed=11, purpose=Purpose.SOLVER, settings=SAMPLING)
    prompts = [PROMPTS[row] for row in rows]
    return ENGINE.sample(variables, prompts, ADDRESSES[rows], **{**options, **changes})


@pytest.fixture(scope="module")
def expected() -> Rollouts:
    return sample(list(range(9)))


def assert_rows_equal(rollouts: Rollouts, expected: Rollouts, rows: list[int]) -> None:
    for field in ("tokens", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(rollouts, field), getattr(expected, field)[rows])
    for field in ("logprobs", "sampling_logprobs"):
        values, wanted = getattr(rollouts, field), getattr(expected, field)[rows]
        np.testing.assert_allclose(values, wanted, atol=1e-4, rtol=0)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.permutations(range(9)), st.integers(1, 9))
def test_order_neighbours_and_padding_change_no_token(expected, order, count):
    rows = list(order[:count])
    assert_rows_equal(sample(rows), expected, rows)


def test_batch_size_changes_no_token(expected):
    rows = list(range(9))
    other = sample(rows, settings=dataclasses.replace(SAMPLING, batch_size=9))
    assert_rows_equal(other, expected, rows)


@pytest.mark.parametrize("num_lanes", [1, 2, 3])
def test_lanes_change_no_token(expected, num_lanes, monkeypatch):
    monkeypatch.setattr("stepalign_jax.sampling.engine._num_lanes", lambda _prepared: num_lanes)
    sessions: list[list[int]] = []

    class Counted(engine_module.Session):
        def __init__(self, *args: Any, **options: Any):
            sessions.append(args[4])
            super().__init__(*args, **options)

    monkeypatch.setattr(engine_module, "Session", Counted)
    rows = [*range(9), 0, 0, 3]
    assert_rows_equal(sample(rows), expected, rows)
    assert len(sessions) == num_lanes
    assert sorted(itertools.chain(*sessions)) == list(range(len(rows)))


def test_only_a_model_without_blocks_has_lanes(monkeypatch):
    monkeypatch.setattr("stepalign_jax.sampling.engine._num_blocks", lambda: 2)
    assert _num_lanes(ENGINE.prepare(BASE)) == 2
    monkeypatch.setattr("stepalign_jax.model.products._SMALLEST", 0)
    jax.clear_caches()  # the layout was compiled with the other size
    assert _num_lanes(ENGINE.prepare(BASE)) == 1
    monkeypatch.setattr("stepalign_jax.sampling.engine._num_blocks", lambda: 0)
    jax.clear_caches()
    assert _num_lanes(ENGINE.prepare(BASE)) == 1


def test_what_fails_in_a_lane_is_raised(monkeypatch):
    monkeypatch.setattr("stepalign_jax.sampling.engine._num_lanes", lambda _prepared: 2)

    def fail(_done: int) -> None:
        raise RuntimeError("the reader of progress is gone")

    with pytest.raises(RuntimeError, match="is gone"):
        sample(list(range(9)), progress=fail)


def test_completions_vary_in_length_and_in_content(expected):
    # What the tests above compare must be able to differ.
    assert len(set(expected.lengths.tolist())) > 2
    assert len({tuple(row) for row in expected.tokens.tolist()}) == 9
    assert expected.finished.any() and not expected.finished.all()


def test_results_are_numpy_rows_in_the_order_of_the_prompts(expected):
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(expected))
    assert expected.tokens.shape == (9, 8) and expected.lengths.shape == (9,)
    logprobs = full_forward_logprobs(PARAMS, expected)
    np.testing.assert_allclose(expected.logprobs, logprobs, atol=1e-4, rtol=0)


def full_forward_logprobs(
    params: dict[str, Any], rollouts: Rollouts, config: Qwen3Config = CONFIG
) -> np.ndarray:
    """[N, T] log-probabilities of the completions by an uncached forward; 0 after the end."""
    model = Qwen3(config, jnp.float32)
    tokens = np.zeros((9, 48), np.int32)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = prompt
        tokens[row, len(prompt) : len(prompt) + 8] = rollouts.tokens[row]

    @jax.jit
    def forward(params: Any) -> jax.Array:
        hidden, _ = model.apply({"params": params}, tokens)
        logits: Any = model.apply({"params": params}, hidden, method=model.logits)
        return jax.nn.log_softmax(logits)

    log_probs = np.asarray(forward(params))
    result = np.zeros((9, 8), np.float32)
    for row, prompt in enumerate(PROMPTS):
        for t in range(rollouts.lengths[row]):
            position = len(prompt) + t
            result[row, t] = log_probs[row, position - 1, tokens[row, position]]
    return result


def test_the_adapter_is_on_exactly_where_it_is_given(expected):
    adapted = sample(list(range(9)), {**BASE, "lora": LORA})
    np.testing.assert_allclose(
        adapted.logprobs,
        full_forward_logprobs(merged(PARAMS, LORA, SPEC), adapted),
        atol=1e-3,
        rtol=0,
    )
    assert np.any(adapted.tokens != expected.tokens)


def test_purpose_and_seed_change_the_noise(expected):
    rows = list(range(9))
    for other in (sample(rows, purpose=Purpose.CRITIC), sample(rows, seed=12)):
        assert np.any(other.tokens != expected.tokens)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The compilations within the block, as JAX itself reports them."""
    events: list[str] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_compiles_after_the_first_call_with_such_widths(expected):
    changed = dataclasses.replace(SAMPLING, max_new_tokens=7)
    with compilations() as first:
        sample(list(range(9)), settings=changed)
    assert first  # what is counted can be counted
    other = {"params": jax.tree.map(lambda leaf: leaf * 0.5, PARAMS)}
    with compilations() as second:
        # Fewer requests, other lengths of the same widths, weights, seed and order.
        sample([8, 1, 4, 0, 2, 6], other, settings=changed, seed=5)
        sample([3, 1, 4, 0, 2, 6, 8, 5, 7], other, settings=changed, purpose=Purpose.CRITIC)
    assert second == []


def test_progress_reports_the_requests_done_so_far():
    reports: list[int] = []
    sample(list(range(9)), progress=reports.append)
    assert reports == sorted(reports) and reports[-1] == 9 and len(reports) > 2


def test_a_stream_is_the_sample_in_pieces(expected):
    options: dict[str, Any] = dict(seed=11, purpose=Purpose.SOLVER, settings=SAMPLING)
    prepared = ENGINE.prepare(BASE)
    for row in (0, 1):
        pieces = list(ENGINE.stream(prepared, PROMPTS[row], ADDRESSES[row], turns=3, **options))
        tokens = [token for piece in pieces for token in piece]
        assert tokens == expected.tokens[row, : expected.lengths[row]].tolist()
        assert [len(piece) for piece in pieces[:-1]] == [1, 3, 3][: len(pieces) - 1]


@pytest.mark.parametrize("tied", [True, False])
def test_weights_in_blocks_sample_like_the_full_forward(tied, monkeypatch):
    # At this size kernels stay as they are; here the smallest is cut like the largest.
    monkeypatch.setattr("stepalign_jax.model.products._SMALLEST", 0)
    monkeypatch.setattr("stepalign_jax.sampling.engine._num_blocks", lambda: 3)
    streamed = []
    monkeypatch.setattr(
        "stepalign_jax.model.attention.streamed_attention",
        lambda *arrays: streamed.append(None) or streamed_attention(*arrays),
    )
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied, head_dim=16)
    params = jax.tree.map(lambda leaf: leaf * 4, init_params(config, jax.random.key(0)))
    lora = jax.tree.map(lambda leaf: leaf + 0.1, init_lora(config, SPEC, jax.random.key(1)))
    engine = Engine(config, jnp.float32, SPEC, stop_ids=(1, 2), pad_id=PAD)
    prepared = engine.prepare({"params": params, "lora": lora})
    assert "lm_head" not in prepared.variables["params"]
    assert prepared.variables["params"]["layer_0"]["mlp"] == {
        "gate_proj": {}, "up_proj": {}, "down_proj": {}
    }  # fmt: skip
    blocks = prepared.variables["decode"]["layer_1"]["mlp"]["up_proj"]["rows"]
    assert [block.shape for block in blocks] == [(16, 32)] * 3
    rollouts = engine.sample(
        prepared, PROMPTS, ADDRESSES, seed=1, purpose=Purpose.SOLVER, settings=SAMPLING
    )
    assert streamed
    logprobs = full_forward_logprobs(merged(params, lora, SPEC), rollouts, config)
    np.testing.assert_allclose(rollouts.logprobs, logprobs, atol=3e-4, rtol=0)


def test_the_decode_layout_rounds_ahead_what_the_model_rounds_anyway():
    layout = _decode_layout(BASE, num_layers=2, dtype=jnp.dtype("bfloat16"), num_blocks=0)
    model = Qwen3(CONFIG, jnp.bfloat16, scan_layers=False)
    unrounded = {"params": unstack_layers(PARAMS, 2)}
    tokens = np.array([PROMPTS[1]], np.int32)
    forward = jax.jit(lambda variables: model.apply(variables, tokens)[0])
    np.testing.assert_array_equal(forward(layout), forward(unrounded))
    assert layout["params"]["layer_0"]["mlp"]["up_proj"]["kernel"].dtype == jnp.bfloat16
    assert layout["params"]["final_norm"]["scale"].dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_biased_model_samples_with_the_log_probs_that_it_is_scored_with(dtype):
    config = dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=False)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.7 if path[-1].key == "bias" else leaf * 8,
        init_params(config, jax.random.key(0)),
    )
    engine = Engine(config, dtype, None, stop_ids=(1, 2), pad_id=PAD)
    rollouts = engine.sample(
        {"params": params}, [PROMPTS[0]], ADDRESSES[:1], seed=11, purpose=Purpose.SOLVER,
        settings=SAMPLING,
    )  # fmt: skip
    start, length = len(PROMPTS[0]), int(rollouts.lengths[0])
    tokens = np.array([[*PROMPTS[0], *rollouts.tokens[0]]], np.int32)
    model = Qwen3(config, jnp.dtype(dtype))

    @jax.jit
    def score(params: Any) -> Any:
        hidden, _ = model.apply({"params": params}, tokens)  # pyright: ignore[reportAssignmentType]
        logits: Any = model.apply({"params": params}, hidden, method="logits")
        return jax.nn.log_softmax(logits)[0, start - 1 : -1]

    expected = np.asarray(score(params))[np.arange(8), np.asarray(rollouts.tokens[0])]
    # Rounding differs between compiled shapes; a bias that is rounded in one of the two
    # alone would add its own error, of 0.7 x 2**-9 in bf16, to every channel.
    tolerance = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.01}[dtype]
    assert length > 2
    np.testing.assert_allclose(
        rollouts.logprobs[0, :length], expected[:length], rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_decode_layout_changes_no_bit_of_a_biased_model(dtype):
    config = dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=False)
    params = jax.tree.map(lambda leaf: leaf * 8 + 0.3, init_params(config, jax.random.key(0)))
    layout = _decode_layout(
        {"params": params}, num_layers=2, dtype=jnp.dtype(dtype), num_blocks=0
    )
    model = Qwen3(config, jnp.dtype(dtype), scan_layers=False)
    tokens = np.array([PROMPTS[1]], np.int32)
    forward = jax.jit(lambda variables: model.apply(variables, tokens)[0])
    unrounded = {"params": unstack_layers(params, 2)}
    np.testing.assert_array_equal(forward(layout), forward(unrounded))
    assert layout["params"]["layer_0"]["attention"]["q_proj"]["bias"].dtype == jnp.float32


def test_no_requests_give_no_rows(monkeypatch):
    monkeypatch.setattr(ENGINE, "prepare", None)  # which would copy the weights
    assert sample([]).tokens.shape == (0, 8)


def test_prompts_that_do_not_fit_are_refused():
    address = ADDRESSES[:1]
    options: dict[str, Any] = dict(seed=0, purpose=Purpose.SOLVER, settings=SAMPLING)
    with pytest.raises(UserError, match=r"57 tokens.* 64 positions"):
        ENGINE.sample(BASE, [[3] * 57], address, **options)
    with pytest.raises(UserError, match="Prompt 0 is empty"):
        ENGINE.sample(BASE, [[]], address, **options)
    with pytest.raises(ValueError, match="for 2 prompts"):
        ENGINE.sample(BASE, [[3], [4]], address, **options)
