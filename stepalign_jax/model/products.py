# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Matrix products in the forms that XLA compiles well.

`linear` is for training: its gradient is written out. The automatic gradient of a
[B, T, in] @ [in, out] product makes XLA's CPU compiler transpose the larger of its operands on
the fly, column by column: for the packaged model that was half of an optimizer step. It also
rounds the weights' gradient to the compute dtype before it reaches float32 weights.

`rows_product` is for decoding on a CPU, where a product of few rows runs on one core. A large
kernel [in, out] is stored transposed, as blocks of rows of [out, in]; each block is a product
of its own, and the cores share the blocks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# The name of `linear`'s results for a rematerialisation policy: it cannot see the product
# inside a custom_vjp.
PRODUCT = "product"


def linear(x: jax.Array, kernel: jax.Array, out_dtype: Any) -> jax.Array:
    """`x` [B, T, in] times `kernel` [in, out], both in the dtype of `x`: [B, T, out].

    The kernel's gradient is summed over B and T in float32, and has the kernel's
    own dtype: float32 weights get it unrounded, whatever the compute dtype.
    """
    return checkpoint_name(_product(out_dtype, x, kernel), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(out_dtype: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=out_dtype)


def _forward(out_dtype: Any, x: jax.Array, kernel: jax.Array) -> Any:
    return _product(out_dtype, x, kernel), (x, kernel)


def _backward(
    _out_dtype: Any, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    for_x = jnp.einsum("bto,io->bti", gradient, kernel.astype(x.dtype))
    sum_over_tokens = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # XLA's CPU compiler transposes the first operand and computes it anew, column by column:
    # it gets the narrower one. In a step with adapters SwiGLU's output took 2 of 30 s so.
    # In float32 alone: with this order it cannot run every bfloat16 product.
    if kernel.shape[0] <= kernel.shape[1] or x.dtype != jnp.float32:
        for_kernel = sum_over_tokens("bti,bto->io", x, gradient)
    else:
        for_kernel = sum_over_tokens("bto,bti->oi", gradient, x).T
    return for_x, for_kernel.astype(kernel.dtype)


_product.defvjp(_forward, _backward)


Blocks = tuple[jax.Array, ...]

# Elements; smaller kernels stay in the cores' caches, where the plain product is as fast.
_SMALLEST = 2**18


def split_rows(weight: jax.Array, num_blocks: int) -> Blocks:
    """Blocks of rows of `weight` [out, in], as equal as can be."""
    return tuple(jnp.array_split(weight, num_blocks, axis=0))


def rows_product(x: jax.Array, blocks: Blocks, dtype: Any) -> jax.Array:
    """x @ weight.T: [..., in] -> [..., out], accumulated and returned in `dtype`."""
    # block @ x.T, the rows of the weight outermost: XLA divides that axis among the cores.
    flat = x.reshape(-1, x.shape[-1])
    parts = [
        jax.lax.dot_general(block, flat, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
        for block in blocks
    ]
    return jnp.concatenate(parts, axis=0).T.reshape(*x.shape[:-1], -1)


def block_large(params: dict[str, Any], num_blocks: int) -> tuple[dict, dict]:
    """Moves large kernels of unrolled params, and a large head, into blocks.

    Returns:
      The params without the moved kernels (a tied head stays as the embedding), and the
      collection `decode` with their blocks, under the same paths.
    """
    rest, decode = _block_kernels(params, num_blocks)
    head = params.get("lm_head", params["embedding"])
    if head.size >= _SMALLEST:
        rest.pop("lm_head", None)
        decode["head"] = split_rows(head, num_blocks)
    return rest, decode


def _block_kernels(params: dict[str, Any], num_blocks: int) -> tuple[dict, dict]:
    rest: dict[str, Any] = {}
    decode: dict[str, Any] = {}
    for name, value in params.items():
        if name == "kernel" and value.size >= _SMALLEST:
            decode["rows"] = split_rows(value.T, num_blocks)
        elif isinstance(value, dict):
            rest[name], inner = _block_kernels(value, num_blocks)
            decode |= {name: inner} if inner else {}
        else:
            rest[name] = value
    return rest, decode
