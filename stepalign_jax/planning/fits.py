# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run's weights take of each device, from shapes, dtypes and shardings.

This is what stays there from phase to phase. Activations, gradients, caches of keys and
values, and the copy of the layers that sampling decodes with come and go beside it.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import jax

from stepalign_jax.critics.engine_critic import ModelCritic
from stepalign_jax.critics.protocol import Critic, innermost
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.parallel.offload import has_host_memory
from stepalign_jax.training.state import TrainState

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Share:
    """The memory of one part.

    Attributes:
      bytes_per_device: of each device that holds it, while it is there.
      devices: how many those are.
      where: in words; of what waits, both places.
    """

    bytes_per_device: int
    devices: int
    where: str


def bytes_per_device(tree: Any) -> int:
    """Largest number of bytes of `tree` on one device; 0 for an empty tree."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory_shares(
    model: LanguageModel, state: TrainState, critic: Critic | None
) -> dict[str, Share]:
    """Returns the memory of each part by name, the critic's included."""
    critic = innermost(critic)
    turns = isinstance(critic, ModelCritic) and critic.takes_turns
    where = _place(model.mesh) + " (host memory while the critic is asked)" * turns
    parts = {
        "base": model.base,
        "trainable": state.trainable,
        "optimizer": state.opt_state,
        "teacher": state.teacher,
    }
    shares = {
        name: Share(bytes_per_device(tree), model.mesh.size, where)
        for name, tree in parts.items()
    }
    if not jax.tree.leaves(state.teacher):
        shares["teacher"] = Share(0, model.mesh.size, "no weights of its own")
    return {**shares, "critic": _critic_share(model, critic)}


def _critic_share(model: LanguageModel, critic: Critic | None) -> Share:
    if not isinstance(critic, ModelCritic):
        return Share(0, model.mesh.size, "no weights")
    second, where = critic.model, _place(critic.model.mesh)
    if second.weights is model.weights:
        return Share(0, model.mesh.size, "the base itself")
    if critic.takes_turns:
        kind = "pinned host memory" if has_host_memory() else "host memory"
        where += f" while it is asked, else {kind}"
    return Share(bytes_per_device(second.base), second.mesh.size, where)


def _place(mesh: jax.sharding.Mesh) -> str:
    ids = sorted(device.id for device in mesh.devices.flat)
    return f"device {ids[0]}" if len(ids) == 1 else f"devices {ids[0]}-{ids[-1]}"


def memory_table(shares: dict[str, Share]) -> str:
    """Returns a plain-text table, one part a line."""
    width = max(map(len, shares))
    lines = [f"{'':{width}}  {'each device':>11}  where"]
    lines += [
        f"{name:{width}}  {readable_bytes(share.bytes_per_device):>11}  {share.where}"
        for name, share in shares.items()
    ]
    return "\n".join(lines) + "\n"


def memory_json(shares: dict[str, Share]) -> dict[str, dict[str, Any]]:
    """The same for memory.json."""
    return {name: asdict(share) for name, share in shares.items()}


def readable_bytes(number: int) -> str:
    """1536 -> "1.5 KiB"."""
    power = min(int(math.log2(number) // 10) if number else 0, len(_UNITS) - 1)
    return f"{number / 1024**power:.{1 if power else 0}f} {_UNITS[power]}"
