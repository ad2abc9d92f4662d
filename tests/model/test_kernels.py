# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Platforms' attention kernels beside XLA's: splash in Pallas' interpreter, cuDNN lowered."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIG
from support.runs import output_on_devices

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.huggingface import language_model
from stepalign_jax.huggingface.language_model import open_language_model
from stepalign_jax.model import attention as attn
from stepalign_jax.model import kernels
from stepalign_jax.model.qwen3 import Qwen3, init_params, unstack_layers
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.sampling.decode import prefill

interpreted: Any = functools.partial(kernels.splash_attention, interpret=True)


def draw(
    dtype: Any, *, queries: int, keys: int, heads: int = 4, kv_heads: int = 2, size: int = 128
) -> list[jax.Array]:
    """q, k, v of two rows, and what the result is multiplied with to differentiate it."""
    generator = np.random.default_rng(0)
    shapes = (
        (2, queries, heads, size),
        (2, kv_heads, size, keys),
        (2, kv_heads, keys, size),
        (2, queries, heads, size),
    )
    return [jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes]


def by_xla(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: Any) -> jax.Array:
    if segment_ids is not None:
        return attn.causal_attention(q, k, v, attn.causal_mask(q.shape[1], segment_ids))
    num_slots = v.shape[2]
    positions = jnp.arange(num_slots - q.shape[1], num_slots)[None]
    return attn.attention(q, k, v, attn.cache_mask(positions, num_slots))


def out_and_gradients(form: Any, inputs: list[jax.Array], segment_ids: Any = None) -> list[Any]:
    """In float64, for comparison alone."""
    *arrays, factor = inputs

    def total(arrays: Any) -> tuple[jax.Array, jax.Array]:
        out = form(*arrays, segment_ids)
        return jnp.sum(out.astype(jnp.float32) * factor.astype(jnp.float32)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(arrays)
    assert out.dtype == inputs[0].dtype
    return [np.asarray(array, np.float64) for array in (out, *gradients)]


def assert_near(found: list[Any], expected: list[Any], share: float) -> None:
    """Errors as a share of the largest entry."""
    for array, exact in zip(found, expected, strict=True):
        assert np.abs(array - exact).max() < share * np.abs(exact).max()


@pytest.mark.parametrize(
    ("queries", "keys", "sizes"),
    [
        (256, 256, {}),
        (203, 203, {}),  # padded to 256
        (300, 300, {"heads": 2, "kv_heads": 2, "size": 64}),  # two blocks, narrow heads
        (70, 203, {}),  # a prefill behind a prefix of 133
    ],
)
def test_splash_gives_xlas_numbers_and_gradients(queries, keys, sizes):
    inputs = draw(jnp.float32, queries=queries, keys=keys, **sizes)
    found, expected = (out_and_gradients(form, inputs) for form in (interpreted, by_xla))
    assert_near(found, expected, 3e-6)


def test_splash_keeps_to_segments():
    inputs = draw(jnp.float32, queries=203, keys=203)
    ids = jnp.asarray(np.repeat([[1, 2, 0], [1, 1, 2]], [90, 100, 13], axis=1))
    found = [out_and_gradients(form, inputs, ids) for form in (interpreted, by_xla)]
    assert_near(found[0], found[1], 3e-6)
    assert np.abs(found[0][0] - out_and_gradients(interpreted, inputs)[0]).max() > 0.1


def test_bfloat16_rounds_as_xlas_does():
    """Both are as far from float32 as two roundings of bfloat16 are, 1 / 256 each."""
    inputs = draw(jnp.bfloat16, queries=203, keys=203)
    exact = out_and_gradients(by_xla, [array.astype(jnp.float32) for array in inputs])
    for form in (interpreted, by_xla):
        assert_near(out_and_gradients(form, inputs), exact, 1 / 64)


def test_what_right_padding_holds_changes_no_real_row():
    inputs = draw(jnp.float32, queries=203, keys=203)
    q, k, v, factor = inputs
    late = np.arange(203) >= 150
    changed = [
        jnp.where(late[:, None, None], 7.0, q),
        jnp.where(late, -7.0, k),
        jnp.where(late[:, None], 7.0, v),
        jnp.where(late[:, None, None], 0.0, factor),  # and no loss reads it
    ]
    plain = out_and_gradients(interpreted, [q, k, v, changed[3]])
    found = out_and_gradients(interpreted, changed)
    np.testing.assert_array_equal(found[0][:, :150], plain[0][:, :150])
    for array, axis in zip(found[1:], (1, 3, 2), strict=True):
        assert not np.compress(late, array, axis).any()


@pytest.mark.parametrize(
    ("length", "block"),
    [(1, 128), (129, 256), (256, 256), (257, 384), (640, 384), (1024, 512), (1408, 512)],
)
def test_blocks_pad_little(length, block):
    assert kernels.block_length(length) == block


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 40)))
PARAMS = init_params(CONFIG, jax.random.key(0))


@pytest.mark.long
@pytest.mark.parametrize("segments", [False, True])
def test_the_model_trains_by_a_kernel(segments, monkeypatch):
    monkeypatch.setattr(kernels, "splash_attention", interpreted)
    ids = jnp.asarray(np.repeat([[1, 2]] * 2, [25, 15], axis=1)) if segments else None

    def gradients(kernel: str) -> Any:
        model: Any = Qwen3(CONFIG, jnp.float32, remat="full", kernel=kernel)

        def loss(params: Any) -> jax.Array:
            hidden, _ = model.apply({"params": params}, TOKENS, segment_ids=ids)
            return jnp.sum(hidden[..., 0])

        return jax.jit(jax.value_and_grad(loss))(PARAMS)

    (found, by_kernel), (exact, by_xla) = map(gradients, ("splash", "xla"))
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    for leaf, expected in zip(*map(jax.tree.leaves, (by_kernel, by_xla)), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-4 * np.abs(expected).max())


def test_the_model_prefills_by_a_kernel(monkeypatch):
    """In two parts: the second stands behind the first, as samples of one prompt do."""
    monkeypatch.setattr(kernels, "splash_attention", interpreted)
    variables = {"params": unstack_layers(PARAMS, CONFIG.num_layers)}

    def prefilled(kernel: str) -> Any:
        model = Qwen3(CONFIG, jnp.float32, scan_layers=False, kernel=kernel)
        prefix = prefill(model, variables, TOKENS[:1, :23], None, jnp.float32)
        return prefill(model, variables, TOKENS[:, 23:], prefix, jnp.float32)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        prefilled("splash"),
        prefilled("xla"),
    )


def lowered_for_cuda(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    from jax._src.cudnn import fused_attention_stablehlo as fused

    # What the machine lacks, and the lowering asks of it.
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda _: False)
    model = Qwen3(dataclasses.replace(CONFIG, head_dim=128), dtype, kernel="cudnn")
    tokens = jnp.zeros((2, 203), jnp.int32)  # odd, which JAX's binding does not differentiate
    params = init_params(model.config, jax.random.key(0))
    loss: Any = lambda p: jnp.sum(model.apply({"params": p}, tokens)[0].astype(jnp.float32))  # noqa: E731
    program = jax.jit(jax.grad(loss))
    checks = [
        jax.export.DisabledSafetyCheck.custom_call(name)
        for name in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
    ]
    return jax.export.export(program, platforms=["cuda"], disabled_checks=checks)(
        params
    ).mlir_module()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_cudnn_is_called_forward_and_backward(dtype, monkeypatch):
    text = lowered_for_cuda(dtype, monkeypatch)
    assert "__cudnn$fmhaSoftmax(" in text or '"__cudnn$fmhaSoftmax"' in text
    assert "__cudnn$fmhaSoftmaxBackward" in text
    assert "203x203" not in text and "204x204" not in text  # no scores


def device(platform: str, capability: str | None = None) -> Any:
    return SimpleNamespace(
        platform=platform, device_kind=f"a {platform}", compute_capability=capability
    )


AMPERE, T4, TPU, CPU = device("gpu", "8.0"), device("gpu", "7.5"), device("tpu"), device("cpu")
ROCM = device("gpu", "gfx90a")


@pytest.mark.parametrize(
    ("found", "dtype", "kernel"),
    [
        (CPU, "bfloat16", "xla"),
        (TPU, "bfloat16", "splash"),
        (TPU, "float32", "splash"),
        (TPU, "float16", "xla"),
        (AMPERE, "bfloat16", "cudnn"),
        (AMPERE, "float16", "cudnn"),
        (AMPERE, "float32", "xla"),
        (device("gpu", "10.0"), "bfloat16", "cudnn"),
        (T4, "float16", "xla"),
        (ROCM, "bfloat16", "xla"),
    ],
)
def test_each_platform_takes_its_own(found, dtype, kernel):
    assert kernels.choose_kernel("auto", [found], dtype=dtype, head_dim=128) == kernel
    assert kernels.choose_kernel("xla", [found], dtype=dtype, head_dim=128) == "xla"


@pytest.mark.parametrize(
    ("setting", "found", "dtype", "head_dim", "says"),
    [
        (
            "splash",
            CPU,
            "float32",
            128,
            "the device is a CPU, and splash attention needs a TPU",
        ),
        ("splash", TPU, "float16", 128, "splash attention does not compute in float16"),
        ("cudnn", TPU, "bfloat16", 128, "the device is a TPU, and cuDNN needs an NVIDIA GPU"),
        ("cudnn", ROCM, "bfloat16", 128, "the device is a GPU, and cuDNN needs an NVIDIA GPU"),
        ("cudnn", T4, "float16", 128, "the GPU is older than Ampere"),
        ("cudnn", AMPERE, "float32", 128, "half precision alone, and model.compute_dtype is"),
        ("cudnn", AMPERE, "bfloat16", 20, "heads are 20 wide"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(setting, found, dtype, head_dim, says):
    with pytest.raises(UserError) as refused:
        kernels.choose_kernel(setting, [found], dtype=dtype, head_dim=head_dim)
    sentence = str(refused.value)
    assert says in sentence and sentence.startswith(f"model.attention is '{setting}', but ")


def test_a_model_is_opened_with_its_kernel_or_refused():
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    opened = functools.partial(open_language_model, "packaged:tiny", dtype="float32", mesh=mesh)
    model = opened(attention="auto")
    assert model.kernel == model.module("full").kernel == "xla"
    with pytest.raises(UserError, match="is 'splash', but the device is a CPU"):
        opened(attention="splash")


def test_scoring_training_and_sampling_have_the_kernel_of_the_devices(monkeypatch):
    monkeypatch.setattr(language_model, "choose_kernel", lambda *_, **__: "splash")
    mesh = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    model = open_language_model("packaged:tiny", dtype="float32", mesh=mesh)
    assert model.module("none").kernel == "splash"
    assert model.engine._model.kernel == "splash"


ON_A_MESH = """
    import functools
    import jax, jax.numpy as jnp, numpy as np
    from model.test_kernels import by_xla, draw, interpreted
    from stepalign_jax.config.schema import ParallelConfig
    from stepalign_jax.parallel.mesh import make_mesh, use_mesh

    def total(form, arrays, factor):
        return jnp.sum(form(*arrays, None) * factor)

    *arrays, factor = draw(jnp.float32, queries=130, keys=130)
    one = jax.grad(functools.partial(total, by_xla))(arrays, factor)
    # Two rows over two and over four shards, two key heads over two and over four devices.
    for sizes in ((2, 2, 2), (2, 1, 4), (1, 2, 4)):
        mesh = make_mesh(ParallelConfig(**dict(zip(("data", "fsdp", "tensor"), sizes))))
        with use_mesh(mesh):
            many = jax.jit(jax.grad(functools.partial(total, interpreted)))(arrays, factor)
        for found, exact in zip(many, one):
            np.testing.assert_allclose(found, exact, atol=2e-5)
    print("equal")
"""


@pytest.mark.slow
def test_splash_over_rows_and_heads_of_eight_devices():
    assert output_on_devices(ON_A_MESH, num_devices=8, timeout_secs=900) == "equal"
