# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The Qwen3 transformer as one Flax Linen module: solver, teacher and critic alike.

Two fields of its config make it a Qwen2: biases on q, k and v, and no q/k norms.

`params`, canonical (scanned) form; every leaf under `layers` is stacked [L, ...]:

    embedding [V, D]    lm_head [V, D] (untied only)    final_norm.scale [D]
    layers.attention_norm.scale [D]           layers.mlp_norm.scale [D]
    layers.attention.{q,k,v,o}_proj.kernel    layers.mlp.{gate,up,down}_proj.kernel
    layers.attention.{q,k}_norm.scale [Dh] (qk_norm)
    layers.attention.{q,k,v}_proj.bias [out] (qkv_bias)     kernels are [in, out]

The unrolled form has `layer_0`, `layer_1`, ... in place of `layers`; decoding derives it.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from stepalign_jax.model import attention as attn
from stepalign_jax.model import kernels, rope
from stepalign_jax.model.cache import Cache, LayerCache, write
from stepalign_jax.model.config import BIASED, PROJECTIONS, Qwen3Config
from stepalign_jax.model.lora import LoraSpec, Projection, named_init
from stepalign_jax.model.products import PRODUCT, rows_product

Tree = dict[str, Any]


class Context(NamedTuple):
    """Arrays that all layers of one forward pass share.

    Attributes:
      cos, sin: [1 or B, T, 1, Dh / 2] fp32 rotary angles.
      mask: [1 or B, T, S] bool, True where attention is allowed; None where a kernel attends.
      segment_ids: [B, T] of packed rows, for such a kernel; else None.
      first_slot: [1 or B] int32 cache slot of each row's first token; None without a cache.
    """

    cos: jax.Array
    sin: jax.Array
    mask: jax.Array | None
    first_slot: jax.Array | None
    segment_ids: jax.Array | None = None


def residual_dtype(dtype: Any) -> Any:
    """The dtype of the residual stream, for a compute dtype.

    Along the residual stream a few channels of trained Qwen models grow past 65,504, the
    largest fp16 number, and would become infinite. The norms bring the input of each layer
    back into range, so only the stream is kept in fp32.
    """
    return jnp.float32 if jnp.dtype(dtype) == jnp.float16 else dtype


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in fp32, returned in the compute dtype."""

    eps: float
    dtype: Any
    axis_name: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = named_init(nn.initializers.ones, (self.axis_name,))
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
        return (x * scale).astype(self.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention, with per-head q/k norms before RoPE if `qk_norm`."""

    config: Qwen3Config
    dtype: Any
    lora: LoraSpec | None
    kernel: str

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """([B, T, D], context, cache) -> ([B, T, D], the cache with these tokens written)."""
        heads = {"q_proj": "heads", "k_proj": "kv_heads", "v_proj": "kv_heads"}
        q, k, v = (self._project(name, x, axis) for name, axis in heads.items())
        # Normalised before RoPE, over each head's own axis: Qwen3's order.
        if self.config.qk_norm:
            q, k = self._norm("q_norm")(q), self._norm("k_norm")(k)
        q = rope.rope(q, context.cos, context.sin)
        k = rope.rope(k, context.cos, context.sin)
        k, v = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)  # as in LayerCache
        seen = (context.mask, context.segment_ids)
        if cache is None:
            out = kernels.attend(self.kernel, attn.causal_attention, q, k, v, *seen)
        else:
            cache = LayerCache(
                write(cache.k, k, context.first_slot, axis=3),
                write(cache.v, v, context.first_slot, axis=2),
            )
            k, v = cache.k.astype(self.dtype), cache.v.astype(self.dtype)
            # Kernels are in row blocks only where a CPU decodes; there all cores can read the
            # cache as well.
            streams = self.has_variable("decode", "q_proj") and attn.can_stream(q, v)
            form = attn.streamed_attention if streams else attn.attention
            out = kernels.attend(self.kernel, form, q, k, v, *seen)
        out = with_logical_constraint(out, ("batch", "length", "heads", "head_size"))
        out = out.reshape(*out.shape[:2], -1)
        return _projection(self, "o_proj")(out), cache

    def _project(self, name: str, x: jax.Array, axis: str) -> jax.Array:
        y = _projection(self, name)(x)
        y = y.reshape(*y.shape[:2], -1, self.config.head_dim)
        return with_logical_constraint(y, ("batch", "length", axis, "head_size"))

    def _norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.config.rms_norm_eps, self.dtype, "head_size", name=name)


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: Qwen3Config
    dtype: Any
    lora: LoraSpec | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gated = nn.silu(_projection(self, "gate_proj")(x)) * _projection(self, "up_proj")(x)
        gated = with_logical_constraint(gated, ("batch", "length", "mlp"))
        return _projection(self, "down_proj")(gated)


def _projection(parent: "Attention | Mlp", name: str) -> Projection:
    """The projection `name` of a module that is being called (Linen attaches it there)."""
    config, lora, axes = parent.config, parent.lora, PROJECTIONS[name][1]
    # o_proj and down_proj add to the residual stream, so they are summed in its dtype.
    to_residual = axes[1] == "embed"
    return Projection(
        config.projection_shape(name)[1],
        axes,
        parent.dtype,
        residual_dtype(parent.dtype) if to_residual else parent.dtype,
        use_bias=config.qkv_bias and name in BIASED,
        scale=lora.scale if lora is not None and name in lora.targets else None,
        name=name,
    )


class Block(nn.Module):
    """One pre-norm transformer layer; the loop over layers lives in Qwen3."""

    config: Qwen3Config
    dtype: Any
    lora: LoraSpec | None
    kernel: str

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """([B, T, D], context, cache) -> ([B, T, D], the cache with these tokens written)."""
        eps = self.config.rms_norm_eps
        normed = RMSNorm(eps, self.dtype, "norm", name="attention_norm")(x)
        attended, cache = Attention(
            self.config, self.dtype, self.lora, self.kernel, name="attention"
        )(normed, context, cache)
        x = x + attended
        normed = RMSNorm(eps, self.dtype, "norm", name="mlp_norm")(x)
        x = x + Mlp(self.config, self.dtype, self.lora, name="mlp")(normed)
        return with_logical_constraint(x, ("batch", "length", "width")), cache


class Qwen3(nn.Module):
    """The decoder without its head; `logits` applies the head to chosen hidden states.

    Attributes:
      config: sizes of the checkpoint.
      dtype: compute dtype; norms, RoPE, attention scores and softmax are fp32 anyway, and
        so is the residual stream if this is fp16.
      lora: which projections look for an adapter in the `lora` collection.
      remat: "none" | "full" | "dots" (matmul outputs are saved, the rest is recomputed).
      kernel: what attends with more than one query per row (`kernels.choose_kernel`). With a
        cache, "splash" and "cudnn" take these queries to fill it to its last slot.
      scan_layers: True takes stacked params (`layers`), False unrolled ones (`layer_0`..).
    """

    config: Qwen3Config
    dtype: Any
    lora: LoraSpec | None = None
    remat: str = "none"
    scan_layers: bool = True
    kernel: str = "xla"

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(0.02)
        table = named_init(init, ("vocab", "embed"))
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = self.param("embedding", table, shape, jnp.float32)
        if not config.tie_word_embeddings and not self.has_variable("decode", "head"):
            self.lm_head = self.param("lm_head", table, shape, jnp.float32)
        self.final_norm = RMSNorm(config.rms_norm_eps, self.dtype, "norm")
        block = _remat_block(self.remat, self.scan_layers)
        if self.scan_layers:
            self.layers = nn.scan(
                block,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(config, self.dtype, self.lora, self.kernel)
        else:
            self.layer = [
                block(config, self.dtype, self.lora, self.kernel)
                for _ in range(config.num_layers)
            ]

    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states; `hidden[:, t]` predicts `tokens[:, t + 1]`.

        Without a cache, attention is causal, and stays within equal `segment_ids` where
        they are given. Right padding needs no mask: causality keeps it from real tokens.

            tokens       a  b  c  x  y  .      two texts packed in one row
            segment_ids  1  1  1  2  2  0
            positions    0  1  2  0  1  0      restart by hand; the default is 0..T-1

        With a cache (unrolled form only), keys and values are written at slots equal to
        `positions`, which run on contiguously within a row and must lie below S; a query
        at position p attends to slots s <= p. Prefill is T = P with positions 0..P-1,
        decoding is T = 1.

        Args:
          tokens: [B, T] int32.
          positions: [1 or B, T] int32, or None for 0..T-1 in every row.
          segment_ids: [B, T] int32, or None.
          cache: one LayerCache per layer, or None.

        Returns:
          ([B, T, D] after the final norm in the compute dtype, the updated cache or None).

        Raises:
          ValueError: a cache together with scanned layers or with segment_ids.
        """
        if cache is not None and (self.scan_layers or segment_ids is not None):
            raise ValueError("a cache needs scan_layers=False and takes no segment_ids")
        if positions is None:
            positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        # Angles and mask are computed once and not in every layer.
        context = self._context(positions, segment_ids, cache)
        x = self._embed(tokens)
        if self.scan_layers:
            x, _ = self.layers(x, context, None)
            return self.final_norm(x), None
        layer_caches = []
        for i, layer in enumerate(self.layer):
            x, layer_cache = layer(x, context, None if cache is None else cache[i])
            layer_caches.append(layer_cache)
        return self.final_norm(x), None if cache is None else tuple(layer_caches)

    def _embed(self, tokens: jax.Array) -> jax.Array:
        """[B, T] -> [B, T, D], the residual stream before the first layer.

        Where fsdp cuts rows and the embedding's width, its devices look up all of their rows in
        the width that each has, and exchange rows for width. Left alone, the compiler gathers
        the rows at full width, or the embedding.
        """
        tokens = with_logical_constraint(tokens, ("lookup", "length"))
        x = jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)
        x = with_logical_constraint(x, ("lookup", "length", "embed"))
        x = x.astype(residual_dtype(self.dtype))
        return with_logical_constraint(x, ("batch", "length", "width"))

    def _context(
        self, positions: jax.Array, segment_ids: jax.Array | None, cache: Cache | None
    ) -> Context:
        config = self.config
        angles = functools.partial(
            rope.rope_angles,
            head_dim=config.head_dim,
            theta=config.rope_theta,
            yarn=config.yarn,
        )
        length = positions.shape[1]
        num_slots = length if cache is None else cache[0].num_slots
        segments = segment_ids is not None
        by_kernel = kernels.takes(self.kernel, length, num_slots, segments=segments)
        if cache is None:
            mask = None if by_kernel else attn.causal_mask(length, segment_ids)
            return Context(*angles(positions), mask, None, segment_ids if by_kernel else None)
        mask = None if by_kernel else attn.cache_mask(positions, num_slots)
        # Looked up in a table: XLA's CPU compiler would fuse the cosines into every head of
        # every layer and compute them anew there.
        slots = jnp.arange(num_slots, dtype=positions.dtype)[None]
        cos, sin = (table[0][positions] for table in angles(slots))
        return Context(cos, sin, mask, positions[:, 0])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] hidden states -> [..., V] fp32 logits (products in the compute dtype)."""
        if self.has_variable("decode", "head"):
            return rows_product(hidden, self.get_variable("decode", "head"), jnp.float32)
        head = self.embedding if self.config.tie_word_embeddings else self.lm_head
        contract = (((hidden.ndim - 1,), (1,)), ((), ()))
        return jax.lax.dot_general(
            hidden, head.astype(self.dtype), contract, preferred_element_type=jnp.float32
        )


def _remat_block(remat: str, scanned: bool) -> type[Block]:
    """Block under a rematerialisation policy: "none", "full" or "dots"."""
    if remat == "none":
        return Block
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    }
    # Common-subexpression elimination could undo it, but not across the body of a scan.
    return nn.remat(Block, policy=policies[remat], prevent_cse=not scanned)


def init_params(config: Qwen3Config, key: jax.Array, dtype: Any = jnp.float32) -> Tree:
    """Random params in the stacked form: normal(0.02) weights, scales of one, no bias yet."""

    @jax.jit  # one compilation instead of one per operation
    def run(key: jax.Array) -> Tree:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), nn.meta.unbox(_init(config, key)))

    return run(key)


@functools.cache  # a command asks three times, and each trace of the model takes 0.3 s
def abstract_params(config: Qwen3Config) -> Tree:
    """Shapes of `init_params` boxed with logical axis names, for `mesh.param_shardings`.

    All callers get the same tree, which nobody may change.
    """
    return jax.eval_shape(lambda: _init(config, jax.random.key(0)))


def _init(config: Qwen3Config, key: jax.Array) -> Tree:
    return Qwen3(config, jnp.float32).init(key, jnp.zeros((1, 1), jnp.int32))["params"]  # pyright: ignore[reportReturnType]


def output_head(params: Tree) -> jax.Array:
    """[V, D]: `lm_head`, or the embedding where it is tied."""
    return params["lm_head"] if "lm_head" in params else params["embedding"]


def unstack_layers(tree: Tree, num_layers: int) -> Tree:
    """Stacked -> unrolled form, for a params or a lora tree.

    Under jit each layer is a copy: while both forms live, the layers take twice the memory.
    """
    rest = {name: leaf for name, leaf in tree.items() if name != "layers"}
    layers = {
        f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree["layers"])
        for i in range(num_layers)
    }
    return {**rest, **layers}


def stack_layers(tree: Tree, num_layers: int) -> Tree:
    """Unrolled -> stacked form, for a params or a lora tree; the inverse of unstack_layers."""
    names = [f"layer_{i}" for i in range(num_layers)]
    rest = {name: leaf for name, leaf in tree.items() if name not in names}
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tree[name] for name in names))
    return {**rest, "layers": layers}
