# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The engine gives each request its own tokens, whatever it is batched with."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import CONFIG, full_log_probs, map_leaves, merged

from stepalign_jax.base.compilation import CompilationCounter
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import SamplingConfig
from stepalign_jax.model.attention import streamed_attention
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.model.qwen3 import Qwen3, init_params, unstack_layers
from stepalign_jax.sampling import engine as engine_module
from stepalign_jax.sampling import layout
from stepalign_jax.sampling.decode import decode_chunk
from stepalign_jax.sampling.engine import Engine
from stepalign_jax.sampling.layout import decode_layout, num_sessions
from stepalign_jax.sampling.request import (
    Address,
    Purpose,
    Request,
    SamplingParams,
    make_requests,
    sample_addresses,
)
from stepalign_jax.sampling.scheduler import prompt_layout
from stepalign_jax.sampling.session import Session

PAD = 0
SPEC = LoraSpec(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"))
PARAMS = map_leaves(init_params(CONFIG, jax.random.key(0)), lambda leaf: leaf * 8)
# `b` starts at zero; moved off it, so that the adapter does something.
LORA = map_leaves(init_lora(CONFIG, SPEC, jax.random.key(1)), lambda leaf: leaf + 0.1)
BASE = {"params": PARAMS}
ENGINE = Engine(CONFIG, jnp.float32, SPEC, stop_ids=(1, 2), pad_id=PAD)
SAMPLING = SamplingParams(1.0, 0, 1.0, max_new_tokens=8, stop_ids=())

# Requests whose prompts need the buckets 16, 24 and 32.
LENGTHS = [3, 30, 16, 7, 17, 1, 22, 12, 5]
PROMPTS = [np.random.default_rng(length).integers(3, 24, length).tolist() for length in LENGTHS]
ADDRESSES = [Address(11, Purpose.SOLVER, 2, 1_000 + row, row % 2, 0) for row in range(9)]


def requests_for(
    rows: Sequence[int], params: SamplingParams = SAMPLING, **fields: int
) -> list[Request]:
    """The requests `rows` of PROMPTS, in that order; fields change their addresses."""
    addresses = [ADDRESSES[row]._replace(**fields) for row in rows]
    return make_requests([PROMPTS[row] for row in rows], addresses, params)


def sample(rows: Sequence[int], variables: dict[str, Any] = BASE, **changes: Any) -> Rollouts:
    """Samples the requests `rows` on four slots."""
    options = {"batch_size": 4, **changes}
    return ENGINE.sample(variables, requests_for(rows), **options)


@pytest.fixture(scope="module", autouse=True)
def one_session() -> Iterator[None]:
    """As on a GPU. With as many as a CPU has cores, the slots of a test would depend on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "num_sessions", lambda _variables: 1)
        yield


@pytest.fixture(scope="module")
def expected() -> Rollouts:
    return sample(list(range(9)))


def assert_rows_equal(rollouts: Rollouts, expected: Rollouts, rows: list[int]) -> None:
    for field in ("tokens", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(rollouts, field), getattr(expected, field)[rows])
    np.testing.assert_allclose(rollouts.logprobs, expected.logprobs[rows], atol=1e-4, rtol=0)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.permutations(range(9)), st.integers(1, 9))
def test_order_neighbours_and_padding_change_no_token(expected, order, count):
    rows = list(order[:count])
    assert_rows_equal(sample(rows), expected, rows)


def test_batch_size_changes_no_token(expected):
    rows = list(range(9))
    other = sample(rows, batch_size=9)
    assert_rows_equal(other, expected, rows)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_sessions_beside_each_other_change_no_token(expected, number, monkeypatch):
    monkeypatch.setattr(layout, "num_sessions", lambda _variables: number)
    submitted, layouts = [], []

    class Counted(Session):
        def submit(self, requests: Sequence[Request], layout: Any = None) -> list[int]:
            submitted.append(len(requests))
            layouts.append(layout)
            return super().submit(requests, layout)

    monkeypatch.setattr(engine_module, "Session", Counted)
    rows = [*range(9), 0, 0, 3]
    assert_rows_equal(sample(rows), expected, rows)
    assert len(submitted) == number and sum(submitted) == len(rows)
    # They share their programs: each pads as the prompts of all need it.
    assert layouts == [prompt_layout([tuple(prompt) for prompt in PROMPTS])] * number


def test_only_a_model_without_blocks_has_several_sessions(monkeypatch):
    monkeypatch.setattr(layout, "num_blocks", lambda: 2)
    assert num_sessions(ENGINE.prepare(BASE)) == 2
    monkeypatch.setattr("stepalign_jax.model.products._SMALLEST", 0)
    decode_layout.clear_cache()  # it was compiled with the other size
    assert num_sessions(ENGINE.prepare(BASE)) == 1
    monkeypatch.setattr(layout, "num_blocks", lambda: 0)
    decode_layout.clear_cache()
    assert num_sessions(ENGINE.prepare(BASE)) == 1


def test_what_fails_in_one_of_several_sessions_is_raised(monkeypatch):
    monkeypatch.setattr(layout, "num_sessions", lambda _variables: 2)

    def fail(_done: int) -> None:
        raise RuntimeError("the reader of progress is gone")

    with pytest.raises(RuntimeError, match="is gone"):
        sample(range(9), progress=fail)


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
    params: dict[str, Any],
    rollouts: Rollouts,
    config: Qwen3Config = CONFIG,
    rows: Sequence[int] = range(9),
) -> np.ndarray:
    """[N, T] log-probabilities of the completions by an uncached forward; 0 after the end."""
    prompts = [PROMPTS[row] for row in rows]
    tokens = np.zeros((9, 48), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        tokens[row, len(prompt) : len(prompt) + 8] = rollouts.tokens[row]
    log_probs = np.asarray(full_log_probs(config, "float32", params, tokens))
    result = np.zeros((len(prompts), 8), np.float32)
    for row, prompt in enumerate(prompts):
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
    for requests in (
        requests_for(range(9), purpose=Purpose.CRITIC),
        requests_for(range(9), seed=12),
    ):
        other = ENGINE.sample(BASE, requests, batch_size=4)
        assert np.any(other.tokens != expected.tokens)


def test_requests_of_many_kinds_in_one_call_equal_calls_of_one_kind():
    kinds = [
        SAMPLING._replace(temperature=0.0, max_new_tokens=3),
        SAMPLING._replace(temperature=1.4, top_k=5, stop_ids=(7, 9)),
        SAMPLING._replace(top_p=0.7, max_new_tokens=6),
    ]
    requests = [
        request._replace(params=kinds[row % 3])
        for row, request in enumerate(requests_for(range(9)))
    ]
    mixed = ENGINE.sample(BASE, requests, batch_size=4)
    assert mixed.tokens.shape == (9, 8)
    for index, kind in enumerate(kinds):
        rows = list(range(index, 9, 3))
        alone = ENGINE.sample(BASE, requests_for(rows, kind), batch_size=4)
        columns = slice(kind.max_new_tokens)
        np.testing.assert_array_equal(mixed.tokens[rows][:, columns], alone.tokens)
        np.testing.assert_array_equal(mixed.lengths[rows], alone.lengths)
        np.testing.assert_array_equal(mixed.finished[rows], alone.finished)
        assert (mixed.tokens[rows][:, kind.max_new_tokens :] == PAD).all()


def test_a_completion_is_finished_by_its_own_stop_token_too(expected):
    row = int(np.argmin(expected.finished))
    stop = int(expected.tokens[row, 2])
    first = expected.tokens[row].tolist().index(stop)
    own = requests_for([row, row], SAMPLING._replace(stop_ids=(stop,)))
    own[1] = requests_for([row])[0]
    rollouts = ENGINE.sample(BASE, own, batch_size=4)
    assert rollouts.lengths.tolist() == [first + 1, 8]
    assert rollouts.finished.tolist() == [True, False]


def test_nothing_compiles_after_the_first_call_with_such_widths(expected):
    other = {"params": map_leaves(PARAMS, lambda leaf: leaf * 0.5)}
    decode_chunk.clear_cache()
    with closing(CompilationCounter()) as counter:
        sample(range(9))
        assert counter.take()["compilations"]  # what is counted can be counted
        # Fewer requests, other lengths of the same widths, weights, seed and order.
        changed = SAMPLING._replace(temperature=0.3, top_k=7, top_p=0.4, max_new_tokens=7)
        ENGINE.sample(other, requests_for([8, 1, 4, 0, 2, 6], changed, seed=5), batch_size=4)
        greedy = SAMPLING._replace(temperature=0.0, stop_ids=(4, 5))
        last = requests_for([3, 1, 4, 0, 2, 6, 8, 5, 7], greedy, purpose=Purpose.CRITIC)
        ENGINE.sample(BASE, last, batch_size=4)
        assert counter.take()["compilations"] == 0


def test_progress_reports_the_requests_done_so_far():
    reports: list[int] = []
    sample(list(range(9)), progress=reports.append)
    assert reports == sorted(reports) and reports[-1] == 9 and len(reports) > 2


def test_a_session_gives_the_sample_in_pieces(expected):
    prepared = ENGINE.prepare(BASE)
    for row in (0, 1):
        session = ENGINE.session(prepared, num_slots=4, max_length=41)
        session.submit(requests_for([row]))
        pieces = [session.step(1).tokens_of(0)]
        while not session.over:
            pieces.append(session.step(3).tokens_of(0))
        tokens = list(itertools.chain(*pieces))
        assert tokens == expected.tokens[row, : expected.lengths[row]].tolist()
        assert [len(piece) for piece in pieces[:-1]] == [1, 3, 3][: len(pieces) - 1]


def test_prepared_weights_stay_as_they_are(expected):
    prepared = ENGINE.prepare(BASE)
    assert ENGINE.prepare(prepared) is prepared
    assert_rows_equal(sample(range(9), prepared), expected, list(range(9)))


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.long), False])
def test_weights_in_blocks_sample_like_the_full_forward(tied, monkeypatch):
    # At this size kernels stay as they are; here the smallest is cut like the largest.
    monkeypatch.setattr("stepalign_jax.model.products._SMALLEST", 0)
    monkeypatch.setattr(layout, "num_blocks", lambda: 3)
    streamed = []
    monkeypatch.setattr(
        "stepalign_jax.model.attention.streamed_attention",
        lambda *arrays: streamed.append(None) or streamed_attention(*arrays),
    )
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied, head_dim=16)
    params = map_leaves(init_params(config, jax.random.key(0)), lambda leaf: leaf * 4)
    lora = map_leaves(init_lora(config, SPEC, jax.random.key(1)), lambda leaf: leaf + 0.1)
    engine = Engine(config, jnp.float32, SPEC, stop_ids=(1, 2), pad_id=PAD)
    prepared = engine.prepare({"params": params, "lora": lora})
    assert "lm_head" not in prepared["params"]
    assert prepared["params"]["layer_0"]["mlp"] == {
        "gate_proj": {}, "up_proj": {}, "down_proj": {}
    }  # fmt: skip
    blocks = prepared["decode"]["layer_1"]["mlp"]["up_proj"]["rows"]
    assert [block.shape for block in blocks] == [(16, 32)] * 3
    rows = [row for row, length in enumerate(LENGTHS) if length <= 17]  # one prefill's width
    rollouts = engine.sample(prepared, requests_for(rows, seed=1), batch_size=4)
    assert streamed
    logprobs = full_forward_logprobs(merged(params, lora, SPEC), rollouts, config, rows)
    np.testing.assert_allclose(rollouts.logprobs, logprobs, atol=3e-4, rtol=0)


def test_the_decode_layout_rounds_ahead_what_the_model_rounds_anyway():
    layout = decode_layout(BASE, num_layers=2, dtype=jnp.dtype("bfloat16"), num_blocks=0)
    model = Qwen3(CONFIG, jnp.bfloat16, scan_layers=False)
    unrounded = {"params": unstack_layers(PARAMS, 2)}
    tokens = np.array([PROMPTS[1]], np.int32)
    forward = jax.jit(lambda variables: model.apply(variables, tokens)[0])
    np.testing.assert_array_equal(forward(layout), forward(unrounded))
    assert layout["params"]["layer_0"]["mlp"]["up_proj"]["kernel"].dtype == jnp.bfloat16
    assert layout["params"]["final_norm"]["scale"].dtype == jnp.float32


HALVES = [pytest.param(name, marks=pytest.mark.long) for name in ("bfloat16", "float16")]


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_a_biased_model_samples_with_the_log_probs_that_it_is_scored_with(dtype):
    config = dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=False)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.7 if path[-1].key == "bias" else leaf * 8,
        jax.device_get(init_params(config, jax.random.key(0))),
    )
    engine = Engine(config, dtype, None, stop_ids=(1, 2), pad_id=PAD)
    rollouts = engine.sample({"params": params}, requests_for([0]), batch_size=4)
    start, length = len(PROMPTS[0]), int(rollouts.lengths[0])
    tokens = np.array([[*PROMPTS[0], *rollouts.tokens[0]]], np.int32)
    score = np.asarray(full_log_probs(config, dtype, params, tokens))[0, start - 1 : -1]
    expected = score[np.arange(8), np.asarray(rollouts.tokens[0])]
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
    params = map_leaves(init_params(config, jax.random.key(0)), lambda leaf: leaf * 8 + 0.3)
    layout = decode_layout(
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
    rollouts = sample([])
    assert rollouts.tokens.shape == (0, 0) and rollouts.lengths.shape == (0,)


def test_prompts_that_do_not_fit_are_refused():
    long, empty = (Request(prompt, ADDRESSES[0], SAMPLING) for prompt in ([3] * 505, []))
    with pytest.raises(UserError, match=r"505 tokens.* 512 positions"):
        ENGINE.sample(BASE, [long], batch_size=4)
    with pytest.raises(UserError, match="Prompt 0 is empty"):
        ENGINE.sample(BASE, [empty], batch_size=4)
    with pytest.raises(UserError, match="513 tokens"):
        ENGINE.session(BASE, num_slots=1, max_length=513)


def test_addresses_count_the_samples_of_a_problem_that_stands_twice():
    found = sample_addresses([7, 9, 7], 2, seed=3, purpose=Purpose.EVALUATION, step=5)
    assert [(a.problem, a.sample) for a in found] == [
        (7, 0), (7, 1), (9, 0), (9, 1), (7, 2), (7, 3),
    ]  # fmt: skip
    assert {(a.seed, a.purpose, a.step, a.retry) for a in found} == {(3, 2, 5, 0)}
    assert sample_addresses([], 2, seed=3, purpose=0, step=5) == []
    with pytest.raises(ValueError, match="zip"):
        make_requests([[1]], found, SAMPLING)


def test_parameters_are_those_of_a_section_of_the_config():
    section = SamplingConfig(
        temperature=0.7, top_k=20, top_p=0.9, max_new_tokens=5, batch_size=4
    )
    assert SamplingParams.of(section) == SamplingParams(0.7, 20, 0.9, 5, ())
