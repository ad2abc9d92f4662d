# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The matrix product with a gradient of its own, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.model.products import linear


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(5, 9), (9, 5), (7, 7)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_wide_and_narrow_kernels(num_inputs, num_outputs, dtype):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((2, 3, num_inputs)), dtype)
    kernel = jnp.asarray(generator.standard_normal((num_inputs, num_outputs)), jnp.float32)
    out, pull_back = jax.vjp(lambda x, kernel: linear(x, kernel, x.dtype), x, kernel)
    gradient = jnp.asarray(generator.standard_normal(out.shape), dtype)
    for_x, for_kernel = pull_back(gradient)
    assert for_x.dtype == x.dtype
    assert for_kernel.dtype == jnp.float32
    x64, gradient64 = np.asarray(x, np.float64), np.asarray(gradient, np.float64)
    kernel64 = np.asarray(kernel.astype(dtype), np.float64)
    # The kernel's gradient is never rounded to the compute dtype, the others are.
    np.testing.assert_allclose(
        for_kernel, np.einsum("bti,bto->io", x64, gradient64), rtol=1e-5, atol=1e-5
    )
    rounded = 1e-5 if dtype == "float32" else 2**-7
    scale = np.abs(kernel64).sum()
    np.testing.assert_allclose(
        np.asarray(out, np.float64), x64 @ kernel64, rtol=rounded, atol=1e-6 * scale
    )
    np.testing.assert_allclose(
        np.asarray(for_x, np.float64),
        gradient64 @ kernel64.T,
        rtol=rounded,
        atol=1e-6 * scale,
    )
