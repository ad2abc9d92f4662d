# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as a model: sizes, tokenizer, weights on a mesh, and an engine that samples.

Opening one reads its small files and checks all that they can tell; `load` reads the weights.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.fingerprint import fingerprint_checkpoint
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.peft_adapters import load_adapter
from stepalign_jax.huggingface.tokenizer import check_ids, load_tokenizer, stop_ids
from stepalign_jax.huggingface.weights import load_params
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.kernels import choose_kernel
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3, abstract_params
from stepalign_jax.parallel.mesh import check_heads, param_shardings
from stepalign_jax.parallel.offload import Resident
from stepalign_jax.sampling.engine import Engine


@dataclass(frozen=True)
class LanguageModel:
    """One checkpoint, opened; made by `open_language_model`.

    Attributes:
      directory: the checkpoint's files.
      sizes: of its network.
      tokenizer: its own, from `load_tokenizer`.
      stop_ids: token ids that end a completion.
      dtype: of computation, and of the base weights on the devices.
      mesh: the devices.
      shardings: of the base weights on them, one per leaf.
      attention: the config's choice of a kernel, one of `model.attention`.
      lora: size of the adapter beside the base, or None for the base alone.
      adapter: its values, float32 in host memory; None for no adapter or a fresh one.
      weights: the base weights; empty until `load`.
    """

    directory: Path
    sizes: Qwen3Config
    tokenizer: Any
    stop_ids: tuple[int, ...]
    dtype: Any
    mesh: jax.sharding.Mesh
    shardings: Any
    attention: str
    lora: LoraSpec | None = None
    adapter: dict[str, Any] | None = None
    weights: Resident = field(default_factory=Resident)

    def load(self) -> None:
        """Reads the base weights onto their devices, unless they are there.

        Raises:
          UserError: the files lack something, hold more, or cannot be read.
        """
        if self.weights.tree is None:
            params = load_params(
                self.directory, self.sizes, dtype=self.dtype, shardings=self.shardings
            )
            self.weights.replace(params)

    def with_adapter(
        self, lora: LoraSpec | None, adapter: dict[str, Any] | None = None
    ) -> "LanguageModel":
        """Returns the same base, weights shared, with an adapter of this size beside it."""
        return replace(self, lora=lora, adapter=adapter)

    def with_saved_adapter(self, directory: Path) -> "LanguageModel":
        """Returns the same base with the PEFT adapter of a directory.

        Raises:
          UserError: the adapter cannot be read, or does not fit the base.
        """
        return self.with_adapter(*load_adapter(directory, self.sizes))

    @property
    def base(self) -> dict[str, Any]:
        """Params of the base. Ask again after a critic's turn, which may move them."""
        return self.weights.tree

    def variables(self) -> dict[str, Any]:
        """The base and the adapter's values, if it has any; a fresh adapter changes nothing."""
        if self.adapter is None:
            return {"params": self.base}
        return {"params": self.base, "lora": jax.tree.map(jnp.array, self.adapter)}

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """See `fingerprint_checkpoint`; large files are read once, not for each split."""
        return fingerprint_checkpoint(self.directory)

    @cached_property
    def kernel(self) -> str:
        """What attends on these devices.

        Raises:
          UserError: `attention` names a kernel that cannot run there.
        """
        devices, head_dim = tuple(self.mesh.devices.flat), self.sizes.head_dim
        return choose_kernel(self.attention, devices, dtype=self.dtype, head_dim=head_dim)

    def module(self, remat: str) -> Qwen3:
        """The network for scoring and training, layers scanned."""
        return Qwen3(self.sizes, self.dtype, lora=self.lora, remat=remat, kernel=self.kernel)

    @cached_property
    def engine(self) -> Engine:
        """Samples from the base, or from the base with an adapter."""
        pad_id = self.tokenizer.pad_token_id
        if pad_id is None or pad_id >= self.sizes.vocab_size:
            pad_id = self.stop_ids[0]
        return Engine(
            self.sizes, self.dtype, self.lora, self.stop_ids, pad_id, kernel=self.kernel
        )


def open_language_model(
    path: str,
    *,
    dtype: Any,
    mesh: jax.sharding.Mesh,
    attention: str = "auto",
    path_key: str = "model.path",
    mesh_section: str = "parallel",
) -> LanguageModel:
    """Reads the small files of a checkpoint, and downloads it if `path` is a hub id.

    Args:
      path: a Hugging Face directory, a hub id, or packaged:tiny.
      dtype: of computation and of the weights.
      mesh: where the weights go.
      attention: one of `model.attention`.
      path_key: the config's key of `path`, for refusals.
      mesh_section: the config's section that sizes `mesh`, for refusals.

    Raises:
      UserError: the checkpoint cannot be had, its files cannot be used, its sizes do not fit
        the mesh, or its devices lack the kernel that `attention` names.
    """
    directory = resolve_checkpoint(path, path_key)
    sizes, tokenizer = read_sizes(directory, path_key), load_tokenizer(directory)
    stops = stop_ids(tokenizer, directory)
    check_ids(tokenizer, stops, sizes.vocab_size)
    check_heads(mesh, sizes.num_heads, sizes.num_kv_heads, mesh_section)
    model = LanguageModel(
        directory=directory,
        sizes=sizes,
        tokenizer=tokenizer,
        stop_ids=stops,
        dtype=jnp.dtype(dtype),
        mesh=mesh,
        shardings=param_shardings(mesh, abstract_params(sizes), section=mesh_section),
        attention=attention,
    )
    _ = model.kernel  # refused here, before weights are read
    return model
