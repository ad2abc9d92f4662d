# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The one table between leaves of our params and tensor names of Hugging Face."""

import functools
from typing import Any, NamedTuple

import flax.traverse_util

from stepalign_jax.model.config import PROJECTIONS, Qwen3Config
from stepalign_jax.model.qwen3 import abstract_params

Path = tuple[str, ...]

# Submodule that holds a projection -> its name in the files.
MODULES = {"attention": "self_attn", "mlp": "mlp"}

# Path below `layers` -> name below `model.layers.<i>`. A bias is there where the config has it.
_LAYER_NAMES = {
    ("attention_norm", "scale"): "input_layernorm.weight",
    ("mlp_norm", "scale"): "post_attention_layernorm.weight",
    ("attention", "q_norm", "scale"): "self_attn.q_norm.weight",
    ("attention", "k_norm", "scale"): "self_attn.k_norm.weight",
} | {
    (module, name, leaf): f"{MODULES[module]}.{name}.{theirs}"
    for name, (module, _) in PROJECTIONS.items()
    for leaf, theirs in {"kernel": "weight", "bias": "bias"}.items()
}
_TOP_NAMES = {
    ("embedding",): "model.embed_tokens.weight",
    ("lm_head",): "lm_head.weight",
    ("final_norm", "scale"): "model.norm.weight",
}


class TensorPlace(NamedTuple):
    """The leaf, or the layer of a leaf, that a tensor of the files is.

    Attributes:
      path: of a leaf of the stacked params.
      layer: of that leaf, or None where the tensor is the whole leaf.
      shape: in our orientation, without the layer.
    """

    path: Path
    layer: int | None
    shape: tuple[int, ...]

    @property
    def transposed(self) -> bool:
        """Whether the file holds it [out, in], as torch.nn.Linear does."""
        return self.path[-1] == "kernel"

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape that the file has."""
        return self.shape[::-1] if self.transposed else self.shape


@functools.cache  # it traces the model
def param_shapes(config: Qwen3Config) -> dict[Path, tuple[int, ...]]:
    """Shape of every leaf of the stacked params, by path."""
    flat: dict[Any, Any] = flax.traverse_util.flatten_dict(abstract_params(config))
    return {path: box.value.shape for path, box in flat.items()}


def tensor_name(path: Path, layer: int | None) -> str:
    """The name of a leaf, or of one layer of it, in the files."""
    if layer is None:
        return _TOP_NAMES[path]
    return f"model.layers.{layer}.{_LAYER_NAMES[path[1:]]}"


def tensor_places(config: Qwen3Config) -> dict[str, TensorPlace]:
    """Hugging Face tensor name -> TensorPlace, for exactly the tensors of a config."""
    places = {}
    for path, shape in param_shapes(config).items():
        if path[0] != "layers":
            places[tensor_name(path, None)] = TensorPlace(path, None, shape)
            continue
        for layer in range(config.num_layers):
            places[tensor_name(path, layer)] = TensorPlace(path, layer, shape[1:])
    return places
