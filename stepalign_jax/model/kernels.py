# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention of whole sequences by a platform's own kernels, which never hold all scores.

    xla       every platform             scores [B, K, G T, S] in float32, a quarter of the
                                         queries at a time (`attention.causal_attention`)
    splash    TPU                        Pallas kernels that ship with JAX, forward and backward
    cudnn     NVIDIA GPU from Ampere on  cuDNN's flash attention, half precision alone

They serve scoring, training and prefill. A decode step, one query per row, is a read of the
cache and stays XLA's. Their sums are float32 too, in another order: numbers agree to float
error, and are not equal bit for bit.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import PartitionSpec

from stepalign_jax.base.errors import UserError
from stepalign_jax.parallel.mesh import active_mesh, num_pieces

_LANES, _BLOCKS = 128, (512, 384, 256)  # the kernels' unit; block lengths from best to worst
_FIRST_WITH_CUDNN = 8.0  # compute capability of Ampere
_WIDEST_CUDNN_HEAD = 128


def choose_kernel(setting: str, devices: Sequence[Any], *, dtype: Any, head_dim: int) -> str:
    """The kernel that `model.attention` means on these devices.

    Args:
      setting: "auto", which takes the platform's own where it can, or a kernel by name.
      devices: that the model runs on, all of one kind; those of a topology will do.
      dtype: of computation.
      head_dim: of the model.

    Raises:
      UserError: the kernel that is named cannot run there.
    """
    reasons: dict[str, str | None] = {
        "splash": _no_splash(devices[0], dtype),
        "cudnn": _no_cudnn(devices[0], dtype, head_dim),
        "xla": None,
    }
    if setting == "auto":
        return next(name for name, reason in reasons.items() if reason is None)
    if reasons[setting] is not None:
        raise UserError(
            f"model.attention is {setting!r}, but {reasons[setting]}: set it to auto, or "
            "to xla, which runs everywhere."
        )
    return setting


def _no_splash(device: Any, dtype: Any) -> str | None:
    """Why not, or None."""
    if device.platform != "tpu":
        return f"the device is a {device.platform.upper()}, and splash attention needs a TPU"
    if jnp.dtype(dtype) == jnp.float16:
        return "splash attention does not compute in float16"
    return None


def _no_cudnn(device: Any, dtype: Any, head_dim: int) -> str | None:
    """Why not, or None."""
    capability = str(getattr(device, "compute_capability", ""))
    if device.platform not in ("gpu", "cuda") or not capability[:1].isdigit():
        return f"the device is a {device.platform.upper()}, and cuDNN needs an NVIDIA GPU"
    if float(capability) < _FIRST_WITH_CUDNN:
        return f"the GPU is older than Ampere ({device.device_kind}), and cuDNN has none for it"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN has it in half precision alone, and model.compute_dtype is {dtype}"
    if head_dim % 8 or head_dim > _WIDEST_CUDNN_HEAD:
        return (
            f"the model's heads are {head_dim} wide, and cuDNN takes multiples of 8 up to 128"
        )
    return None


def takes(kernel: str, num_queries: int, num_keys: int, *, segments: bool) -> bool:
    """Whether the kernel serves such a call; XLA serves the others.

    The queries are the last of the keys' positions: fewer of them stand behind a prefix.
    """
    if kernel == "cudnn":  # it counts a causal mask from the first key, and has no segments
        return num_queries == num_keys > 1 and not segments
    return kernel == "splash" and num_queries > 1


def attend(
    kernel: str,
    form: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    segment_ids: jax.Array | None,
) -> jax.Array:
    """Causal attention, by XLA where there is a mask and else by a kernel that `takes` it.

    Args:
      kernel: "splash" or "cudnn", where there is no mask.
      form: (q, k, v, mask) -> result, of XLA.
      q: [B, T, H, Dh]; without a mask the last T of S positions.
      k: [B, K, Dh, S].
      v: [B, K, S, Dh].
      mask: as in `attention.attention`, or None.
      segment_ids: [B, T] where T = S: a query sees keys of its own segment; or None.

    Returns:
      [B, T, H, Dh] in the dtype of `q`.
    """
    if mask is not None:
        return form(q, k, v, mask)
    if kernel == "cudnn":
        return cudnn_attention(q, k, v)
    return splash_attention(q, k, v, segment_ids)


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attend` by cuDNN; JAX knows how it is cut over a mesh.

    JAX's binding refuses the gradient of an odd length, which is padded as in splash attention.
    """
    length, scale = q.shape[1], q.shape[-1] ** -0.5
    k, v = k.transpose(0, 3, 1, 2), v.swapaxes(1, 2)
    q, k, v = (_padded(array, 2, axis=1) for array in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=True, scale=scale, implementation="cudnn"
    )
    return out[:, :length]


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`attend` by splash attention; `interpret` runs it without a TPU, slowly.

    Lengths are padded at their end to whole blocks. No real query sees a padded key, for it is
    later; what padded queries see is cut off.
    """
    length, num_slots = q.shape[1], v.shape[2]
    query_block, key_block = block_length(length), block_length(num_slots)
    # The kernel does not scale. In float32, since the factor is no power of two.
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    q = _padded(q.swapaxes(1, 2), query_block, axis=2)
    k, v = (_padded(array, key_block, axis=2) for array in (k.swapaxes(2, 3), v))
    run = functools.partial(
        _splash_rows, (query_block, key_block), num_slots - length, interpret
    )
    ids = ()
    if segment_ids is not None:  # padding is a segment of its own
        ids = (_padded(segment_ids, query_block, axis=1, value=-1),)
    return _by_row_and_head(run, q, k, v, *ids)[:, :, :length].swapaxes(1, 2)


def block_length(length: int) -> int:
    """Of the blocks that a length is cut into: the one that pads least, the longest of them."""
    if length <= _BLOCKS[-1]:
        return length + -length % _LANES
    return min(_BLOCKS, key=lambda block: -length % block)


def _splash_rows(
    blocks: tuple[int, int],
    offset: int,
    interpret: bool,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *segment_ids: jax.Array,
) -> jax.Array:
    """[B, H, T, Dh] from q [B, H, T, Dh], k and v [B, K, S, Dh], all of whole blocks."""
    # Imported where it is used: Pallas takes a second, which a CPU needs not spend.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (block_q, block_k), (num_heads, length), num_slots = blocks, q.shape[1:3], k.shape[2]
    sizes = kernel.BlockSizes(
        block_q=block_q, block_kv=block_k, block_kv_compute=block_k,
        block_q_dkv=block_q, block_kv_dkv=block_k, block_kv_dkv_compute=block_k,
        block_q_dq=block_q, block_kv_dq=block_k,
    )  # fmt: skip
    causal = masks.CausalMask((length, num_slots), offset=offset)
    run: Any = kernel.make_splash_mha_single_device(
        masks.MultiHeadMask([causal] * num_heads), block_sizes=sizes, interpret=interpret
    )
    if not segment_ids:
        return jax.vmap(run)(q, k, v)
    [ids] = segment_ids
    return jax.vmap(run)(q, k, v, kernel.SegmentIds(ids, ids))


def _by_row_and_head(run: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Runs it where rows and heads lie: the compiler cannot cut a kernel by itself.

    Rows or heads that the devices do not divide are computed on each of them.
    """
    mesh = active_mesh()
    if mesh is None:
        return run(*arrays)
    q, k, *_ = arrays
    # By the layout of the caller, training or sampling.
    rows, heads = logical_to_mesh_axes(("batch", "heads")) or (None, None)
    rows = rows if q.shape[0] % num_pieces(mesh, rows) == 0 else None
    heads = heads if k.shape[1] % num_pieces(mesh, heads) == 0 else None
    whole, ids = PartitionSpec(rows, heads), PartitionSpec(rows)
    specs = (whole, whole, whole, ids)[: len(arrays)]
    # Pallas does not say over which axes its results vary.
    return jax.shard_map(run, in_specs=specs, out_specs=whole, check_vma=False)(*arrays)


def _padded(array: jax.Array, block: int, *, axis: int, value: int = 0) -> jax.Array:
    """Padded at the end of an axis to whole blocks."""
    ends = [(0, 0)] * array.ndim
    ends[axis] = (0, -array.shape[axis] % block)
    return jnp.pad(array, ends, constant_values=value)
