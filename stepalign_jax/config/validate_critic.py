# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Rules between the keys of `critic`: whom to ask, and on which devices."""

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import CriticConfig


def check_critic(critic: CriticConfig) -> None:
    """Refuses a second model that is not there, or is placed in two ways at once.

    Raises:
      UserError: naming the first key at odds with another.
    """
    _check_second_model(critic)
    own = critic.placement == "own"
    if own != (critic.num_devices > 0):
        need = "needs at least 1" if own else "takes all devices; set it to 0"
        raise UserError(
            f"critic.num_devices is {critic.num_devices}, but "
            f"critic.placement={critic.placement} {need}"
        )
    if own and critic.num_devices % critic.tensor:
        raise UserError(
            f"critic.tensor is {critic.tensor}, but it must divide critic.num_devices, which "
            f"is {critic.num_devices}"
        )


def _check_second_model(critic: CriticConfig) -> None:
    if critic.kind == "checkpoint":
        if critic.path == "":
            raise UserError(
                "critic.path is empty, but critic.kind=checkpoint reads a second model; name "
                "a Hugging Face directory, a hub id, or packaged:tiny"
            )
    elif critic.path != "":
        raise UserError(
            f"critic.path is {critic.path!r}, but critic.kind={critic.kind} reads no second "
            "model; leave it empty, or set critic.kind=checkpoint"
        )
    elif critic.placement != "shared":
        raise UserError(
            f"critic.placement is {critic.placement!r}, but critic.kind={critic.kind} has no "
            "weights of its own to place; set it to shared"
        )
